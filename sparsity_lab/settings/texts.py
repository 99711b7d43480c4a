"""Texts, ids and flat rows of settings, and changes by path."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from sparsity_lab.settings import short_form
from sparsity_lab.settings.errors import SettingError, join
from sparsity_lab.settings.setting import Setting, field_hints

__all__ = ["canonical_json", "flatten", "identifier", "replace_at", "to_data"]

AnySetting = TypeVar("AnySetting", bound=Setting)

_PLAIN = (str, int, float, bool)
"""Most of all values: asked for first, since sweeps hold many thousands."""


def to_data(value: Any) -> Any:
    """Plain data (dicts, lists, numbers, strings, None) with kind, version and every field of every setting."""
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, Setting):
        fields = {name: to_data(getattr(value, name)) for name in field_hints(type(value))}
        return {"kind": value.kind, "version": value.version, **fields}
    if isinstance(value, tuple):
        return [to_data(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_data(item) for key, item in value.items()}
    return value


def canonical_json(setting: Setting, *, without: tuple[str, ...] = ()) -> str:
    """The one JSON text of a setting: sorted keys, no spaces, all defaults and versions.

    Args:
        without: names of fields left out wherever they occur in a setting of the same kind (a run's
            ``evaluation``, for instance, in the run itself and in its parents).
    """

    def prune(data: Any) -> Any:
        if not without or isinstance(data, _PLAIN):
            return data
        if isinstance(data, dict):
            hidden = without if data.get("kind") == setting.kind else ()
            return {key: prune(item) for key, item in data.items() if key not in hidden}
        return [prune(item) for item in data] if isinstance(data, list) else data

    return json.dumps(prune(to_data(setting)), sort_keys=True, separators=(",", ":"), allow_nan=False)


def identifier(setting: Setting, *, without: tuple[str, ...] = ()) -> str:
    """Sixteen hexadecimal digits: a BLAKE2b hash of ``canonical_json``."""
    return hashlib.blake2b(canonical_json(setting, without=without).encode(), digest_size=8).hexdigest()


def flatten(setting: Setting, prefix: str = "") -> dict[str, str | int | float | bool | None]:
    """One flat row of a setting, for tables: dotted path to value.

    A nested setting gives its short form under its own path and its fields below it; tuples and mappings
    give theirs.
    """
    row: dict[str, str | int | float | bool | None] = {}
    for name in field_hints(type(setting)):
        path, value = join(prefix, name), getattr(setting, name)
        if value is None or isinstance(value, _PLAIN):
            row[path] = value
        elif isinstance(value, Setting):
            row[path] = str(value)
            row |= flatten(value, path)
        elif isinstance(value, tuple | Mapping):
            row[path] = short_form.write(value)
        else:
            row[path] = value
    return row


def replace_at(setting: AnySetting, path: str, value: Any) -> AnySetting:
    """A copy with the field at a dotted path changed: ``replace_at(run, "task.locality", "Recent(width=8)")``.

    The value may be an object, plain data or the short form.

    Raises:
        SettingError: no such field, or a value that does not fit.
    """
    name, _, rest = path.partition(".")
    hints = field_hints(type(setting))
    if name not in hints:
        raise SettingError(path, f"a field of {setting.kind}", name, hints)
    if rest:
        inner = getattr(setting, name)
        if not isinstance(inner, Setting):
            raise SettingError(path, f"a setting with fields at {name!r}", inner)
        try:
            value = replace_at(inner, rest, value)
        except SettingError as error:
            raise error.inside(name) from None
    return setting.replace(**{name: value})
