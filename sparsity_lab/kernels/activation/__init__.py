"""Attention by an elementwise function of scores, with and without normalization of the row."""

from sparsity_lab.kernels.activation.formula import Phi as Phi
from sparsity_lab.kernels.activation.kernel import NormalizedActivation as NormalizedActivation
from sparsity_lab.kernels.activation.kernel import ReLUAttention as ReLUAttention
from sparsity_lab.kernels.activation.kernel import Sigmoid as Sigmoid
