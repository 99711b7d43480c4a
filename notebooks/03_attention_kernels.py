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
# Softmax attention spreads as sequences grow. Softplus attention with re-weighting (LSSAR) scales scores with
# log n and cuts off what lies below the mean. Both are trained on the same sequences; then we look at
# accuracy, at entropy, and at what the planted tokens get. Which of the two carries further is for the curve
# to say; with two seeds and three hundred steps it says little.

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
# ## What the heads look at
#
# One sequence, at the largest trained length and at four times that. The sources of the answer are framed, in the
# row of the query, which is the last one.

# %%
attention_map(models["Softmax()"])

# %% [markdown]
# ## Entropy
#
# H / ln n of the rows that answer: 1 is uniform attention. Weights come a tile of rows at a time; no map of
# all rows by all keys is ever made.

# %%
attention_entropy(models, rows="scored", sequences=32)

# %% [markdown]
# ## What the planted tokens get
#
# `uniform` is k / n. A low mass need not mean failure: an earlier layer may have moved the information. Here
# there is one layer.

# %%
planted_mass(models, sequences=32)

# %% [markdown]
# ## Dilution
#
# If the sources' scores stand out by G, a softmax row gives them k e^G / (k e^G + n - k). What is lost down
# to that is dilution, what is lost below it went to wrong places.

# %%
dilution(models["Softmax()"], sequences=32)

# %% [markdown]
# ## The same weights under another mechanism
#
# `with_kernel` exchanges the mechanism of a trained model, for instance to re-weight at test time only.

# %%
softmax = models["Softmax()"]
swapped = softmax.with_kernel(LSSAR(p=3))
columns = ["length", "normalized_accuracy", "normalized_accuracy_se"]
softmax.evaluation.select(columns).join(swapped.evaluate().select(columns), on="length", suffix=", re-weighted")
