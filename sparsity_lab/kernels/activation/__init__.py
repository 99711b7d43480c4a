"""Attention by an elementwise function of scores, with and without normalisation of the row."""

from sparsity_lab.kernels.activation.settings import NormalisedActivation as NormalisedActivation
from sparsity_lab.kernels.activation.settings import ReLUAttention as ReLUAttention
from sparsity_lab.kernels.activation.settings import Sigmoid as Sigmoid
