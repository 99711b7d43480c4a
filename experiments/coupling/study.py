"""``coupling``: do predicted position IDs carry tasks as far as given ones?"""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import BETTER, CLAIMS, CLOSE
from .page import QUESTION, figure, finding

__all__ = ["study"]

study = Study(
    name="coupling",
    title="Predicted position IDs compared with given ones and none, on five tasks at four times the trained length",
    question=" ".join(QUESTION.split()),
    arms=arms,
    claims=CLAIMS,
    primary=(CLOSE, BETTER),
    figure=figure,
    finding=finding,
    columns=("free_exact_match", "exact_match", "id_accuracy"),
)
