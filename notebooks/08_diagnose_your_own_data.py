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
# Estimate whether models will length-generalize on your data. `diagnose` measures how many tokens a prediction
# needs and how far away they are. It trains a small model on short windows, and measures how much of its gain
# remains on long ones, under two position schemes. First we use data with a known answer, then text.

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
# ## Your own files
#
# `diagnose` reads `.npy` arrays of integers, `.txt` files with lines of whole numbers, and any other file as
# bytes. Here it reads the source of this package, which everyone has who runs this.

# %%
files = sorted(Path(sparsity_lab.__file__).parent.glob("generators/*.py"))
data = read_tokens(files)
data.forms[:3]

# %%
if not SMOKE:
    text = diagnose(data, length=LENGTH, steps=STEPS)
    print(text.verdict)
    for answer in text.answers:
        print(answer)

# %% [markdown]
# On the command line: `sparsity-lab diagnose FILE ...`. The documentation under Analysis lists its limits.
# Without labels, dependencies longer than the trained length stay invisible. Only one seed of one small model is
# used.
