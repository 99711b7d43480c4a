"""``norm_aware``: does a power that follows the query's norm make linear attention spiky, better, and still cheap?"""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import CLAIMS
from .measure import measure
from .page import QUESTION, figure, tables

__all__ = ["study"]

study = Study(
    name="norm_aware",
    title="Norm-aware linear attention: spiky, better, cheap?",
    question=" ".join(QUESTION.split()),
    arms=arms,
    claims=CLAIMS,
    figure=figure,
    columns=("loss",),
    measure=measure,
    tables=tables,
)
