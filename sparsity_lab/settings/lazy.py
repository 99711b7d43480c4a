"""Packages that load on first use: packages of the lab that import heavy libraries, and optional packages."""

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from sparsity_lab.settings.errors import SettingError, Shown


class _LazyPackage(ModuleType):
    """A package that loads the module of a name on the first access to the name."""

    _homes: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(self._homes[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import of a submodule sets it here. If a function has the name of its module, the name stays the
        # function.
        if name in self._homes and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})


def load_on_first_use(package: str) -> None:
    """Make the names of a package load on first use (PEP 562). These are the names that its source imports under ``if
    TYPE_CHECKING:``, so there is a single list, which type checkers read as well.

    >>> import sparsity_lab.analysis
    >>> "heat_map" in dir(sparsity_lab.analysis)
    True
    """
    module = sys.modules[package]
    assert module.__file__ is not None
    source = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    blocks = [block for block in source.body if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block)]
    at_once, later = (_names(body) for body in (source.body, [line for block in blocks for line in block.body]))
    module.__dict__["_homes"] = later
    # Without this, ``import *`` would skip names that are not loaded yet.
    module.__dict__["__all__"] = sorted({*at_once, *later})
    module.__class__ = _LazyPackage


def _names(statements: list[ast.stmt]) -> dict[str, str]:
    """The names that statements ``from home import name as name`` define, each with its home."""
    imports = [one for one in statements if isinstance(one, ast.ImportFrom)]
    return {name.name: one.module or "" for one in imports for name in one.names if name.asname == name.name}


def required(module: str, extra: str, path: str = "") -> Any:
    """The module of a package that only an extra installs.

    Args:
        path: the path in the error; the package by default.

    Raises:
        SettingError: the package is not installed, or its version has no such module.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        expected = f'the package {package} (pip install "sparsity-lab[{extra}]")'
        raise SettingError(path or package, expected, Shown(str(error))) from None
