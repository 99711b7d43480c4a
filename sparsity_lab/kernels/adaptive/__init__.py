"""Adaptive sparse attention: blocks of keys selected per token by their summaries, exact attention on them."""

from sparsity_lab.kernels.adaptive.audit import Audit as Audit
from sparsity_lab.kernels.adaptive.selection import REASONS as REASONS
from sparsity_lab.kernels.adaptive.settings import AdaptiveSparse as AdaptiveSparse
