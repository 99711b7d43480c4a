"""Sliding-window attention: the last keys and the first."""

from sparsity_lab.kernels.sliding_window.settings import SlidingWindow as SlidingWindow
