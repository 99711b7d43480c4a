"""How long it takes until a command answers."""

import resource
import subprocess
import sys

import polars as pl

_ROUNDS = 7
_COMMAND = ("-m", "sparsity_lab.cli")
_CASES: dict[str, tuple[str, ...]] = {
    "import torch": ("-c", "import torch"),
    "import sparsity_lab.training": ("-c", "import sparsity_lab.training"),
    "import sparsity_lab.analysis": ("-c", "import sparsity_lab.analysis"),
    "sparsity-lab --help": (*_COMMAND, "--help"),
    "sparsity-lab list": (*_COMMAND, "list"),
    "sparsity-lab sample Planted": (*_COMMAND, "sample", "Planted"),
}


def startup() -> pl.DataFrame:
    """CPU time, of user and system, of imports and of short commands, each in a new process, over that of ``import
    torch``; the least of 7, in turn."""
    rounds = [{case: _cpu_seconds(arguments) for case, arguments in _CASES.items()} for _ in range(_ROUNDS)]
    least = {case: min(one[case] for one in rounds) for case in _CASES}
    return pl.DataFrame(
        {"case": case, "CPU s": spent, "over import torch": spent / least["import torch"]}
        for case, spent in least.items()
    )


def _cpu_seconds(arguments: tuple[str, ...]) -> float:
    """Of a Python process, from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
