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
# A model trained on short windows of text is trained a little further on longer ones: with all its attention,
# with shifted sparse attention (groups of neighbors in training, all keys in use), and with low-rank
# adapters beside whole embeddings and norms. What does each make of the longer context, and at what cost?

# %%
import os

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
# ## A parent, trained short

# %%
parent = RunConfig(
    task=TextBytes(),
    model=Decoder(num_layers=3),
    training=Training(steps=STEPS, batch_size=16, learning_rate=2e-3, curriculum=FixedLength(length=SHORT)),
    evaluation=Evaluation(lengths=(SHORT // 2, SHORT, 2 * SHORT, LONG), sequences=SEQUENCES),
)
parent

# %% [markdown]
# ## Its children, trained further at four times the length
#
# `extended` makes the run that goes on from a parent: longer sequences, positions interpolated so that no
# rotation lies outside the trained range, and a mechanism or an adapter of your choice. Interpolation alone is
# no gift: neighbors come closer than the parent ever saw them, and it takes the further training to make up for
# that. The parent is made once and shared.

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
# Loss by length, in nats a byte. The parent is the arm without a kernel or adapter of its own at its own
# length; beyond it the rotations are new to it.

# %%
names = {run.id: name for name, run in {"parent": parent, **children}.items()}
rows = results.frame("evaluation")
table = rows.select("run", "length", "loss").with_columns(rows["run"].replace_strict(names).alias("run"))
table.pivot("run", index="length", values="loss")

# %% [markdown]
# ## How far a shift lets a model see
#
# Groups that do not shift never see beyond themselves, however many layers there are. With the shift,
# information moves back at most G - 1 positions in the first layer and G / 2 more in each further one. With G =
# T / 2 a model of three layers sees everything; with G = T / 4 it would take seven layers, and a shallower model
# never gets a gradient for the longest dependencies. Whether that shows in the loss is another question: it
# needs a text with something to find that far back.

# %%
depth, group = 3, LONG // 2
reach = min(LONG, group + (depth - 1) * group // 2)
print(f"{depth} layers, groups of {group}: the last token can depend on {reach} of {LONG} tokens")

# %% [markdown]
# ## What it costs
#
# The share of query-key pairs that training computes, r - r^2 / 4 for groups of r T tokens. A step's time falls
# by less, since attention is a part of it:

# %%
for ratio in (0.125, 0.25, 0.5):
    print(f"groups of {ratio} T: {ratio - ratio**2 / 4:.3f} of the pairs of dense attention")

# %% [markdown]
# One seed and a few steps show the method and are no result. The study of context extension
# (`sparsity-lab sweep context_extension`, with its page among the results) has seeds, learning rates for every
# arm and rules that were fixed before its runs. At its scale not all that larger models made plausible came out:
# shifted sparse fine-tuning cost a little against dense, embeddings and norms beside the adapters made up for
# a part of what full fine-tuning is better by, and short contexts and the passkey suffered.
