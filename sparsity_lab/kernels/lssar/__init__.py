"""Length-scaled softplus attention (LSSA), and the same re-weighted (LSSAR)."""

from sparsity_lab.kernels.lssar.kernel import LSSA as LSSA
from sparsity_lab.kernels.lssar.kernel import LSSAR as LSSAR
