"""Attention mechanisms, each in one file or one folder under its paper's name.

A file has the formula (the dense reference), then the fast form, then the class. In ``adaptive/`` these are files. A
folder also holds the C++ of a compiled form. The contract is in ``kernel.py``, ``context.py`` and ``position.py``
here; what several mechanisms share is in ``parts/``.

The abbreviations of the papers: LSSA and LSSAR are in ``lssar/``, NaLaFormer (NaLa) in ``norm_aware.py``, and
LongLoRA's S2-Attn in ``shifted_sparse.py``. Block selection like that of NSA and MoBA is in ``adaptive/``.
"""

from sparsity_lab.kernels.activation import NormalizedActivation as NormalizedActivation
from sparsity_lab.kernels.activation import Phi as Phi
from sparsity_lab.kernels.activation import ReLUAttention as ReLUAttention
from sparsity_lab.kernels.activation import Sigmoid as Sigmoid
from sparsity_lab.kernels.adaptive import AdaptiveSparse as AdaptiveSparse
from sparsity_lab.kernels.adaptive import Audit as Audit
from sparsity_lab.kernels.adaptive import BlockScore as BlockScore
from sparsity_lab.kernels.adaptive import SelectionRule as SelectionRule
from sparsity_lab.kernels.cache import KernelState as KernelState
from sparsity_lab.kernels.cache import KeyValueCache as KeyValueCache
from sparsity_lab.kernels.context import AuxiliaryOutputs as AuxiliaryOutputs
from sparsity_lab.kernels.context import Context as Context
from sparsity_lab.kernels.context import Keys as Keys
from sparsity_lab.kernels.context import Outputs as Outputs
from sparsity_lab.kernels.context import Queries as Queries
from sparsity_lab.kernels.context import Values as Values
from sparsity_lab.kernels.context import Weights as Weights
from sparsity_lab.kernels.kernel import CachedKernel as CachedKernel
from sparsity_lab.kernels.kernel import Kernel as Kernel
from sparsity_lab.kernels.linear import Linear as Linear
from sparsity_lab.kernels.lssar import LSSA as LSSA
from sparsity_lab.kernels.lssar import LSSAR as LSSAR
from sparsity_lab.kernels.norm_aware import NormAwareLinear as NormAwareLinear
from sparsity_lab.kernels.parts.arguments import RowKind as RowKind
from sparsity_lab.kernels.parts.masking import visible_keys as visible_keys
from sparsity_lab.kernels.position import BiasPosition as BiasPosition
from sparsity_lab.kernels.position import KernelPosition as KernelPosition
from sparsity_lab.kernels.position import RotaryPosition as RotaryPosition
from sparsity_lab.kernels.position import interleaved_order as interleaved_order
from sparsity_lab.kernels.reweighted import Reweighted as Reweighted
from sparsity_lab.kernels.scaled_softmax import CosineSoftmax as CosineSoftmax
from sparsity_lab.kernels.scaled_softmax import EntropyInvariantSoftmax as EntropyInvariantSoftmax
from sparsity_lab.kernels.scaled_softmax import LogNSoftmax as LogNSoftmax
from sparsity_lab.kernels.scaled_softmax import SSMax as SSMax
from sparsity_lab.kernels.shifted_sparse import ShiftedSparse as ShiftedSparse
from sparsity_lab.kernels.sliding_window import SlidingWindow as SlidingWindow
from sparsity_lab.kernels.softmax import Softmax as Softmax
from sparsity_lab.kernels.softmax import softmax_weights as softmax_weights
