"""Softmax attention with a scale for each row: it depends on how many keys the row sees, or is learned."""

from sparsity_lab.kernels.scaled_softmax.settings import CosineSoftmax as CosineSoftmax
from sparsity_lab.kernels.scaled_softmax.settings import EntropyInvariantSoftmax as EntropyInvariantSoftmax
from sparsity_lab.kernels.scaled_softmax.settings import LogNSoftmax as LogNSoftmax
from sparsity_lab.kernels.scaled_softmax.settings import SSMax as SSMax
from sparsity_lab.kernels.scaled_softmax.settings import SSMaxScale as SSMaxScale
