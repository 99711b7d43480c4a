"""``adaptive_budget``: quality against the number of keys that rows see, and the retrofit of a trained model.

A dense model is trained, then its attention is exchanged: for blocks that a selector chooses, before and after the
selector is trained on the frozen model, and for a window, random blocks and the best blocks at the same budget.
"""

from sparsity_lab.studies import Study

from .arms import MIDDLE, arms
from .claims import CLAIMS
from .measure import measure
from .page import figure, tables

__all__ = ["study"]

study = Study(
    name="adaptive_budget",
    title="Adaptive sparse attention: quality against budget, and the retrofit of a trained model",
    question=(
        "Small dense decoders learn associative recall, the passkey and text. Then their attention is "
        "exchanged, without another step of their own weights: each row sees the blocks that a selector "
        "chooses from summaries, the best k or those up to a share of the mass, with the selector as it "
        "begins and trained on the frozen model; or, at the same budget, a window with sinks, random blocks, "
        "or the blocks that an oracle knows to have the most mass. All layers at once, and one by one. Two "
        "more models learn text with selection from the start. "
        f"Most claims are about {MIDDLE} selected blocks."
    ),
    arms=arms,
    claims=CLAIMS,
    figure=figure,
    columns=("accuracy", "loss"),
    measure=measure,
    tables=tables,
)
