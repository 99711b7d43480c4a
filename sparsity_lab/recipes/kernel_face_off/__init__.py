"""``kernel_face_off``: every registered attention mechanism on one task, with equal steps: quality, reach, cost."""

from sparsity_lab.recipes.kernel_face_off.arms import arms
from sparsity_lab.recipes.kernel_face_off.claims import CLAIMS
from sparsity_lab.recipes.kernel_face_off.measure import measure
from sparsity_lab.recipes.kernel_face_off.page import NOTES, QUESTION, figure, tables
from sparsity_lab.studies.recipe import recipe
from sparsity_lab.studies.study import Study

__all__ = ["kernel_face_off"]

kernel_face_off = recipe(
    Study(
        name="kernel_face_off",
        title="Every kernel on one task: quality, reach, speed, memory",
        question=" ".join(QUESTION.split()),
        arms=arms,
        claims=CLAIMS,
        figure=figure,
        columns=("normalized_accuracy",),
        notes=NOTES,
        measure=measure,
        tables=tables,
    )
)
