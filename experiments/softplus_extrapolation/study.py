"""``softplus_extrapolation``: does re-weighted softplus attention keep its loss far beyond the trained length?

Softplus attention with re-weighting (arXiv 2501.13428) at a scale of two cores, taken apart: norms of queries and
keys, log n, softplus, re-weighting, and the l1 norm.
"""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import CLAIMS
from .measure import measure
from .page import QUESTION, figure, tables

__all__ = ["study"]

study = Study(
    name="softplus_extrapolation",
    title="Softplus attention, re-weighted: what keeps the loss beyond the trained length",
    question=QUESTION,
    arms=arms,
    claims=CLAIMS,
    figure=figure,
    columns=(),
    measure=measure,
    tables=tables,
)
