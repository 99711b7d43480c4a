"""``softplus_extrapolation``: does re-weighted softplus attention keep its loss far beyond the trained length?

Softplus attention with re-weighting (arXiv 2501.13428) at a scale of two cores, taken apart: norms of queries and
keys, log n, softplus, re-weighting, and the l1 norm.
"""

from sparsity_lab.recipes.softplus_extrapolation.arms import arms
from sparsity_lab.recipes.softplus_extrapolation.claims import CLAIMS
from sparsity_lab.recipes.softplus_extrapolation.measure import measure
from sparsity_lab.recipes.softplus_extrapolation.page import NOTES, QUESTION, figure, tables
from sparsity_lab.studies import Study, recipe

__all__ = ["softplus_extrapolation"]

softplus_extrapolation = recipe(
    Study(
        name="softplus_extrapolation",
        title="Softplus attention, re-weighted: what keeps the loss beyond the trained length",
        question=QUESTION,
        arms=arms,
        claims=CLAIMS,
        figure=figure,
        columns=(),
        notes=NOTES,
        measure=measure,
        tables=tables,
    )
)
