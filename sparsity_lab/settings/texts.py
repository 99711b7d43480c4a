"""Text forms, ids and flat rows of settings, and changes by path."""

import functools
import hashlib
import json
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from sparsity_lab.settings import short_form
from sparsity_lab.settings.errors import check_that, inside, join
from sparsity_lab.settings.setting import Setting, default_of, field_hints, kept, kinds, unknown_field

AnySetting = TypeVar("AnySetting", bound=Setting)

_PLAIN = (str, int, float, bool)
"""The types of most values. They are checked first, because sweeps hold many thousands of values."""


def to_data(value: Any) -> Any:
    """Plain data (dicts, lists, numbers, strings, None) with kind, version and every field of every setting.

    >>> to_data(Recent(width=8))
    {'kind': 'Recent', 'version': 1, 'width': 8}
    """
    return _data(value, _all_of)


def _all_of(setting: Setting) -> dict[str, Any]:
    fields = {name: to_data(getattr(setting, name)) for name in field_hints(type(setting))}
    return {"kind": setting.kind, "version": setting.version, **fields}


def _data(value: Any, of_setting: Callable[[Setting], Any]) -> Any:
    """Plain data of a value, with ``of_setting`` applied to the settings in it."""
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, Setting):
        return of_setting(value)
    if isinstance(value, tuple):
        return [_data(item, of_setting) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _data(item, of_setting) for key, item in value.items()}
    return value


def canonical_json(setting: Setting) -> str:
    """The unique JSON text of a setting: sorted keys, no spaces, all defaults and versions.

    >>> from sparsity_lab.generators import Recent
    >>> canonical_json(Recent(width=4))
    '{"kind":"Recent","version":1,"width":4}'
    """
    parts = {name: getattr(setting, name) for name in field_hints(type(setting))}
    texts = {"kind": _json(setting.kind), "version": _json(setting.version)} | {
        name: kept(value, "canonical_json", canonical_json) if isinstance(value, Setting) else _json(to_data(value))
        for name, value in parts.items()
    }
    return "{" + ",".join(f"{_json(name)}:{text}" for name, text in sorted(texts.items())) + "}"


def identifier(setting: Setting) -> str:
    """Sixteen hexadecimal digits: a BLAKE2b hash of all values that decide the behavior of a setting.

    The hash is over JSON with its kind, its version, and the fields that are not defaults, recursively for the
    settings inside it. This keeps ids the same across releases:

    - A new field changes no id. In turn, a class whose defaults change must raise its ``version``.
    - A renamed kind or field enters under its first name (``former_kinds``, ``former_fields``).
    - Fields in ``not_in_id`` or ``outside_id`` never enter.

    If a default holds a setting whose version was raised, it has a new meaning, and enters like any other value.

    >>> identifier(Planted(k=3)) == identifier(Planted())
    True
    >>> identifier(Planted(k=3)) == identifier(Planted(k=2))
    False
    """
    return hashlib.blake2b(_json(_identity_of(setting)).encode(), digest_size=8).hexdigest()


