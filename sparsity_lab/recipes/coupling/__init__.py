"""``coupling``: do coupled position IDs carry a task past its trained lengths, given or predicted?"""

from sparsity_lab.recipes.coupling.arms import arms
from sparsity_lab.recipes.coupling.claims import CLAIMS
from sparsity_lab.recipes.coupling.measure import measure
from sparsity_lab.recipes.coupling.page import NOTES, QUESTION, figure, tables
from sparsity_lab.studies.recipe import recipe
from sparsity_lab.studies.study import Study

__all__ = ["coupling"]

coupling = recipe(
    Study(
        name="coupling",
        title="Coupled position IDs: what carries them past the trained lengths, and predicting them",
        question=" ".join(QUESTION.split()),
        arms=arms,
        claims=CLAIMS,
        figure=figure,
        columns=("free_exact_match", "exact_match", "id_accuracy", "accuracy", "offset_agreement"),
        measure=measure,
        tables=tables,
        notes=NOTES,
    )
)
