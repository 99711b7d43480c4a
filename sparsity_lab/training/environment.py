"""The record of where a run was made."""

import functools
import importlib.metadata
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from sparsity_lab.training.config import RunConfig

_PACKAGE = Path(__file__).parents[1]
_PACKAGES = ("sparsity-lab", "numpy", "scipy", "polars", "safetensors")


def environment(config: RunConfig, before: Mapping[str, object] | None = None) -> dict[str, object]:
    """Versions, machine, device and threads, for ``environment.json``, and what tasks read from outside, such as the
    hash of a text. But for the latter nothing of it decides a run's numbers on one machine; another machine, another
    kind of device or another number of threads may round differently.

    Args:
        before: the record of the process that this one goes on from. ``devices`` lists the kinds of device in order.
    """
    training = config.training
    device, kind = torch.device(training.device), kind_of_device(config)
    earlier = devices_of(before)
    read = {str(task): record for task in (config.task, *config.conditions.values()) if (record := task.record)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": training.device,
        "device_name": name,
        "devices": [*earlier, *([kind] if earlier[-1:] != [kind] else [])],
        "threads": training.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": _blas(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": _versions(),
        "git_commit": _git_commit(),
        "git_modified": _git_modified(),
        **({"read": read} if read else {}),
    }


def kind_of_device(config: RunConfig) -> str:
    """The kind of device that a run is made on here, as in ``"cpu AVX512 with 1 thread"`` or ``"cuda"``.

    Another kind may round differently: torch has other code for another capability of the processor, and sums in
    another order with another number of threads.
    """
    training = config.training
    if (device := torch.device(training.device).type) != "cpu":
        return device
    threads = f"{training.threads} thread{'s' * (training.threads != 1)}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()} with {threads}"


def devices_of(record: Mapping[str, object] | None, evaluation: str | None = None) -> list[str]:
    """The kinds of device that a run was trained on, in order, as its record says; and, if it was evaluated on
    another kind, that one.

    Args:
        evaluation: id of the evaluation that is meant; None for the training alone.
    """
    if record is None:
        return []
    devices, evaluated = record.get("devices"), record.get("evaluated_on")
    found = [kind for kind in devices if isinstance(kind, str)] if isinstance(devices, list) else []
    kind = evaluated.get(evaluation) if isinstance(evaluated, dict) else None
    return [*found, *([kind] if isinstance(kind, str) and kind not in found else [])]


def devices_words(devices: Mapping[str, int]) -> str:
    """That runs were made on several kinds of device; empty if they were not."""
    if len(devices) < 2:
        return ""
    listed = ", ".join(f"{count} on {kind.replace(', ', ' and ')}" for kind, count in devices.items())
    return f"runs were made on different kinds of device ({listed}), so small differences can be due to that"


@functools.cache
def _blas() -> str | None:
    """The library of matrix products that torch was built with; None if it does not say."""
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return found[1] if found else None


@functools.cache
def _versions() -> dict[str, str]:
    # A wheel's own record can lack the build ("+cu130") that torch itself names.
    return {"torch": str(torch.__version__), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


@functools.cache
def _git_commit() -> str | None:
    """Commit of the checkout that this package is a tracked part of; None if there is none, or no git."""
    # An installed copy may lie inside another project's checkout, whose commit says nothing about this one.
    tracked = _git("ls-files", "--error-unmatch", "__init__.py") is not None
    return _git("rev-parse", "HEAD") if tracked else None


@functools.cache
def _git_modified() -> bool | None:
    """Whether a file of this package differs from that commit; None without one."""
    return None if _git_commit() is None else bool(_git("status", "--porcelain", "--", str(_PACKAGE)))


def _git(*arguments: str) -> str | None:
    """What git answers in this package's folder; None if it refuses or there is none."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(_PACKAGE), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None
