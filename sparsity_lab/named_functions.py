"""Functions that are known by name: benchmarks."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sparsity_lab.settings import SettingError

__all__ = ["NamedFunctions"]

Function = TypeVar("Function", bound=Callable[..., Any])


class NamedFunctions(Generic[Function]):
    """A registry that is its own decorator: ``@benchmark`` enters a function under its name."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._functions: dict[str, Function] = {}

    def __call__(self, function: Function) -> Function:
        self._functions[function.__name__] = function
        return function

    def drop(self, name: str) -> None:
        """Take a function out again, if there is one of this name."""
        self._functions.pop(name, None)

    def all(self) -> dict[str, Function]:
        """Every function by name, sorted."""
        return dict(sorted(self._functions.items()))

    def find(self, name: str) -> Function:
        """The function of this name.

        Raises:
            SettingError: there is none; the known names are listed.
        """
        if name not in self._functions:
            raise SettingError(self.what, f"a {self.what}", name, sorted(self._functions))
        return self._functions[name]
