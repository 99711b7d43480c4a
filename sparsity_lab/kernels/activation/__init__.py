"""Attention by an elementwise function of scores, with and without normalization of the row."""

from sparsity_lab.kernels.activation.settings import NormalizedActivation as NormalizedActivation
from sparsity_lab.kernels.activation.settings import ReLUAttention as ReLUAttention
from sparsity_lab.kernels.activation.settings import Sigmoid as Sigmoid
