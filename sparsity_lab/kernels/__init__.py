"""Attention mechanisms: one folder each, with a dense reference, a fast form and its settings."""

from sparsity_lab.kernels.activation import NormalizedActivation as NormalizedActivation
from sparsity_lab.kernels.activation import ReLUAttention as ReLUAttention
from sparsity_lab.kernels.activation import Sigmoid as Sigmoid
from sparsity_lab.kernels.adaptive import AdaptiveSparse as AdaptiveSparse
from sparsity_lab.kernels.cache import KernelState as KernelState
from sparsity_lab.kernels.cache import KeyValueCache as KeyValueCache
from sparsity_lab.kernels.cached import CachedKernel as CachedKernel
from sparsity_lab.kernels.context import AuxiliaryOutputs as AuxiliaryOutputs
from sparsity_lab.kernels.context import Context as Context
from sparsity_lab.kernels.kernel import Kernel as Kernel
from sparsity_lab.kernels.linear import Linear as Linear
from sparsity_lab.kernels.linear import NormAwareLinear as NormAwareLinear
from sparsity_lab.kernels.masking import visible_keys as visible_keys
from sparsity_lab.kernels.position import BiasPosition as BiasPosition
from sparsity_lab.kernels.position import KernelPosition as KernelPosition
from sparsity_lab.kernels.position import RotaryPosition as RotaryPosition
from sparsity_lab.kernels.reweighted import Reweighted as Reweighted
from sparsity_lab.kernels.scaled_softmax import CosineSoftmax as CosineSoftmax
from sparsity_lab.kernels.scaled_softmax import EntropyInvariantSoftmax as EntropyInvariantSoftmax
from sparsity_lab.kernels.scaled_softmax import LogNSoftmax as LogNSoftmax
from sparsity_lab.kernels.scaled_softmax import SSMax as SSMax
from sparsity_lab.kernels.shifted_sparse import ShiftedSparse as ShiftedSparse
from sparsity_lab.kernels.sliding_window import SlidingWindow as SlidingWindow
from sparsity_lab.kernels.softmax import Softmax as Softmax
from sparsity_lab.kernels.softplus import LSSA as LSSA
from sparsity_lab.kernels.softplus import LSSAR as LSSAR
