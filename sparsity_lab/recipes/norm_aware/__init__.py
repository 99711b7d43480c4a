"""``norm_aware``: does a power that follows the query's norm make linear attention spiky, better, and still cheap?"""

from sparsity_lab.recipes.norm_aware.arms import arms
from sparsity_lab.recipes.norm_aware.claims import CLAIMS
from sparsity_lab.recipes.norm_aware.measure import measure
from sparsity_lab.recipes.norm_aware.page import NOTES, QUESTION, figure, tables
from sparsity_lab.studies.recipe import recipe
from sparsity_lab.studies.study import Study

__all__ = ["norm_aware"]

norm_aware = recipe(
    Study(
        name="norm_aware",
        title="Norm-aware linear attention: spiky, better, cheap?",
        question=" ".join(QUESTION.split()),
        arms=arms,
        claims=CLAIMS,
        figure=figure,
        columns=("loss",),
        notes=NOTES,
        measure=measure,
        tables=tables,
    )
)
