"""The short form of settings, ``Planted(k=3, locality=Recent(width=8))``: written, and read as plain data."""

import ast
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from sparsity_lab.settings.errors import SettingError, Shown, join

_MOST_LETTERS = 2**20
"""The longest text to read. While it is read, a text takes a few hundred times its size in memory."""


def write(value: Any) -> str:
    """The short form of a field's value."""
    if isinstance(value, tuple):
        inner = ", ".join(write(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {write(item)}" for key, item in value.items()) + "}"
    return repr(value) if isinstance(value, str) else str(value)


def read(text: str, path: str, form: str) -> Any:
    """Plain data from the short form: calls become ``{"kind": ..., field: ...}``. Nothing is evaluated.

    Args:
        path: the path of the text, for errors.
        form: a description of the expected form.

    Raises:
        SettingError: the text does not have this form, is too long, or has a field twice.
    """
    if len(text) > _MOST_LETTERS:
        raise SettingError(path, f"a text of at most {_MOST_LETTERS} characters", Shown(f"{len(text)}"))
    try:
        with warnings.catch_warnings():
            # Warnings about backslashes and so on. The code that uses the value reports errors in it.
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise SettingError(path, form, text) from None
    try:
        return _data(tree, path, form)
    except RecursionError:
        raise SettingError(path, form, text) from None


def distinct(fields: Iterable[tuple[Any, Any]], path: str = "") -> dict[Any, Any]:
    """A dict of the fields.

    >>> distinct([("k", 3), ("width", 8)])
    {'k': 3, 'width': 8}

    Raises:
        SettingError: a name occurs twice.
    """
    found: dict[Any, Any] = {}
    for name, value in fields:
        if name in found:
            raise SettingError(join(path, str(name)), "given twice")
        found[name] = value
    return found


def _data(node: ast.expr, path: str, form: str) -> Any:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return {"kind": name}
        case ast.Call(func=(ast.Name(id=name) | ast.Attribute(attr=name)), args=[], keywords=keywords):
            fields: list[tuple[str, Any]] = [("kind", name)]
            for word in keywords:
                if word.arg is None:
                    raise SettingError(path, form, Shown(ast.unparse(node)))
                fields.append((word.arg, _data(word.value, join(path, word.arg), form)))
            return distinct(fields, path)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_data(item, path, form) for item in items]
        case ast.Dict(keys=keys, values=values):
            return distinct(
                [
                    (name, _data(item, join(path, str(name)), form))
                    for key, item in zip(keys, values, strict=True)
                    for name in [_name(key, path)]
                ],
                path,
            )
        case _:
            try:
                return ast.literal_eval(node)
            except (ValueError, TypeError, SyntaxError, MemoryError):
                raise SettingError(path, form, Shown(ast.unparse(node))) from None


def _name(key: ast.expr | None, path: str) -> str | int:
    match key:
        case ast.Constant(value=str(name)):
            return name
        case ast.Constant(value=int(number)) if type(number) is int:
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))) if type(number) is int:
            return -number
        case _:
            got = Shown(ast.unparse(key) if key else "**")
            raise SettingError(path, "names in quotes, or whole numbers, as keys", got)
