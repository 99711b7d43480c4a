"""How benchmarks measure, and where they are entered."""

import statistics
import time
from collections.abc import Callable

import polars as pl

from sparsity_lab.named_functions import NamedFunctions

__all__ = ["Benchmark", "alternate", "benchmark"]

Benchmark = Callable[[], pl.DataFrame]
benchmark = NamedFunctions[Benchmark]("benchmark")
"""Decorator of benchmarks, and where they are found: ``benchmark.find("training")``."""


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median over rounds of second / first; the two take turns, so that drift of
    the machine's speed falls on both."""
    pairs = []
    for _ in range(rounds):
        pairs.append((_seconds(first), _seconds(second)))
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
