"""Which benchmarks there are."""

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from sparsity_lab.settings import SettingError

if TYPE_CHECKING:
    from sparsity_lab.benchmarks.measure import Benchmark

_FOLDER = Path(__file__).parent


def benchmarks() -> dict[str, str]:
    """What each benchmark measures, its docstring, by name. It is read from the source: an import would take all that
    is measured.

    >>> "kernels" in benchmarks()
    True
    """
    sources = {found.name: _FOLDER / f"{found.name}.py" for found in pkgutil.iter_modules([str(_FOLDER)])}
    return {
        name: ast.get_docstring(statement) or ""
        for name, source in sorted(sources.items())
        for statement in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.FunctionDef) and statement.name == name
    }


def find_benchmark(name: str) -> "Benchmark":
    """The benchmark of this name.

    >>> find_benchmark("kernels").__name__
    'kernels'

    Raises:
        SettingError: there is none; the known names are listed.
    """
    known = benchmarks()
    if name not in known:
        raise SettingError("benchmark", "a benchmark", name, known)
    found: Benchmark = getattr(importlib.import_module(f"{__package__}.{name}"), name)
    return found
