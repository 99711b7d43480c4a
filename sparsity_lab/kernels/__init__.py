"""Attention mechanisms: one folder each, with a dense reference, a fast form and its settings."""

from sparsity_lab.kernels.cache import KernelState as KernelState
from sparsity_lab.kernels.cache import KeyValueCache as KeyValueCache
from sparsity_lab.kernels.cached import CachedKernel as CachedKernel
from sparsity_lab.kernels.context import Context as Context
from sparsity_lab.kernels.context import Trace as Trace
from sparsity_lab.kernels.kernel import Kernel as Kernel
from sparsity_lab.kernels.masking import visible_keys as visible_keys
from sparsity_lab.kernels.position import BiasPosition as BiasPosition
from sparsity_lab.kernels.position import KernelPosition as KernelPosition
from sparsity_lab.kernels.position import RotaryPosition as RotaryPosition
from sparsity_lab.kernels.softmax import Softmax as Softmax
