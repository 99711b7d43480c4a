"""The second stage of softplus attention, threshold and power, after any kernel."""

from sparsity_lab.kernels.reweighted.settings import Reweighted as Reweighted
