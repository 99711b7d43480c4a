"""Conversion of field values to the types of their hints, and a mapping that a frozen setting can hold."""

import functools
import numbers
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sparsity_lab.settings.errors import SettingError, check_text, join

_INTEGERS = range(-(2**63), 2**63)
"""The integers that JSON readers, TOML and the columns of a frame can all hold."""

Key = TypeVar("Key")
Item_co = TypeVar("Item_co", covariant=True)


class FrozenMapping(Mapping[Key, Item_co]):
    """An immutable mapping. Its keys are sorted, so equal mappings have the same text.

    It equals every mapping with the same items, and can be hashed and pickled if its items can.

    >>> FrozenMapping({"b": 2, "a": 1})
    {'a': 1, 'b': 2}
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[Any, Item_co]) -> None:
        self._items = {key: items[key] for key in sorted(items)}

    def __getitem__(self, key: Key) -> Item_co:
        return self._items[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def conform(hint: Any, value: Any, path: str) -> Any:
    """``value`` converted to the type of the hint, so that equal values have equal text forms.

    Descends into settings, tuples and mappings; pydantic converts the other values. (A family is not a pydantic
    union: users register kinds at any time, and short forms, versions, former names and nearest names would each need
    a separate hook.)

    Raises:
        SettingError: the value does not fit. Its path starts with ``path``.
    """
    return _conformer(hint)(value, path)


@functools.cache
def _conformer(hint: Any) -> Callable[[Any, str], Any]:
    """``conform`` for one hint. The hint is analyzed once, because a sweep holds many thousands of values."""
    origin, arguments = get_origin(hint), get_args(hint)
    if of_setting := getattr(hint, "_conformed", None):
        return of_setting  # type: ignore[no-any-return]
    if origin in (Union, types.UnionType):
        return functools.partial(_conform_union, hint, arguments)
    if origin is tuple:
        return functools.partial(_conform_tuple, arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return functools.partial(_conform_mapping, arguments)
    return functools.partial(_conform_leaf, hint)


def _conform_union(hint: Any, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [choice for choice in arguments if choice is not type(None)]
    # TOML has no None. In a field that can hold text, "None" is text.
    if value == "None" and type(value) is str and len(choices) < len(arguments) and str not in choices:
        return None
    sequences = [choice for choice in choices if get_origin(choice) is tuple]
    others = [choice for choice in choices if get_origin(choice) is not tuple]
    fitting = sequences if isinstance(value, list | tuple) and sequences else others or sequences
    return conform(fitting[0], value, path) if len(fitting) == 1 else _conform_leaf(hint, value, path)


def _conform_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SettingError(path, "a list of values", value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise SettingError(path, f"{len(arguments)} values", value)
    pairs = zip(arguments, value, strict=True)
    return tuple(conform(inner, item, f"{path}[{i}]") for i, (inner, item) in enumerate(pairs))


def _conform_mapping(arguments: tuple[Any, ...], value: Any, path: str) -> FrozenMapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise SettingError(path, "a table of values by name", value)
    of_key, of_item = arguments
    places = {key: join(path, str(key)) for key in value}
    # In JSON and TOML, all keys are text.
    keys = {key: int(key) if of_key is int and _is_number(key) else key for key in value}
    made = {
        conform(of_key, keys[key], places[key]): conform(of_item, item, places[key]) for key, item in value.items()
    }
    if len(made) != len(value):
        raise SettingError(path, "a mapping with each key once", value)
    return FrozenMapping(made)


def _is_number(key: object) -> bool:
    return isinstance(key, str) and re.fullmatch("0|-?[1-9][0-9]{0,18}", key) is not None


def check_keys(hint: Any) -> None:
    """Raise ``TypeError`` for a mapping whose keys cannot be read back from a file. They must be str or int."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return
    if isinstance(origin, type) and issubclass(origin, Mapping) and arguments[0] not in (str, int):
        raise TypeError(f"keys of a mapping in a setting are str or int, which files can hold, not {arguments[0]}")
    for inner in arguments:
        check_keys(inner)


def _conform_leaf(hint: Any, value: Any, path: str) -> Any:
    if hint is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    # Scalars of numpy and similar libraries are numbers too. Files and ids need plain Python numbers.
    if isinstance(value, str):
        check_text(value, path)
    elif isinstance(value, bool):
        pass
    elif isinstance(value, numbers.Integral):
        value = int(value)
        if value not in _INTEGERS:
            raise SettingError(path, "an integer of at most 64 bits", value)
    elif isinstance(value, numbers.Real):
        try:
            # Minus zero equals zero, and must have the same text.
            value = float(value) + 0.0
        except OverflowError:
            raise SettingError(path, "a finite number", value) from None
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        # There is one error for each choice of a union.
        choices = dict.fromkeys(_expected(choice["msg"]) for choice in error.errors())
        raise SettingError(path, " or ".join(choices), value) from None


def _expected(message: str) -> str:
    return message.removeprefix("Input should be ").replace("a valid ", "a ").replace("a integer", "an integer")


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))
