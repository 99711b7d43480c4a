"""Studies: recipes that test claims, and the result pages rendered from what they found."""

from sparsity_lab.studies.claim import Claim as Claim
from sparsity_lab.studies.claim import Decision as Decision
from sparsity_lab.studies.claim import Verdict as Verdict
from sparsity_lab.studies.claim import judged as judged
from sparsity_lab.studies.claim import level as level
from sparsity_lab.studies.claim import paired as paired
from sparsity_lab.studies.evidence import Evidence as Evidence
from sparsity_lab.studies.files import check_results as check_results
from sparsity_lab.studies.files import render_results as render_results
from sparsity_lab.studies.files import write_result as write_result
from sparsity_lab.studies.recipe import SIZES as SIZES
from sparsity_lab.studies.recipe import Recipe as Recipe
from sparsity_lab.studies.recipe import Size as Size
from sparsity_lab.studies.recipe import recipe as recipe
from sparsity_lab.studies.study import Study as Study
