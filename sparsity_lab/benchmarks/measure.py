"""How benchmarks measure, and where they are entered."""

import statistics
import time
from collections.abc import Callable

import polars as pl

from sparsity_lab.settings import SettingError

__all__ = ["Benchmark", "alternate", "benchmark", "benchmarks", "find_benchmark", "seconds"]

Benchmark = Callable[..., pl.DataFrame]
"""Keyword arguments, if it has any, are options of the command line that it takes, each with a default."""
_benchmarks: dict[str, Benchmark] = {}


def benchmark(function: Benchmark) -> Benchmark:
    """Decorator: enter a benchmark under the function's name."""
    _benchmarks[function.__name__] = function
    return function


def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by name, sorted."""
    return dict(sorted(_benchmarks.items()))


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        SettingError: there is none; the known names are listed.
    """
    if name not in _benchmarks:
        raise SettingError("benchmark", "a benchmark", name, sorted(_benchmarks))
    return _benchmarks[name]


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median over rounds of second / first; the two take turns, so that drift of
    the machine's speed falls on both."""
    pairs = []
    for _ in range(rounds):
        pairs.append((seconds(first), seconds(second)))
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
