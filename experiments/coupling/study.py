"""``coupling``: do coupled position IDs carry a task past its trained lengths, given or predicted?"""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import CLAIMS
from .measure import measure
from .page import QUESTION, figure, tables

__all__ = ["study"]

study = Study(
    name="coupling",
    title="Coupled position IDs: what carries them past the trained lengths, and predicting them",
    question=" ".join(QUESTION.split()),
    arms=arms,
    claims=CLAIMS,
    figure=figure,
    columns=("free_exact_match", "exact_match", "id_accuracy", "accuracy", "offset_agreement"),
    measure=measure,
    tables=tables,
)
