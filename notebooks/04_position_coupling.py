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
# # 04 Position coupling, given and predicted
#
# This notebook takes less than a minute on two idle cores.
#
# Coupled position IDs say which tokens belong together. The sources of a task may be farther and farther apart in
# places, but they are close in IDs. This can help a model beyond the trained lengths, but does not make it exact
# at every length. The task gives the IDs, or the model predicts them along with the next token. IDs in random
# order are the control.

# %%
import os

from sparsity_lab.analysis import extrapolation_curve
from sparsity_lab.generators import ParityScratchpad, Stream
from sparsity_lab.models import Decoder, Ignored, NoPE, Oracle, Predicted, Shuffled
from sparsity_lab.sweeps import Processes, Serial, Sweep, grid, run_sweep, sweep_progress
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
STEPS, SEQUENCES, LENGTHS = (2, 8, (5, 10)) if SMOKE else (500, 128, (5, 10, 15, 20, 40))
ENGINE = Serial() if SMOKE else Processes(workers=2)

# %% [markdown]
# ## The task
#
# Running parities follow the bits: r_j = x_1 + .. + x_j mod 2. Each r_j needs two tokens, r_(j-1) and x_j, and
# x_j is n + 1 places back. The IDs are below the tokens. x_j and the place where r_j is predicted have the same
# ID. Every r is scored.

# %%
task = ParityScratchpad()
task.sample(Stream(), 0, 3, 8)

# %% [markdown]
# ## Four couplings of the same model
#
# `max_id` bounds the IDs, because a learned table cannot go beyond its range. A random offset in training trains
# all rows of the table.

# %%
largest = task.largest_position_id(LENGTHS[-1])
couplings = [Ignored(), Oracle(max_id=largest), Predicted(max_id=largest), Shuffled(max_id=largest)]
base = RunConfig(
    task=task,
    model=Decoder(num_layers=1, position=NoPE(), coupling=Ignored()),
    training=Training(steps=STEPS, batch_size=32, learning_rate=2e-3, curriculum=UniformLength(low=1, high=10)),
    evaluation=Evaluation(lengths=LENGTHS, sequences=SEQUENCES),
)
results = run_sweep(
    Sweep(name="coupling", runs=grid(base, {"model.coupling": couplings})),
    "runs/04",
    ENGINE,
    progress=sweep_progress(),
)
results

# %% [markdown]
# Accuracy of single targets, given the correct previous ones:

# %%
extrapolation_curve(results, by="model.coupling", measure="accuracy", only_learned=False)

# %% [markdown]
# ## Free-running
#
# The real test is the whole answer from the prompt alone: `free_exact_match`. The model with predicted IDs feeds
# back its own tokens with its own IDs. `id_accuracy` says how often those are right.

# %%
columns = ["model.coupling", "length", "accuracy", "exact_match", "free_exact_match", "id_accuracy"]
results.frame("evaluation").select(columns)

# %% [markdown]
# One seed and a few hundred steps show the method. They are not a result. The study `experiments/coupling` has five
# tasks, seeds, and rules that are fixed before its runs. This command runs it:
#
#     sparsity-lab decide experiments/coupling --budget 160
