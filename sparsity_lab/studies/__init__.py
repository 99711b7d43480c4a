"""Studies: the runs that decide claims, the rules of the decisions, and result pages rendered from the results.

A study is a file that is loaded by its path: ``load_study("experiments/k_locality")``.
"""

from typing import TYPE_CHECKING

from sparsity_lab.settings import lazy

if TYPE_CHECKING:
    from sparsity_lab.studies.arms import Arm as Arm
    from sparsity_lab.studies.arms import seeded as seeded
    from sparsity_lab.studies.claim import Claim as Claim
    from sparsity_lab.studies.claim import Decision as Decision
    from sparsity_lab.studies.claim import Outcomes as Outcomes
    from sparsity_lab.studies.claim import Verdict as Verdict
    from sparsity_lab.studies.criteria import BoundedMean as BoundedMean
    from sparsity_lab.studies.criteria import Criterion as Criterion
    from sparsity_lab.studies.criteria import MostSeeds as MostSeeds
    from sparsity_lab.studies.criteria import NormalMean as NormalMean
    from sparsity_lab.studies.decide import Review as Review
    from sparsity_lab.studies.decide import decide as decide
    from sparsity_lab.studies.demo import demo as demo
    from sparsity_lab.studies.drops import differences_at as differences_at
    from sparsity_lab.studies.drops import learned_words as learned_words
    from sparsity_lab.studies.drops import means_at as means_at
    from sparsity_lab.studies.drops import numbers_at as numbers_at
    from sparsity_lab.studies.drops import slopes as slopes
    from sparsity_lab.studies.drops import values_at as values_at
    from sparsity_lab.studies.evidence import Evidence as Evidence
    from sparsity_lab.studies.figures import draw_by_length as draw_by_length
    from sparsity_lab.studies.figures import draw_seeds as draw_seeds
    from sparsity_lab.studies.figures import how_far as how_far
    from sparsity_lab.studies.figures import levels as levels
    from sparsity_lab.studies.figures import means_by as means_by
    from sparsity_lab.studies.figures import panels as panels
    from sparsity_lab.studies.figures import same_height as same_height
    from sparsity_lab.studies.files import check_results as check_results
    from sparsity_lab.studies.files import relabel_results as relabel_results
    from sparsity_lab.studies.files import render_results as render_results
    from sparsity_lab.studies.files import write_result as write_result
    from sparsity_lab.studies.judge import judge as judge
    from sparsity_lab.studies.loading import load_study as load_study
    from sparsity_lab.studies.loading import results_folder as results_folder
    from sparsity_lab.studies.loading import studies_in as studies_in
    from sparsity_lab.studies.rules import fix_rules as fix_rules
    from sparsity_lab.studies.shared_claims import MATTERS as MATTERS
    from sparsity_lab.studies.shared_claims import RISE as RISE
    from sparsity_lab.studies.shared_claims import difference_claim as difference_claim
    from sparsity_lab.studies.shared_claims import growths as growths
    from sparsity_lab.studies.shared_claims import means_listed as means_listed
    from sparsity_lab.studies.shared_claims import rank_correlations as rank_correlations
    from sparsity_lab.studies.shared_claims import shares_of_way as shares_of_way
    from sparsity_lab.studies.shared_claims import slope_claim as slope_claim
    from sparsity_lab.studies.study import SIZES as SIZES
    from sparsity_lab.studies.study import Size as Size
    from sparsity_lab.studies.study import Study as Study
    from sparsity_lab.studies.verdicts import verdict_frame as verdict_frame
    from sparsity_lab.studies.verdicts import verdict_section as verdict_section

lazy.load_on_first_use(__name__)
