"""Adaptive sparse attention: blocks of keys selected per token by their summaries, exact attention on them."""

from sparsity_lab.kernels.adaptive.audit import Audit as Audit
from sparsity_lab.kernels.adaptive.formula import REASONS as REASONS
from sparsity_lab.kernels.adaptive.formula import BlockScore as BlockScore
from sparsity_lab.kernels.adaptive.formula import SelectionRule as SelectionRule
from sparsity_lab.kernels.adaptive.kernel import AdaptiveSparse as AdaptiveSparse
