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
# # 08 Diagnose your own data
#
# This notebook takes one to two minutes on two idle cores.
#
# Estimate whether models will length-generalize on your data. `diagnose` first looks at the data without a model, at
# all distances. Then it trains a small model on short windows, under two position schemes, and measures how much of
# the gain remains on long ones. It asks the model how many tokens a prediction needs and how far away they are. First
# we use data with a known answer, then text.

# %%
import os
from pathlib import Path

import sparsity_lab
from sparsity_lab.analysis import diagnose, read_tokens
from sparsity_lab.generators import SparseMarkov, Stream

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
STEPS, LENGTH = (2, 12) if SMOKE else (200, 24)

# %% [markdown]
# ## Known data: every token depends on one token six places back
#
# In such a chain the tokens six and twelve places back can replace each other. A model may use either or both.

# %%
known = SparseMarkov(k=1, lag_seed=1)
tokens = known.sample(Stream(seed=0, name="diagnose"), 0, 40, 400).tokens.numpy()
found = diagnose(list(tokens), length=LENGTH, steps=STEPS)
found

# %% [markdown]
# The verdict rests on questions with fixed thresholds. Each is answered yes or no only if its whole interval is
# on one side.

# %%
for answer in found.answers:
    print(answer)

# %% [markdown]
# What one token at a distance, or a repeat of the last tokens, tells about the next token. No model is needed for
# that, so it is also measured beyond the trained length.

# %%
found.look

# %% [markdown]
# The horizon says how far was looked, what lies beyond, and what to do.

# %%
for line in found.horizon():
    print(line)

# %% [markdown]
# ## Your own files
#
# `diagnose` reads text by characters, lines of whole numbers, arrays of tokens (`.npy`, `.npz`, `.bin`), JSON lines
# and parquet, and says how it read each file. Here it reads the source of this package.

# %%
files = sorted(Path(sparsity_lab.__file__).parent.glob("generators/*.py"))
data = read_tokens(files)
data.forms[:3]

# %%
if not SMOKE:
    text = diagnose(data, length=LENGTH, steps=STEPS)
    print(text)

# %% [markdown]
# On the command line: `sparsity-lab diagnose FILE ...`. The documentation under Analysis lists its limits.
# Without labels, `k` and the distances are those inside the trained length, of one seed of one small model.
