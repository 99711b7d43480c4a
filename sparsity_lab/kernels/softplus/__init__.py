"""Softplus attention, and the same re-weighted."""

from sparsity_lab.kernels.softplus.settings import LSSA as LSSA
from sparsity_lab.kernels.softplus.settings import LSSAR as LSSAR
