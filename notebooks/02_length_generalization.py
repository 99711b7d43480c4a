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
# Small decoders are trained on lengths 8 to 24 and tested up to 192. How far do they extrapolate? Two things
# vary: the number k of tokens that decide the answer, and their places.

# %%
import os

from sparsity_lab.analysis import drop, extrapolation_curve, heat_map
from sparsity_lab.generators import Anchored, Majority, Planted, Recent, Uniform
from sparsity_lab.models import Decoder, RoPE
from sparsity_lab.sweeps import Processes, Serial, Sweep, grid, run_sweep, sweep_progress
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
STEPS, SEEDS, SEQUENCES = (2, [0], 16) if SMOKE else (200, [0, 1], 512)
ENGINE = Serial() if SMOKE else Processes(workers=2)

# %% [markdown]
# ## k: planted tokens in an alphabet of their own
#
# A grid is a list of runs. Every run has an id, a hash of all its settings. If you run the cell again, nothing is
# trained again.

# %%
base = RunConfig(
    task=Planted(k=1),
    model=Decoder(position=RoPE()),
    training=Training(steps=STEPS, curriculum=UniformLength(low=8, high=24)),
    evaluation=Evaluation(lengths=(16, 24, 48, 96, 192), sequences=SEQUENCES),
)
by_k = Sweep(name="by k", runs=grid(base, {"task.k": [1, 2], "seed": SEEDS}))
results = run_sweep(by_k, "runs/02_k", ENGINE, progress=sweep_progress())
results

# %%
extrapolation_curve(results, by="task.k")

# %% [markdown]
# Runs that never learned at the trained lengths are counted but not averaged in. Otherwise a curve of failures
# would look like a curve that falls.
#
# ## Locality: the same places in every sequence
#
# With `marking="position"` the k places are fixed. They are near the query (`Recent`), or near the start
# (`Anchored`), which is far from the query in a long sequence.

# %%
placed = base.replace(
    task=Planted(marking="position", rule=Majority(), reference_length=16),
    training=base.training.replace(curriculum=UniformLength(low=16, high=24)),
)
laws = [Recent(width=8), Uniform(), Anchored(width=8)]
by_law = Sweep(name="by locality", runs=grid(placed, {"task.locality": laws, "seed": SEEDS[:1]}))
results = run_sweep(by_law, "runs/02_locality", ENGINE, progress=sweep_progress())
extrapolation_curve(results, by="task.locality")

# %% [markdown]
# The same as numbers: the loss of each arm between the longest trained length and four times that length.

# %%
drop(results, by="task.locality", factor=4)

# %%
heat_map(results, rows="task.k", columns="task.locality", factor=4)

# %% [markdown]
# All data are in one polars frame, with every setting as a column:

# %%
results.frame("evaluation").select("task.locality", "data_seed", "length", "accuracy", "normalized_accuracy").head(6)

# %% [markdown]
# One or two seeds and two hundred steps show the method. They are not a result. The studies under Results have
# more seeds, larger sizes, and rules that were fixed before the runs.
