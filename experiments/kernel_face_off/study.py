"""``kernel_face_off``: every registered attention mechanism on one task, with equal steps: quality, reach, cost."""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import CLAIMS
from .measure import measure
from .page import QUESTION, figure, finding, tables

__all__ = ["study"]

study = Study(
    name="kernel_face_off",
    title="Every kernel on one task: quality, reach, speed, memory",
    question=" ".join(QUESTION.split()),
    arms=arms,
    claims=CLAIMS,
    primary=("length scaling", "faster"),
    figure=figure,
    finding=finding,
    columns=("normalized_accuracy",),
    measure=measure,
    tables=tables,
)
