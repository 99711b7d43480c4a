"""``softplus_extrapolation``: does re-weighted softplus attention keep its loss far beyond the trained length?

Softplus attention with re-weighting (LSSAR, arXiv 2501.13428) on bytes of text, beside softmax, by the size of the
heads; and what the loss beyond the trained length is due to.
"""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import CLAIMS, PRIMARY
from .measure import measure
from .page import QUESTION, figure, finding, tables

__all__ = ["study"]

study = Study(
    name="softplus_extrapolation",
    title="Softplus attention, re-weighted: what keeps the loss beyond the trained length",
    question=QUESTION,
    arms=arms,
    claims=CLAIMS,
    primary=PRIMARY,
    figure=figure,
    finding=finding,
    columns=(),
    measure=measure,
    tables=tables,
)
