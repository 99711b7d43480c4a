"""How benchmarks measure, and on what."""

import os
import platform
import statistics
import time
from collections.abc import Callable

import polars as pl
import torch

from sparsity_lab.settings import SettingError

Benchmark = Callable[..., pl.DataFrame]
"""Keyword arguments, if it has any, are options of the command line that it takes, each with a default."""


def machine() -> dict[str, object]:
    """What the numbers depend on: the processor, its cores, and the vector instructions that torch uses on it.

    >>> "torch" in machine()
    True
    """
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """Its model, where the system tells; else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        lines = {}
    models = (value.strip() for name, value in lines.items() if name.strip() == "model name")
    return next(models, platform.processor() or platform.machine())


def measured_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        SettingError: at ``--device``, neither cpu nor a GPU that is here.
    """
    if name != "cpu" and not (name == "cuda" and torch.cuda.is_available()):
        here = "cpu or cuda" if torch.cuda.is_available() else "cpu, for PyTorch finds no CUDA device here"
        raise SettingError("--device", here, name)
    return torch.device(name)


def wait_for(device: torch.device) -> None:
    """Until the device is done with all that it was given; a CPU is done when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median over rounds of second / first; the two take turns, so that drift of
    the machine's speed falls on both.

    >>> first, second, ratio = alternate(lambda: sum(range(100)), lambda: sum(range(100)), rounds=3)
    >>> first > 0 and ratio > 0
    True
    """
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
