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
# # 05 Norm sensitivity and linear attention
#
# This notebook takes less than a minute on two idle cores.
#
# In softmax attention a longer query is sharper: its entropy falls. In linear attention the norm of a query
# cancels. Norm-aware linear attention puts it back as an exponent. We measure all three, on random rows and on
# trained models.

# %%
import os

import torch
from IPython.display import HTML

from sparsity_lab.analysis import (
    draw_curve,
    extrapolation_curve,
    looks_of,
    name_lines,
    norm_sensitivity,
    styled,
    titled,
)
from sparsity_lab.analysis.style import figure_image, new_axes
from sparsity_lab.generators import Planted
from sparsity_lab.kernels import Linear, NormAwareLinear, Softmax
from sparsity_lab.models import Decoder, NoPE
from sparsity_lab.sweeps import Processes, Serial, Sweep, grid, run_sweep, sweep_progress
from sparsity_lab.training import Evaluation, Run, RunConfig, Training

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
STEPS, SEQUENCES, LENGTHS = (2, 16, (8, 24)) if SMOKE else (300, 512, (8, 24, 48, 96))
ENGINE = Serial() if SMOKE else Processes(workers=2)

# %% [markdown]
# ## The same queries, longer and shorter
#
# `kernel.weights` gives the dense weights of a few rows. We scale the queries by r and plot the mean entropy.

# %%
generator = torch.Generator().manual_seed(0)
q, k = torch.randn(2, 1, 4, 64, 16, generator=generator).unbind()
q = q / q.norm(dim=-1, keepdim=True)
kernels = [Softmax(), Linear(feature="relu"), NormAwareLinear()]


def entropy(kernel, scale):
    weights = kernel.weights(scale * q, k)[:, :, 8:]
    return float(torch.special.entr(weights).sum(-1).mean())


scales = [0.25, 0.5, 1, 2, 4, 8]
entropies = {str(kernel): [entropy(kernel, r) for r in scales] for kernel in kernels}
with styled():
    ax = new_axes(6.4, 3.2)
    for name, style in looks_of(list(entropies)).items():
        draw_curve(ax, scales, entropies[name], style, name)
    ax.set_xscale("log", base=2)
    ax.set_xticks(scales, [f"{scale:g}" for scale in scales])
    ax.set_xlabel("norm of the queries (log scale)")
    ax.set_ylabel("mean entropy of a row (nats)")
    name_lines(ax)
ends = "; ".join(f"{name} {values[0]:.2f} to {values[-1]:.2f}" for name, values in entropies.items())
finding = f"Entropy as queries grow 32 times: {ends}"
HTML(figure_image(titled(ax.figure, finding), finding))

# %% [markdown]
# Softmax gets sharper without limit. Linear attention does not change. The norm-aware form gets sharper up to a
# norm of about 3, where its exponent reaches its limit.
#
# ## In trained models

# %%
base = RunConfig(
    task=Planted(k=1),
    model=Decoder(num_layers=1, position=NoPE()),
    training=Training(steps=STEPS),
    evaluation=Evaluation(lengths=LENGTHS, sequences=SEQUENCES),
)
results = run_sweep(
    Sweep(name="norms", runs=grid(base, {"model.kernel": kernels})), "runs/05", ENGINE, progress=sweep_progress()
)
extrapolation_curve(results, by="model.kernel")

# %%
models = {str(run.model.kernel): Run.load(results.folder / run.id) for run in results.runs}
sensitivity = norm_sensitivity(models, lengths=LENGTHS[1:2], sequences=16)
sensitivity

# %% [markdown]
# `query_slope` is the change of the entropy with the logarithm of the query norm. For softmax it must equal the
# exact law, -Cov(r a, s), which is computed too. `.sweep()` shows how rescaled norms change the loss:

# %%
sweep = sensitivity.sweep()
sweep.head(6)

# %% [markdown]
# ## Constant memory in decoding
#
# A linear mechanism decodes from sums of a fixed size. Its outputs are exactly those of one pass.

# %%
kernel = NormAwareLinear()
v = torch.randn(1, 4, 64, 16, generator=generator)
state = kernel.init_state(1, 4, 16, capacity=64)
steps = [kernel.decode(q[:, :, t : t + 1], k[:, :, t : t + 1], v[:, :, t : t + 1], state=state) for t in range(64)]
whole = kernel.attend(q, k, v, training=False)
print(f"largest difference: {(torch.cat(steps, dim=2) - whole).abs().max():.1e}")
