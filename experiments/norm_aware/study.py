"""``norm_aware``: does the entropy of norm-aware attention fall with the query norm, where its power follows it?"""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import CLAIMS, PRIMARY
from .measure import measure
from .page import QUESTION, figure, finding, tables

__all__ = ["study"]

study = Study(
    name="norm_aware",
    title="Norm-aware linear attention: does entropy fall with the query norm?",
    question=" ".join(QUESTION.split()),
    arms=arms,
    claims=CLAIMS,
    primary=PRIMARY,
    figure=figure,
    finding=finding,
    columns=("loss",),
    measure=measure,
    tables=tables,
)
