"""Config files: runs and sweeps in TOML or JSON.

A run file holds the fields of a ``RunConfig``. A sweep file holds ``name`` and either ``runs``, or ``base`` and
``grid``. A setting is either a table with its ``kind`` or its short form::

    name = "k and locality"
    [base]
    task = "Planted(k=2)"
    [grid]
    "task.k" = [1, 2, 3]
    "task.locality" = ["Uniform()", "Window(width=8)"]
    seed = [0, 1, 2]

``"None"`` is None in a field that can be None but not text.
"""

import ast
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsity_lab.settings import SettingError, Shown, check_that, distinct, from_data, read_whole
from sparsity_lab.sweeps.sweep import Sweep, grid
from sparsity_lab.training import RunConfig

_MOST_BYTES = {".toml": 2**20, ".json": 2**28}
_GRID_FIELDS = ("name", "base", "grid")
_PART = r"""(?:[\w-]{1,100}+|"(?:[^"\\\n]|\\.){0,100}+"|'[^'\n]{0,100}+')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*\.[ \t]*{_PART}){{64}}")
"""A key with too many parts. The parser takes memory quadratic in the number of parts."""


def _read_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=distinct)


def _read_toml(text: str) -> Any:
    check_that(not _LONG_KEY.search(text), "", "keys with at most 64 parts", Shown("more"))
    return tomllib.loads(text)


_READERS: dict[str, Callable[[str], Any]] = {".toml": _read_toml, ".json": _read_json}


def is_config_file(path: Path) -> bool:
    """Whether the file name ends in ``.toml`` or ``.json``, in upper or lower case."""
    return path.suffix.lower() in _READERS


def read_data(path: Path) -> dict[str, Any]:
    """The table in a ``.toml`` or ``.json`` file.

    Raises:
        SettingError: the file cannot be read, is not valid (the parser's message has the place), or has a field
            twice.
    """
    check_that(is_config_file(path), str(path), "a file that ends in .toml or .json", path.suffix or path.name)
    kind = path.suffix.lower()
    content = read_whole(path, _MOST_BYTES[kind])
    try:
        data = _READERS[kind](content.decode(encoding="utf-8-sig"))
    except SettingError as error:
        raise error.inside(str(path)) from None
    except UnicodeDecodeError:
        raise SettingError(str(path), "text in UTF-8", Shown("another encoding")) from None
    except (ValueError, RecursionError, MemoryError) as error:  # from either parser
        spelling = _right_spelling(content.decode(errors="replace"), str(error)) if kind == ".toml" else ""
        raise SettingError(str(path), f"invalid {kind[1:].upper()}: {error}{spelling}") from None
    if not isinstance(data, dict):
        raise SettingError(str(path), "a table of fields", type(data).__name__)
    return data


def _right_spelling(text: str, error: str) -> str:
    """A correction for the line in a parser's error, if its value is a Python value; otherwise an empty text."""
    if not (place := re.search(r"at line (\d+)", error)):
        return ""
    line = text.split("\n")[int(place[1]) - 1]
    key, is_field, value = line.partition("=") if re.match(r"""\s*[\w."'-]+\s*=""", line) else ("", "", line)
    try:
        meant = _in_toml(ast.parse(value.strip().rstrip(","), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    return f"; write {key.strip()} = {meant}" if is_field else f"; write {meant}"


def _in_toml(node: ast.expr) -> str:
    """A Python value in TOML, with settings in short form; ``ValueError`` if TOML has no such value."""
    match node:
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return f"[{', '.join(map(_in_toml, items))}]"
        case ast.Constant(value=bool(value)):
            return str(value).lower()
        case ast.Constant(value=str(value)):
            return json.dumps(value)
        case ast.Name() | ast.Attribute() | ast.Call() | ast.Constant(value=None):
            return json.dumps(ast.unparse(node))
        case ast.Constant(value=int() | float()) | ast.UnaryOp(operand=ast.Constant(value=int() | float())):
            return ast.unparse(node)
        case _:
            raise ValueError(ast.unparse(node))


def load_sweep(path: Path) -> Sweep:
    """The sweep that a file describes; errors as ``read_data``, ``settings.from_data`` and ``sweeps.grid``.

    >>> path = Path("sweep.json")
    >>> _ = path.write_text(canonical_json(results.sweep))
    >>> load_sweep(path) == results.sweep
    True
    """
    data = read_data(path)
    if "grid" not in data and "base" not in data:
        return from_data(Sweep, data)
    for name in data:
        check_that(name in _GRID_FIELDS, name, "a field of a sweep made by a grid", name, _GRID_FIELDS)
    base = from_data(RunConfig, data.get("base", {}), "base")
    axes = data.get("grid", {})
    if not isinstance(axes, dict):
        raise SettingError("grid", "a table of lists by field", axes)
    for name, values in axes.items():
        if isinstance(values, dict):
            inner: str = name  # the path of the first list
            below: Any = values
            while isinstance(below, dict):
                field, below = next(iter(below.items()), ("name", None))
                inner = f"{inner}.{field}"
            expected = f'a list of values (under [grid], quote a path, as in "{inner}" = [..])'
            raise SettingError(f"grid.{name}", expected, values)
    return Sweep(name=data.get("name", path.stem), runs=tuple(grid(base, axes)))
