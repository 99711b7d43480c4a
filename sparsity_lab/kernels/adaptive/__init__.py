"""Adaptive sparse attention: blocks of keys selected per token by their summaries, exact attention on them."""

from sparsity_lab.kernels.adaptive.audit import Audit as Audit
from sparsity_lab.kernels.adaptive.kernel import AdaptiveSparse as AdaptiveSparse
from sparsity_lab.kernels.adaptive.parameters import BlockScore as BlockScore
from sparsity_lab.kernels.adaptive.selection import REASONS as REASONS
from sparsity_lab.kernels.adaptive.selection import SelectionRule as SelectionRule
