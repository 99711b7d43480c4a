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
# # 06 Context extension
#
# This notebook takes one to two minutes on two idle cores.
#
# A model is trained on short windows of text. Then it is fine-tuned on longer windows in three ways. The first
# uses full attention. The second uses shifted sparse attention: groups of neighbors in training, all keys at
# inference. The third trains low-rank adapters with whole embeddings and norms. How well does each use the longer
# context, and at what cost?

# %%
import os

from sparsity_lab.analysis import extrapolation_curve
from sparsity_lab.generators import TextBytes
from sparsity_lab.kernels import ShiftedSparse
from sparsity_lab.models import Decoder, lora_embed_norm
from sparsity_lab.sweeps import Processes, Serial, Sweep, run_sweep, sweep_progress
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training, extended

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
STEPS, TUNING, SEQUENCES = (2, 2, 4) if SMOKE else (250, 40, 64)
SHORT, LONG = (16, 64) if SMOKE else (64, 256)
ENGINE = Serial() if SMOKE else Processes(workers=2)

# %% [markdown]
# ## A parent, trained on short windows

# %%
parent = RunConfig(
    task=TextBytes(),
    model=Decoder(num_layers=3),
    training=Training(steps=STEPS, batch_size=16, learning_rate=2e-3, curriculum=FixedLength(length=SHORT)),
    evaluation=Evaluation(lengths=(SHORT // 2, SHORT, 2 * SHORT, LONG), sequences=SEQUENCES),
)
parent

# %% [markdown]
# ## Its children, fine-tuned at four times the length
#
# `extended` makes a run that continues from a parent. It has longer sequences, interpolated positions (so no
# rotation is outside the trained range), and a mechanism or an adapter of your choice. Interpolation alone has a
# cost: neighbors are closer than the parent ever saw them, and fine-tuning must make up for this. The parent is
# trained once and shared.

# %%
tuning = Training(steps=TUNING, batch_size=4, learning_rate=1e-3)
shifted = ShiftedSparse(ratio=0.5)
children = {
    "dense": extended(parent, LONG, training=tuning),
    "shifted sparse": extended(parent, LONG, kernel=shifted, training=tuning),
    "shifted sparse, adapters": extended(parent, LONG, kernel=shifted, adapter=lora_embed_norm(), training=tuning),
}
sweep = Sweep(name="context extension", runs=[parent, *children.values()])
results = run_sweep(sweep, "runs/06", ENGINE, progress=sweep_progress())
results

# %% [markdown]
# Loss by length, in nats per byte. The parent was trained on short windows. Beyond them the rotations are new to it.

# %%
names = {run.id: name for name, run in {"parent": parent, **children}.items()}
rows = results.frame("evaluation")
rows = rows.with_columns(rows["run"].replace_strict(names).alias("arm"))
extrapolation_curve(rows, by="arm", measure="loss")

# %% [markdown]
# ## How far a shift lets a model see
#
# Groups without a shift never see beyond themselves, at any depth. With the shift, information moves back at most
# G - 1 positions in the first layer and G / 2 more in each further one. With G = T / 2 a model of three layers
# sees everything. With G = T / 4 it would take seven layers, and a shallower model never gets a gradient for the
# longest dependencies. The loss shows this only if the text has dependencies that long.

# %%
depth, group = 3, LONG // 2
reach = min(LONG, group + (depth - 1) * group // 2)
print(f"{depth} layers, groups of {group}: the last token can depend on {reach} of {LONG} tokens")

# %% [markdown]
# ## What it costs
#
# The share of query-key pairs that training computes is r - r^2 / 4 for groups of r T tokens. The time of a step
# falls by less, because attention is only part of it:

# %%
for ratio in (0.125, 0.25, 0.5):
    print(f"groups of {ratio} T: {ratio - ratio**2 / 4:.3f} of the pairs of dense attention")

# %% [markdown]
# One seed and a few steps show the method. They are not a result. The study `experiments/context_extension` has
# seeds, a learning rate for each method, and rules that are fixed before its runs. This command runs it:
#
#     sparsity-lab decide experiments/context_extension --budget 420
