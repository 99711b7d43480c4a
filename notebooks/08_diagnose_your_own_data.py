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
# Is length generalization to be expected on data of yours? `diagnose` asks how many tokens a prediction needs
# and how far away they are, and trains a small model on short windows to see how much it keeps on long ones,
# under two position schemes. Here on data whose answer is known, then on text.

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
# In such a chain the tokens six and twelve places back stand in for each other, so that a model may use
# either or both.

# %%
known = SparseMarkov(k=1, lag_seed=1)
tokens = known.sample(Stream(seed=0, name="diagnose"), 0, 40, 400).tokens.numpy()
found = diagnose(list(tokens), length=LENGTH, steps=STEPS)
found

# %% [markdown]
# The verdict rests on questions with fixed thresholds; each is answered yes or no only if its whole interval
# is on one side.

# %%
for answer in found.answers:
    print(answer)

# %% [markdown]
# ## Your own files
#
# `.npy` arrays of integers, `.txt` files with lines of whole numbers, or any other file, read as bytes. Here
# the source of this package, a corpus that everyone has who runs this.

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
# On the command line: `sparsity-lab diagnose FILE ...`. What it does not tell is in the documentation under
# Analysis: dependencies longer than the trained length stay unseen without labels, and one seed of one small
# model is used.
