"""Softmax attention."""

from sparsity_lab.kernels.softmax.settings import Softmax as Softmax
