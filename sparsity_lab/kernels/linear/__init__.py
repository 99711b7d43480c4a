"""Linear attention: weights are inner products of features, so that sums over keys replace the T x T map."""

from sparsity_lab.kernels.linear.kernel import Linear as Linear
