"""``adaptive_budget``: a trained model is switched to selected blocks, at lengths that it never saw."""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import ABOVE_RANDOM, CLAIMS, FASTER, KEPT
from .measure import measure
from .page import QUESTION, figure, finding, tables

__all__ = ["study"]

study = Study(
    name="adaptive_budget",
    title="Adaptive sparse attention: recall at 2048 tokens and more with a quarter of the pairs, and time at 8192",
    question=" ".join(QUESTION.split()),
    arms=arms,
    claims=CLAIMS,
    primary=(KEPT, ABOVE_RANDOM, FASTER),
    figure=figure,
    finding=finding,
    columns=("accuracy", "loss"),
    measure=measure,
    tables=tables,
)
