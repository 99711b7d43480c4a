"""``attention_anatomy``: one model for each attention mechanism, and what its attention does as sequences grow."""

from sparsity_lab.recipes.attention_anatomy.arms import arms
from sparsity_lab.recipes.attention_anatomy.claims import CLAIMS
from sparsity_lab.recipes.attention_anatomy.measure import measure
from sparsity_lab.recipes.attention_anatomy.page import NOTES, QUESTION, figure, tables
from sparsity_lab.studies.recipe import recipe
from sparsity_lab.studies.study import Study

__all__ = ["attention_anatomy"]

attention_anatomy = recipe(
    Study(
        name="attention_anatomy",
        title="What attention does as sequences grow, kernel by kernel",
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
