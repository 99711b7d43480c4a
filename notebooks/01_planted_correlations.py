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
# # 01 Planted correlations and their certificate
#
# This notebook takes less than a minute on two idle cores.
#
# This notebook shows the lab's main task, what the task declares about itself, and how the certificate tests it.

# %%
import os

from sparsity_lab.generators import Planted, PowerLaw, Recent, Stream, SumMod, Window, certify

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
SEQUENCES = 2_000 if SMOKE else 100_000

# %% [markdown]
# ## A task is a setting
#
# You type a task as it prints: here, in tables and on the command line. Click to see all its fields.

# %%
task = Planted(k=3, locality=Recent(width=8))
task

# %% [markdown]
# ## Sequences
#
# A sequence is a pure function of (task, seed, stream name, length, index). Framed tokens enter the rule, here
# parity. The answer follows the arrow. Hover over a token to read its role.

# %%
stream = Stream(seed=0, name="notebook")
batch = task.sample(stream, start=0, count=4, length=24)
batch

# %% [markdown]
# Sequences 2 and 3 of the stream are the same in every batch.

# %%
bool((task.sample(stream, start=2, count=2, length=24).tokens == batch.tokens[2:]).all())

# %% [markdown]
# `sources` are the positions that decide an answer. Later measurements are compared with them.

# %%
batch.sources[:, -1]

# %% [markdown]
# ## The same task with three markings
#
# By *token*: planted tokens have their own alphabet. By *cue*: a cue precedes each planted token. By *position*:
# the same places are planted in every sequence.

# %%
task.replace(marking="cue").sample(stream, 0, 3, 24)

# %%
task.replace(marking="position").sample(stream, 0, 3, 24)

# %% [markdown]
# ## What the task declares
#
# Everything is in closed form: chance and Bayes levels, the distribution of the places, and the joint
# distribution of each position and the label.

# %%
truth = task.truth(24)
truth

# %%
from IPython.display import HTML

from sparsity_lab.analysis import draw_curve, looks_of, name_lines, styled, titled
from sparsity_lab.analysis.style import figure_image, new_axes

laws = [Recent(width=8), Window(width=8), PowerLaw(alpha=1.5)]
shares = {str(law): Planted(k=3, locality=law).truth(48).position_law.order_pmf().sum(axis=0) for law in laws}
looks = looks_of(list(shares))
with styled():
    ax = new_axes(7, 3)
    for name, share in shares.items():
        draw_curve(ax, range(len(share)), share, looks[name], name, drawstyle="steps-mid", marker="")
    ax.set_xlabel("position in the sequence (tokens)")
    ax.set_ylabel("share of sequences with\na planted token there")
    name_lines(ax)
near = ", ".join(f"{share[-9:].sum() / share.sum():.0%} with {name}" for name, share in shares.items())
finding = f"Planted tokens among the last eight of 48: {near}"
HTML(figure_image(titled(ax.figure, finding), finding))

# %% [markdown]
# ## The certificate
#
# The certificate draws sequences and tests everything that the task declares. It also recomputes the rule
# independently. The family-wise false-alarm rate is one in a million.

# %%
certificate = certify(task, sequences=SEQUENCES, lengths=(24,))
certificate

# %% [markdown]
# A test that cannot fail proves nothing. This task makes one false statement: it declares no noise, but replaces
# one label in fifty.

# %%
import torch


class Liar(Planted):
    def sample(self, stream, start, count, length):
        batch = super().sample(stream, start, count, length)
        lies = (torch.arange(start, start + count) % 50) == 0
        batch.targets[lies, -1] = 1 - batch.targets[lies, -1]
        return batch


certify(Liar(k=3, locality=Recent(width=8)), sequences=SEQUENCES, lengths=(24,)).failed_checks

# %% [markdown]
# ## Chance and Bayes
#
# With noise the optimum is below 1. Every accuracy in the lab is shown between chance (0) and Bayes (1).

# %%
noisy = Planted(k=2, rule=SumMod(m=3), planted_vocab=3, noise=0.2)
declared = noisy.truth(24)
print(f"accuracy: chance {declared.chance_accuracy:.3f}, Bayes {declared.bayes_accuracy:.3f}")

# %% [markdown]
# You can compare a model with the exact Bayes predictor, target by target:

# %%
sequences = noisy.sample(stream, 0, 2000, 24)
best = noisy.log_posterior(sequences).argmax(dim=1)
right = (best == sequences.targets[sequences.scored]).float().mean()
print(f"accuracy of the Bayes predictor on 2000 sequences: {right:.3f}")
