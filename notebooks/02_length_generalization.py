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
# # 02 Length generalization over k and locality
#
# This notebook takes two to three minutes on two idle cores.
#
# Small decoders are trained on lengths 8 to 24 and tested up to 192. How far do they extrapolate? Two claims are
# decided: what more relevant tokens (k) cost, and what coupled position IDs give back. Two more things are only
# drawn: the place of the tokens, and IDs that the model predicts. Their arms have three seeds, which decide nothing.

# %%
import os

import polars as pl

from sparsity_lab.analysis import drop, explore, extrapolation_curve
from sparsity_lab.studies import demo, verdict_frame
from sparsity_lab.studies.demo import CONDITIONS, MARKED
from sparsity_lab.sweeps import Processes, Serial, run_sweep, sweep_progress

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
SIZE = "smoke" if SMOKE else "small"
ENGINE = Serial() if SMOKE else Processes(workers=2)

# %% [markdown]
# The runs are those of `sparsity-lab demo`. A study names its arms; each arm gives the run of any seed. Every run
# has an id, a hash of all its settings. If you run the cell again, nothing is trained again.

# %%
results = run_sweep(demo.sweep(SIZE), "runs/02", ENGINE, progress=sweep_progress())
results

# %% [markdown]
# ## What is decided
#
# Each claim gets a number from every seed, and an e-value says how strongly these numbers speak. Seven seeds that
# agree decide. The seeds of the demo are the same for everyone, so this shows how a claim is decided. A study of
# your own fixes its rules before its runs.

# %%
evidence = demo.evidence(results, SIZE)
pl.Config.set_fmt_str_lengths(160)
verdict_frame(demo, evidence)

# %% [markdown]
# ## k: marked tokens
#
# One model learns the parity of one, two and three marked tokens, and is tested on each k alone.

# %%
rows = evidence.rows.drop("task", "seconds", "parent_seconds")
by_k = rows.filter(pl.col("arm") == MARKED, pl.col("condition").is_in(list(CONDITIONS)))
extrapolation_curve(by_k, by="condition")

# %% [markdown]
# Runs that never learned at the trained lengths are counted but not averaged in. Otherwise a curve of failures
# would look like a curve that falls.
#
# ## Coupled IDs and locality: three fixed places
#
# The places are near the query, or near the start, which is far from the query in a long sequence. Coupled IDs name
# the places, given or predicted (PPC).

# %%
placed = rows.filter(pl.col("arm") != MARKED)
extrapolation_curve(placed, by="arm")

# %% [markdown]
# The same as numbers: the loss of each arm between the longest trained length and four times that length.

# %%
drop(placed, by="arm", factor=4)

# %% [markdown]
# ## All of it by menus
#
# `explore` makes one page of all runs. Menus choose k, place, seed and length; curves, a heat map, attention maps and
# sample sequences follow. It has at most 3 MB. This one is smaller, so it lacks some attention maps, and its end says
# which. A notebook that is not trusted shows the figure alone.

# %%
explore(results, megabytes=0.4)

# %% [markdown]
# All data are in one polars frame, with every setting as a column:

# %%
results.frame("evaluation").select("condition", "data_seed", "length", "accuracy", "normalized_accuracy").head(6)

# %% [markdown]
# These models are small. The studies under Results have more seeds, larger sizes, and more conditions.