def _json(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _identity(value: Any) -> Any:
    """The part of a value that enters an id, as plain data."""
    return _data(value, _kept_identity)


def _kept_identity(setting: Setting) -> dict[str, Any]:
    # Most parts are the same in many runs. The key has the versions, because a class can raise its version.
    return kept(setting, ("identity", *(cls.version for cls in _classes(setting))), _identity_of)


def _identity_of(setting: Setting) -> dict[str, Any]:
    """The part of a setting that enters an id."""
    cls = type(setting)
    first_names = {new: old for old, new in reversed(list(cls.former_fields.items()))}
    fields, outside = {}, (*cls.not_in_id, *setting.outside_id)
    for name in field_hints(cls):
        item, default = getattr(setting, name), default_of(cls.__dataclass_fields__[name])  # type: ignore[attr-defined]
        if name not in outside and (_decides(item, default) or _is_raised(item)):
            fields[first_names.get(name, name)] = _identity(item)
    return {"kind": next(iter(cls.former_kinds), cls.kind), "version": cls.version, **fields}


def _decides(value: Any, default: Any) -> bool:
    """Whether a value differs from the default in a part that enters ids, unlike the device of a training."""
    return bool(value != default) and _identity(value) != _identity(default)


def _is_raised(value: Any) -> bool:
    """Whether a setting in a value, or the value itself, has a version above its first."""
    return not isinstance(value, _PLAIN) and any(cls.version > 1 for cls in _classes(value))


def _classes(value: Any) -> frozenset[type[Setting]]:
    """The classes of all settings in a value."""
    return kept(value, "classes", _classes_in) if isinstance(value, Setting) else _classes_in(value)


def _classes_in(value: Any) -> frozenset[type[Setting]]:
    return frozenset(type(one) for one in settings_in(value))


def settings_in(value: Any) -> Iterator[Setting]:
    """A setting and all settings inside it, or all settings in a tuple or a mapping.

    >>> [type(one).__name__ for one in settings_in(Planted())]
    ['Planted', 'Uniform', 'Parity']
    """
    if isinstance(value, Setting):
        yield value
        value = tuple(getattr(value, name) for name in field_hints(type(value)))
    elif isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for item in value:
            yield from settings_in(item)


def with_each(setting: AnySetting, change: Callable[[Setting], Setting]) -> AnySetting:
    """A copy with ``change`` applied to each setting inside it, the innermost first, and to the setting itself last.

    >>> def widened(one: Setting) -> Setting:
    ...     return Recent(width=16) if isinstance(one, Recent) else one
    >>> print(with_each(Planted(locality=Recent(width=8)), widened))
    Planted(locality=Recent(width=16))
    """

    def changed(value: Any) -> Any:
        if isinstance(value, Setting):
            return with_each(value, change)
        if isinstance(value, tuple):
            return tuple(changed(item) for item in value)
        if isinstance(value, Mapping):
            return {key: changed(item) for key, item in value.items()}
        return value

    fields = {name: getattr(setting, name) for name in field_hints(type(setting))}
    new = {name: made for name, value in fields.items() if (made := changed(value)) != value}
    return cast(AnySetting, change(setting.replace(**new) if new else setting))


Row = dict[str, str | int | float | bool | None]


def flatten(setting: Setting, prefix: str = "", known: dict[tuple[str, int], Row] | None = None) -> Row:
    """One flat row of a setting, for tables: from dotted paths to values.

    A nested setting has its short form under its own path, and its fields below it. Tuples and mappings have their
    short form.

    Args:
        known: a cache of the rows of nested settings, by path and ``id``. Most parts are the same in many runs.

    >>> from sparsity_lab.generators import Planted
    >>> row = flatten(Planted(k=2))
    >>> row["k"], row["locality"]
    (2, 'Uniform()')
    """
    known, row = {} if known is None else known, Row()
    for name in field_hints(type(setting)):
        path, value = join(prefix, name), getattr(setting, name)
        if value is None or isinstance(value, _PLAIN):
            row[path] = value
        elif isinstance(value, Setting):
            if (key := (path, id(value))) not in known:
                known[key] = {path: str(value), **flatten(value, path, known)}
            row |= known[key]
        elif isinstance(value, tuple | Mapping):
            row[path] = short_form.write(value)
        else:
            row[path] = value
    return row


def column_types(
    setting: Setting, prefix: str = "", known: dict[tuple[str, int], dict[str, type]] | None = None
) -> dict[str, type]:
    """The type of each value in ``flatten(setting)``: str, int, float or bool.

    It is the type of the field in all registered classes of its family, and never that of the value. So frames of
    different runs have columns of the same types. An integer in one class and a float in another class become a
    float. All other mixtures, tuples and settings are text. ``known`` is as for ``flatten``.

    >>> from sparsity_lab.generators import Planted
    >>> types = column_types(Planted())
    >>> types["k"], types["noise"], types["locality"]
    (<class 'int'>, <class 'float'>, <class 'str'>)
    """
    found: dict[str, type] = {}
    known = {} if known is None else known
    classes = kinds(setting.family).values() if hasattr(setting, "family") else ()
    for name in field_hints(type(setting)):
        of_name = {_scalar(field_hints(cls)[name]) for cls in (type(setting), *classes) if name in field_hints(cls)}
        found[path := join(prefix, name)] = _common(of_name)
        if isinstance(value := getattr(setting, name), Setting):
            if (key := (path, id(value))) not in known:
                known[key] = column_types(value, path, known)
            found |= known[key]
    return found


@functools.cache
def _scalar(hint: Any) -> type:
    """The type of a column that holds all values of the hint."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _common({_scalar(argument) for argument in arguments if argument is not type(None)})
    if origin is Literal:
        return _common({type(argument) for argument in arguments})
    return hint if hint in (str, int, float, bool) else str


def _common(found: set[type]) -> type:
    return float if found == {int, float} else found.pop() if len(found) == 1 else str


def replace_at(setting: AnySetting, path: str, value: Any) -> AnySetting:
    """A copy with the field at a dotted path changed: ``replace_at(run, "task.locality", "Recent(width=8)")``.

    The value can be an object, plain data or the short form.

    >>> print(replace_at(Planted(k=2), "locality", "Recent(width=8)"))
    Planted(k=2, locality=Recent())

    Raises:
        SettingError: no such field, or a value that does not fit.
    """
    name, _, rest = path.partition(".")
    name = setting.former_fields.get(name, name)
    hints = field_hints(type(setting))
    if name not in hints:
        raise unknown_field(type(setting), name, path)
    if rest:
        part = getattr(setting, name)
        check_that(isinstance(part, Setting), path, f"a setting with fields at {name!r}", part)
        with inside(name):
            value = replace_at(part, rest, value)
    return setting.replace(**{name: value})
