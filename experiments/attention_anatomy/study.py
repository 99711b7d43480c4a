"""``attention_anatomy``: one model for each attention mechanism, and what its attention does as sequences grow."""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import CLAIMS
from .measure import measure
from .page import QUESTION, figure, finding, tables

__all__ = ["study"]

study = Study(
    name="attention_anatomy",
    title="What attention does as sequences grow, kernel by kernel",
    question=" ".join(QUESTION.split()),
    arms=arms,
    claims=CLAIMS,
    primary=("mass kept", "entropy of length scaling", "reach of length scaling", "linear attention is flat"),
    figure=figure,
    finding=finding,
    columns=("normalized_accuracy",),
    measure=measure,
    tables=tables,
)
