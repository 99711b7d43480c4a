# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 Your own task, attention kernel and position scheme
#
# This notebook takes one to two minutes on two idle cores.
#
# Each is one file with one decorator line. Worker processes and the command line import it, so it must be a
# module that can be imported. Here the three files are in the folder `own` next to this notebook.

# %%
import os
import sys
from pathlib import Path

sys.path.insert(0, "own")

import log_distance
import look_back
import sharp_softmax
import torch

from sparsity_lab.analysis import extrapolation_curve
from sparsity_lab.generators import Stream, certify
from sparsity_lab.kernels import Softmax
from sparsity_lab.models import ALiBi, Decoder, NoPE
from sparsity_lab.settings import from_text
from sparsity_lab.sweeps import Processes, Serial, Sweep, grid, run_sweep, sweep_progress
from sparsity_lab.training import Evaluation, RunConfig, Training

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
STEPS, SEQUENCES = (2, 16) if SMOKE else (200, 512)
ENGINE = Serial() if SMOKE else Processes(workers=2)

# %% [markdown]
# ## A task
#
# `own/look_back.py`: the answer is the letter at a fixed distance before the query. This part samples sequences:

# %%
source = Path("own/look_back.py").read_text()
print(source[source.index("    def sample") : source.index("    # What is declared")])

# %%
task = look_back.LookBack(distance=1)
task.sample(Stream(), 0, 3, 16)

# %% [markdown]
# The certificate checks that `sample`, `truth` and `solve` agree:

# %%
certify(task, sequences=2_000 if SMOKE else 50_000)

# %% [markdown]
# A registered task can be typed as it prints, in files and on the command line
# (`sparsity-lab sample "LookBack(distance=1)" --import look_back`):

# %%
from sparsity_lab.generators import Task

from_text(Task, "LookBack(distance=4, num_letters=5)")

# %% [markdown]
# ## A kernel
#
# `own/sharp_softmax.py` has one method, the weights of some rows. Decoding comes with the base class, and is
# exact:

# %%
kernel = sharp_softmax.SharpSoftmax(sharpness=2)
q, k, v = torch.randn(3, 1, 2, 20, 8, generator=torch.Generator().manual_seed(0)).unbind()
whole = kernel.attend(q, k, v)
state = kernel.init_state(1, 2, 8, capacity=20)
steps = [kernel.decode(q[:, :, t : t + 1], k[:, :, t : t + 1], v[:, :, t : t + 1], state=state) for t in range(20)]
print(f"decoding against attending: {(torch.cat(steps, dim=2) - whole).abs().max():.1e}")
print(f"weights times values:       {(kernel.weights(q, k) @ v - whole).abs().max():.1e}")

# %% [markdown]
# ## A position scheme
#
# `own/log_distance.py` is a bias that falls with the logarithm of the distance.

# %%
scheme = log_distance.LogDistance(slope=4)
bias = scheme.kernel_position(torch.arange(6)[None], num_heads=1, head_dim=8, dtype=torch.float32)
bias.bias(slice(5, 6), slice(0, 6))[0, 0]

# %% [markdown]
# ## All three in a sweep
#
# No further registration is needed.

# %%
base = RunConfig(
    task=task,
    model=Decoder(num_layers=1, kernel=kernel),
    training=Training(steps=STEPS),
    evaluation=Evaluation(lengths=(8, 16, 24, 48, 96), sequences=SEQUENCES),
)
axes = {"model.position": [scheme, ALiBi(), NoPE()], "model.kernel": [kernel, Softmax()]}
results = run_sweep(Sweep(name="own", runs=grid(base, axes)), "runs/09", ENGINE, progress=sweep_progress())
results

# %%
extrapolation_curve(results, by=("model.position", "model.kernel"))

# %% [markdown]
# `check_task`, `check_position` and the others of `sparsity_lab.testing` run the lab's own tests on your classes,
# in one line each. See "How to" in the documentation.
