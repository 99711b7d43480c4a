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
# # 07 Adaptive sparse attention and its audit
#
# This notebook takes less than a minute on two idle cores.
#
# A row scores blocks of earlier keys by their summaries, and attends exactly to the blocks that it selects. The
# audit says how much of the dense attention this keeps, and whether the mechanism knows when it keeps too little.

# %%
import os

import torch
from IPython.display import HTML
from matplotlib.figure import Figure

from sparsity_lab.analysis import retained_mass, styled, titled
from sparsity_lab.analysis.style import figure_image
from sparsity_lab.generators import Planted, Recent
from sparsity_lab.kernels import AdaptiveSparse, AuxiliaryOutputs, SlidingWindow, Softmax
from sparsity_lab.models import Decoder, NoPE
from sparsity_lab.sweeps import training_progress
from sparsity_lab.training import Evaluation, RunConfig, Training, train

SMOKE = bool(os.environ.get("SPARSITY_LAB_SMOKE"))  # the tests run every notebook in a smaller size
STEPS, SEQUENCES, LENGTHS = (2, 16, (24, 48)) if SMOKE else (300, 512, (24, 48, 96, 192))

# %% [markdown]
# ## What a row sees
#
# The figure shows the weights of one head on random rows, with a few keys similar to the last query: softmax, and
# the blocks that remain.

# %%
generator = torch.Generator().manual_seed(0)
q, k, v = torch.randn(3, 1, 1, 96, 16, generator=generator).unbind()
k[:, :, [20, 21, 50]] += q[:, :, -1:]
sparse = AdaptiveSparse(block_size=8, n_local=1, k_free=3)
kept = {}
with styled():
    figure = Figure(figsize=(7.4, 3.8), layout="constrained")
    for place, kernel in enumerate((Softmax(), sparse)):
        params = kernel.build(1, 16, seed=0)
        weights = kernel.weights(q, k, training=False, params=params)[0, 0].detach()
        kept[kernel.kind] = int((weights[-1] > 0).sum())
        ax = figure.add_subplot(1, 2, place + 1)
        ax.imshow(weights / weights.amax(dim=1, keepdim=True), cmap="cividis")
        ax.set_title(kernel.kind, fontsize=10)
        ax.set_xlabel("key (position)")
        ax.set_ylabel("query (position)")
finding = f"Keys that the last row sees: {', '.join(f'{name} {count}' for name, count in kept.items())}"
HTML(figure_image(titled(figure, finding), finding))

# %% [markdown]
# ## Without training: the same weights, sparse at inference
#
# A dense model is trained on short sequences. Then its mechanism is exchanged.

# %%
config = RunConfig(
    task=Planted(k=2, locality=Recent(width=16)),
    model=Decoder(num_layers=1, position=NoPE()),
    training=Training(steps=STEPS),
    evaluation=Evaluation(lengths=LENGTHS, sequences=SEQUENCES),
)
run = train(config, "runs/07", progress=training_progress())
run

# %%
sparse = AdaptiveSparse(block_size=8, n_local=2, k_free=2, learn_beta=False)  # nothing was trained for it
variants = {
    "adaptive": run.with_kernel(sparse),
    "window of the same budget": run.with_kernel(SlidingWindow(width=32, sinks=8)),
}
columns = ["length", "normalized_accuracy"]
table = run.evaluation.select(columns)
for name, variant in variants.items():
    table = table.join(variant.evaluate().select(columns), on="length", suffix=f", {name}")
table

# %% [markdown]
# ## The audit
#
# `retained_mass` compares the keys that a mechanism sees with dense softmax on the same queries and keys. It
# reports the retained mass, the share of rows below p, and the budget. For the adaptive mechanism it adds the
# mechanism's own estimate and its *silent misses*: rows below p that it estimates above p.

# %%
retained_mass(variants, lengths=LENGTHS, p=0.9, block_size=8)

# %% [markdown]
# ## Escalation
#
# With `rho_min`, a row that estimates its retained mass to be too low takes more blocks, or all of them.
# `auxiliary` collects the audit of sampled rows.

# %%
escalating = AdaptiveSparse(block_size=8, n_local=1, k_free=1, rho_min=0.8)
auxiliary = AuxiliaryOutputs()
escalating.attend(q, k, v, training=False, params=escalating.build(1, 16, seed=0), auxiliary=auxiliary)
auxiliary.records[0]
