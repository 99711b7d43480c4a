"""Benchmarks: speed as ratios within one run, since times alone say more of the machine than of the code.

One file for each part of the lab. A benchmark is a function that returns a frame, in a file of its name.
"""

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from sparsity_lab.settings.lazy import load_on_first_use
from sparsity_lab.settings import SettingError

if TYPE_CHECKING:
    from sparsity_lab.benchmarks.measure import Benchmark as Benchmark
    from sparsity_lab.benchmarks.measure import alternate as alternate
    from sparsity_lab.benchmarks.measure import machine as machine
    from sparsity_lab.benchmarks.memory import peak_memory as peak_memory

load_on_first_use(__name__)


def benchmarks() -> dict[str, str]:
    """What each benchmark measures, its docstring, by name. It is read from the source: an import would take all that
    is measured."""
    sources = {found.name: Path(__path__[0], f"{found.name}.py") for found in pkgutil.iter_modules(__path__)}
    return {
        name: ast.get_docstring(statement) or ""
        for name, source in sorted(sources.items())
        for statement in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.FunctionDef) and statement.name == name
    }


def find_benchmark(name: str) -> "Benchmark":
    """The benchmark of this name.

    Raises:
        SettingError: there is none; the known names are listed.
    """
    known = benchmarks()
    if name not in known:
        raise SettingError("benchmark", "a benchmark", name, known)
    found: Benchmark = getattr(importlib.import_module(f"{__name__}.{name}"), name)
    return found
