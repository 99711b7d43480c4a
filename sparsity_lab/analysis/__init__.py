"""Analysis: extrapolation curves, drops, heat maps, sample sequences and the report of a sweep."""

from sparsity_lab.analysis.arm_table import arm_table as arm_table
from sparsity_lab.analysis.drop import Drop as Drop
from sparsity_lab.analysis.drop import drop as drop
from sparsity_lab.analysis.extrapolation import ExtrapolationCurve as ExtrapolationCurve
from sparsity_lab.analysis.extrapolation import extrapolation_curve as extrapolation_curve
from sparsity_lab.analysis.heatmap import HeatMap as HeatMap
from sparsity_lab.analysis.heatmap import heat_map as heat_map
from sparsity_lab.analysis.pairing import Difference as Difference
from sparsity_lab.analysis.picture import write_picture as write_picture
from sparsity_lab.analysis.report import write_report as write_report
from sparsity_lab.analysis.runs import MEASURES as MEASURES
from sparsity_lab.analysis.runs import Measure as Measure
from sparsity_lab.analysis.samples import sequence_html as sequence_html
from sparsity_lab.analysis.samples import sequence_text as sequence_text
from sparsity_lab.analysis.statistics import Interval as Interval
from sparsity_lab.analysis.statistics import bootstrap_median as bootstrap_median
from sparsity_lab.analysis.statistics import mean_interval as mean_interval
from sparsity_lab.analysis.style import PALETTE as PALETTE
from sparsity_lab.analysis.style import figure_svg as figure_svg
