"""Analysis: extrapolation curves, drops, heat maps, what attention does, sample sequences, the report of a sweep."""

from typing import TYPE_CHECKING

from sparsity_lab.settings import lazy

if TYPE_CHECKING:
    from sparsity_lab.analysis.arm_table import arm_table as arm_table
    from sparsity_lab.analysis.attention.accounting import extrapolation_accounting as extrapolation_accounting
    from sparsity_lab.analysis.attention.attention_map import AttentionMap as AttentionMap
    from sparsity_lab.analysis.attention.attention_map import attention_map as attention_map
    from sparsity_lab.analysis.attention.dilution import Dilution as Dilution
    from sparsity_lab.analysis.attention.dilution import diluted_mass as diluted_mass
    from sparsity_lab.analysis.attention.dilution import dilution as dilution
    from sparsity_lab.analysis.attention.dilution import logit_gap as logit_gap
    from sparsity_lab.analysis.attention.distractors import DistractorRobustness as DistractorRobustness
    from sparsity_lab.analysis.attention.distractors import distractor_robustness as distractor_robustness
    from sparsity_lab.analysis.attention.entropy import AttentionEntropy as AttentionEntropy
    from sparsity_lab.analysis.attention.entropy import attention_entropy as attention_entropy
    from sparsity_lab.analysis.attention.norm_sensitivity import NormSensitivity as NormSensitivity
    from sparsity_lab.analysis.attention.norm_sensitivity import norm_sensitivity as norm_sensitivity
    from sparsity_lab.analysis.attention.norm_sensitivity import softmax_entropy_slope as softmax_entropy_slope
    from sparsity_lab.analysis.attention.planted_mass import PlantedMass as PlantedMass
    from sparsity_lab.analysis.attention.planted_mass import planted_mass as planted_mass
    from sparsity_lab.analysis.attention.sink import AttentionSink as AttentionSink
    from sparsity_lab.analysis.attention.sink import attention_sink as attention_sink
    from sparsity_lab.analysis.curve_difference import CurveDifference as CurveDifference
    from sparsity_lab.analysis.dependencies.search import Predictor as Predictor
    from sparsity_lab.analysis.dependencies.sparsity import DependencySparsity as DependencySparsity
    from sparsity_lab.analysis.dependencies.sparsity import dependency_sparsity as dependency_sparsity
    from sparsity_lab.analysis.diagnosis.diagnose import Diagnosis as Diagnosis
    from sparsity_lab.analysis.diagnosis.diagnose import diagnose as diagnose
    from sparsity_lab.analysis.diagnosis.diagnose import write_diagnosis as write_diagnosis
    from sparsity_lab.analysis.diagnosis.look import look_at as look_at
    from sparsity_lab.analysis.diagnosis.token_data import TokenData as TokenData
    from sparsity_lab.analysis.diagnosis.token_data import read_tokens as read_tokens
    from sparsity_lab.analysis.diagnosis.verdict import Thresholds as Thresholds
    from sparsity_lab.analysis.differences import Replicates as Replicates
    from sparsity_lab.analysis.differences import by_replicate as by_replicate
    from sparsity_lab.analysis.differences import by_seed as by_seed
    from sparsity_lab.analysis.differences import paired as paired
    from sparsity_lab.analysis.differences import paired_differences as paired_differences
    from sparsity_lab.analysis.drop import Drop as Drop
    from sparsity_lab.analysis.drop import drop as drop
    from sparsity_lab.analysis.exact_transfer import exact_transfer as exact_transfer
    from sparsity_lab.analysis.extrapolation import ExtrapolationCurve as ExtrapolationCurve
    from sparsity_lab.analysis.extrapolation import extrapolation_curve as extrapolation_curve
    from sparsity_lab.analysis.field_map import FieldMap as FieldMap
    from sparsity_lab.analysis.field_map import field_map as field_map
    from sparsity_lab.analysis.findings import titled as titled
    from sparsity_lab.analysis.heatmap import HeatMap as HeatMap
    from sparsity_lab.analysis.heatmap import heat_map as heat_map
    from sparsity_lab.analysis.length_axis import TrainedRange as TrainedRange
    from sparsity_lab.analysis.length_axis import length_axis as length_axis
    from sparsity_lab.analysis.lines import CHANCE as CHANCE
    from sparsity_lab.analysis.lines import draw_curve as draw_curve
    from sparsity_lab.analysis.lines import draw_level as draw_level
    from sparsity_lab.analysis.lines import draw_median as draw_median
    from sparsity_lab.analysis.lines import name_lines as name_lines
    from sparsity_lab.analysis.lines import note_below as note_below
    from sparsity_lab.analysis.pairing import Difference as Difference
    from sparsity_lab.analysis.picture import write_picture as write_picture
    from sparsity_lab.analysis.predict_reach import predict_reach as predict_reach
    from sparsity_lab.analysis.report.explorer import Explorer as Explorer
    from sparsity_lab.analysis.report.explorer import explore as explore
    from sparsity_lab.analysis.report.report import write_report as write_report
    from sparsity_lab.analysis.retained_mass import RetainedMass as RetainedMass
    from sparsity_lab.analysis.retained_mass import retained_mass as retained_mass
    from sparsity_lab.analysis.runs import MEASURES as MEASURES
    from sparsity_lab.analysis.runs import Measure as Measure
    from sparsity_lab.analysis.statistics import Interval as Interval
    from sparsity_lab.analysis.statistics import mean_interval as mean_interval
    from sparsity_lab.analysis.statistics import median_interval as median_interval
    from sparsity_lab.analysis.style import GRAY as GRAY
    from sparsity_lab.analysis.style import INK as INK
    from sparsity_lab.analysis.style import PALETTE as PALETTE
    from sparsity_lab.analysis.style import Look as Look
    from sparsity_lab.analysis.style import draw_cells as draw_cells
    from sparsity_lab.analysis.style import figure_svg as figure_svg
    from sparsity_lab.analysis.style import ink_on as ink_on
    from sparsity_lab.analysis.style import line_style as line_style
    from sparsity_lab.analysis.style import look as look
    from sparsity_lab.analysis.style import looks_of as looks_of
    from sparsity_lab.analysis.style import styled as styled
    from sparsity_lab.analysis.transfer import TransferCheck as TransferCheck
    from sparsity_lab.analysis.transfer import transfer_check as transfer_check

lazy.load_on_first_use(__name__)
