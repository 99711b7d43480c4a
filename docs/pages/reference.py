"""The reference: every public name of each subpackage, from its docstring."""

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import sparsity_lab
from pages.markdown import autodoc, fenced, page, summary, table
from sparsity_lab import cli

__all__ = ["pages"]


def pages(source: Path) -> dict[str, str]:
    modules = [module for module in _subpackages() if _public(module)]
    made = {f"reference/{_short(module)}.md": _page(module) for module in modules}
    rows = [(f"[`{module.__name__}`]({_short(module)}.md)", summary(module)) for module in modules]
    tree = fenced("toctree", "\n".join(_short(module) for module in modules), hidden="", maxdepth="1")
    words = "Every public name, from its docstring. Shapes are in the signatures, errors at `Raises`."
    made["reference/index.md"] = page("# Reference", words, table(["module", "what it holds"], rows), tree)
    return made


def _subpackages() -> list[ModuleType]:
    """All but the commands, which a page of their own shows as ``--help`` does."""
    found = pkgutil.iter_modules(sparsity_lab.__path__, "sparsity_lab.")
    names = [name for _, name, is_package in found if is_package and name != cli.__name__]
    return [importlib.import_module(name) for name in names]


def _short(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _public(module: ModuleType) -> dict[str, object]:
    """Classes, functions and values that the module offers, by name."""
    # Not ``vars``: a package may load its names on first use.
    values = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    return {name: value for name, value in values.items() if not inspect.ismodule(value) and not _foreign(value)}


def _foreign(value: object) -> bool:
    return not getattr(value, "__module__", "sparsity_lab").startswith("sparsity_lab")


def _page(module: ModuleType) -> str:
    public = _public(module)
    classes = [name for name, value in public.items() if inspect.isclass(value)]
    functions = [name for name, value in public.items() if inspect.isfunction(value)]
    parts = [f"# `{module.__name__}`", fenced("eval-rst", f".. automodule:: {module.__name__}\n   :no-members:")]
    rows = [(f"{{py:obj}}`~{module.__name__}.{name}`", summary(public[name])) for name in (*functions, *classes)]
    parts.append(table(["name", ""], rows))
    for heading, directive, names in (("Functions", "autofunction", functions), ("Classes", "autoclass", classes)):
        if names:
            parts.append(f"## {heading}")
        options = ("members",) if directive == "autoclass" else ()
        parts += [autodoc(directive, f"{module.__name__}.{name}", *options) for name in names]
    return page(*parts)
