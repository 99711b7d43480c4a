"""Shifted sparse attention: groups of neighbors in training, half of the heads with shifted groups."""

from sparsity_lab.kernels.shifted_sparse.kernel import ShiftedSparse as ShiftedSparse
