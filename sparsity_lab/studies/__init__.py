"""Studies: what is run to decide claims, the rules that decide them, and result pages rendered from what was found.

A study is a file that is named by its path: ``load_study("experiments/k_locality")``.
"""

from typing import TYPE_CHECKING

from sparsity_lab.settings import lazy

if TYPE_CHECKING:
    from sparsity_lab.studies.arms import over_seeds as over_seeds
    from sparsity_lab.studies.claim import Claim as Claim
    from sparsity_lab.studies.claim import Decision as Decision
    from sparsity_lab.studies.claim import Verdict as Verdict
    from sparsity_lab.studies.claim import judged as judged
    from sparsity_lab.studies.decisions import ABOVE_ZERO as ABOVE_ZERO
    from sparsity_lab.studies.decisions import advantages as advantages
    from sparsity_lab.studies.decisions import decide_difference as decide_difference
    from sparsity_lab.studies.decisions import decide_slope as decide_slope
    from sparsity_lab.studies.decisions import decided as decided
    from sparsity_lab.studies.decisions import difference_claim as difference_claim
    from sparsity_lab.studies.decisions import growths as growths
    from sparsity_lab.studies.decisions import held_above as held_above
    from sparsity_lab.studies.decisions import means_listed as means_listed
    from sparsity_lab.studies.decisions import rank_correlations as rank_correlations
    from sparsity_lab.studies.decisions import shares_of_way as shares_of_way
    from sparsity_lab.studies.decisions import slope_claim as slope_claim
    from sparsity_lab.studies.decisions import undecided as undecided
    from sparsity_lab.studies.demo import demo as demo
    from sparsity_lab.studies.drops import differences_at as differences_at
    from sparsity_lab.studies.drops import learned_words as learned_words
    from sparsity_lab.studies.drops import mean_value as mean_value
    from sparsity_lab.studies.drops import numbers_at as numbers_at
    from sparsity_lab.studies.drops import slopes as slopes
    from sparsity_lab.studies.drops import values_at as values_at
    from sparsity_lab.studies.evidence import Evidence as Evidence
    from sparsity_lab.studies.figures import draw_by_length as draw_by_length
    from sparsity_lab.studies.figures import draw_interval as draw_interval
    from sparsity_lab.studies.figures import legend_below as legend_below
    from sparsity_lab.studies.figures import levels as levels
    from sparsity_lab.studies.figures import line_style as line_style
    from sparsity_lab.studies.figures import looks_of as looks_of
    from sparsity_lab.studies.figures import panels as panels
    from sparsity_lab.studies.figures import same_height as same_height
    from sparsity_lab.studies.files import check_results as check_results
    from sparsity_lab.studies.files import relabel_results as relabel_results
    from sparsity_lab.studies.files import render_results as render_results
    from sparsity_lab.studies.files import write_result as write_result
    from sparsity_lab.studies.loading import load_study as load_study
    from sparsity_lab.studies.loading import results_folder as results_folder
    from sparsity_lab.studies.loading import studies_in as studies_in
    from sparsity_lab.studies.study import SIZES as SIZES
    from sparsity_lab.studies.study import Size as Size
    from sparsity_lab.studies.study import Study as Study

lazy.load_on_first_use(__name__)
