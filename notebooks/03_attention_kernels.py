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
# # 03 Attention kernels and length extrapolation
#
# This notebook takes less than a minute on two idle cores.
#
# Softmax attention spreads out as sequences grow. Softplus attention with re-weighting (LSSAR) scales scores with
# log n and removes weights below the mean. Both are trained on the same sequences. We compare their accuracy,
# their entropy, and their attention to the planted tokens. Two seeds and three hundred steps cannot show which
# one extrapolates farther.

# %%
import os

from sparsity_lab.analysis import attention_entropy, attention_map, dilution, extrapolation_curve, planted_mass
from sparsity_lab.generators import Planted
from sparsity_lab.kernels import LSSAR, Softmax
from sparsity_lab.models import Decoder, RoPE
from sparsity_lab.sweeps import Processes, Serial, Sweep, grid, run_sweep, sweep_progress
from sparsity_lab.training import Evaluation, Run, RunConfig, Training

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
STEPS, SEEDS, SEQUENCES, LENGTHS = (2, [0], 16, (8, 24, 48)) if SMOKE else (300, [0, 1], 512, (8, 24, 48, 96, 192))
ENGINE = Serial() if SMOKE else Processes(workers=2)

# %%
base = RunConfig(
    task=Planted(k=2),
    model=Decoder(num_layers=1, position=RoPE()),
    training=Training(steps=STEPS),
    evaluation=Evaluation(lengths=LENGTHS, sequences=SEQUENCES),
)
kernels = [Softmax(), LSSAR(p=3)]
results = run_sweep(
    Sweep(name="kernels", runs=grid(base, {"model.kernel": kernels, "seed": SEEDS})),
    "runs/03",
    ENGINE,
    progress=sweep_progress(),
)
extrapolation_curve(results, by="model.kernel")

# %%
models = {str(run.model.kernel): Run.load(results.folder / run.id) for run in results.runs[:: len(SEEDS)]}

# %% [markdown]
# ## What the heads attend to
#
# This is one sequence at the largest trained length and at four times that length. The sources of the answer are
# framed, in the row of the query, which is the last one.

# %%
attention_map(models["Softmax()"])

# %% [markdown]
# ## Entropy
#
# H / ln n of the rows that answer: 1 is uniform attention. Weights are computed for a tile of rows at a time. A
# map of all rows by all keys is never made.

# %%
attention_entropy(models, rows="scored", sequences=32)

# %% [markdown]
# ## Attention to the planted tokens
#
# `uniform` is k / n. A low mass need not mean failure, because an earlier layer may have moved the information.
# Here there is only one layer.

# %%
planted_mass(models, sequences=32)

# %% [markdown]
# ## Dilution
#
# If the scores of the sources are higher by G, a softmax row gives them k e^G / (k e^G + n - k). The loss down to
# this value is dilution. Any further loss went to wrong places.

# %%
dilution(models["Softmax()"], sequences=32)

# %% [markdown]
# ## The same weights under another mechanism
#
# `with_kernel` exchanges the mechanism of a trained model, for example to re-weight only at test time.

# %%
softmax = models["Softmax()"]
swapped = softmax.with_kernel(LSSAR(p=3))
columns = ["length", "normalized_accuracy", "normalized_accuracy_se"]
softmax.evaluation.select(columns).join(swapped.evaluate().select(columns), on="length", suffix=", re-weighted")
