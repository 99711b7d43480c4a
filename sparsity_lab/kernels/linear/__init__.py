"""Linear attention: weights are inner products of features, so that sums over keys replace the T x T map."""

from sparsity_lab.kernels.linear.settings import Linear as Linear
from sparsity_lab.kernels.linear.settings import NormAwareLinear as NormAwareLinear
