"""Settings: frozen dataclasses that carry their own behaviour.

Everything a user chooses (a task, a locality law, a kernel, a training recipe) is a *setting*: an immutable
object with a ``kind`` (its name in files and on the command line) and a ``version`` (raised when its behaviour
changes). This module gives them

- ``register``: one decorator line makes a class a setting of its family and enters it in the registry;
- checks: field types when the object is made, and the class's own ``check``;
- three texts that all come back to an equal object: canonical JSON, plain data for JSON and TOML files, and the
  short form ``Planted(k=3, locality=Recent(width=8))`` that tables, figures and the command line use;
- ids: a hash of the canonical JSON, defaults and versions included;
- errors that name the field by its path, what was expected, what came, and the nearest known name.

It imports nothing else from this package.
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import json
import numbers
import types
from abc import ABC
from collections.abc import Iterable, Mapping
from typing import (
    Any,
    ClassVar,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import ConfigDict, TypeAdapter, ValidationError

__all__ = [
    "Setting",
    "SettingError",
    "Shown",
    "canonical_json",
    "families",
    "flatten",
    "from_data",
    "from_text",
    "identifier",
    "kinds",
    "register",
    "replace_at",
    "to_data",
]


class SettingError(ValueError):
    """A setting that cannot be: one line with the field's path, what was expected, and what came.

    Attributes:
        path: dotted path of the field, as in ``task.locality.width``; empty for the object itself.
        expected: what would have been right, in words.
        got: what came, as shown to the user.
        known: the names that would have been right, if it is a matter of names.
    """

    def __init__(self, path: str, expected: str, got: object, known: Iterable[str] = ()) -> None:
        self.path = path
        self.expected = expected
        self.got = got if isinstance(got, Shown) else Shown(repr(got))
        self.known = tuple(known)
        super().__init__(path, expected, self.got, self.known)

    def __str__(self) -> str:
        name = str(self.got).strip("'\"")
        nearest = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5) if name != "nothing" else []
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        known = f" (one of {', '.join(self.known)})" if self.known else ""
        where = f"{self.path}: " if self.path else ""
        return f"{where}expected {self.expected}{known}, got {self.got}{hint}"

    def inside(self, path: str) -> "SettingError":
        """The same error seen from an enclosing object, where this one sits at ``path``."""
        return SettingError(_join(path, self.path), self.expected, self.got, self.known)


AnySetting = TypeVar("AnySetting", bound="Setting")


class Shown(str):
    """Text that is already in its shown form."""

    __slots__ = ()


def _join(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer and inner else outer or inner


class Setting(ABC):
    """Base of all settings.

    A family is a direct or indirect subclass that names itself: ``class Law(Setting, family="law")``. Its members
    are made with ``@register``. Fields are checked and normalised when an object is made: an int given for a float
    becomes a float, a list becomes a tuple, so that equal settings have equal ids.
    """

    family: ClassVar[str]
    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def __init_subclass__(cls, *, family: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family is not None:
            cls.family = family

    def __post_init__(self) -> None:
        for name, hint in _field_hints(type(self)).items():
            value = getattr(self, name)
            conformed = _conform(hint, value, name)
            if conformed is not value:
                object.__setattr__(self, name, conformed)
        self.check()

    def check(self) -> None:
        """Raise ``SettingError`` if the fields do not fit together. Field names are paths from this object."""

    def __str__(self) -> str:
        """Short form: the kind with the fields that differ from their defaults. ``from_text`` reads it back."""
        shown = [
            f"{field.name}={_short(getattr(self, field.name))}"
            for field in dataclasses.fields(cast(Any, self))
            if getattr(self, field.name) != _default(field)
        ]
        return f"{self.kind}({', '.join(shown)})"

    def replace(self: AnySetting, **changes: Any) -> AnySetting:
        """A copy with some fields changed, checked again."""
        unknown = set(changes) - set(_field_hints(type(self)))
        if unknown:
            raise SettingError(
                sorted(unknown)[0], f"a field of {self.kind}", sorted(unknown)[0], _field_hints(type(self))
            )
        return dataclasses.replace(cast(Any, self), **changes)  # type: ignore[no-any-return]


_registry: dict[str, dict[str, type[Setting]]] = {}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def register(cls: type[AnySetting]) -> type[AnySetting]:
    """Class decorator: make ``cls`` a frozen keyword-only dataclass and enter it in its family under its kind.

    The kind is the class name unless the class sets ``kind`` itself. Registering the same qualified name again is
    allowed, so that a module can be reloaded in a notebook.

    Raises:
        TypeError: another class already has this kind in this family, or the class has no family.
    """
    if not hasattr(cls, "family"):
        raise TypeError(f"{cls.__qualname__} belongs to no family: one of its bases must be declared with family=")
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    if "kind" not in cls.__dict__:
        cls.kind = cls.__name__
    members = _registry.setdefault(cls.family, {})
    other = members.get(cls.kind)
    if other and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(
            f"the {cls.family} kind {cls.kind!r} is taken by {other.__module__}.{other.__qualname__}; "
            f"give {cls.__module__}.{cls.__qualname__} another name or set its `kind`"
        )
    members[cls.kind] = cls
    return cls


def families() -> list[str]:
    """Names of all families that have members, sorted."""
    return sorted(_registry)


def kinds(family: str) -> dict[str, type[Setting]]:
    """The registered classes of a family by kind, sorted by kind.

    Raises:
        SettingError: no such family.
    """
    if family not in _registry:
        raise SettingError("family", "a family of settings", family, families())
    return dict(sorted(_registry[family].items()))


# --- texts and ids


def to_data(value: Any) -> Any:
    """Plain data (dicts, lists, numbers, strings, None) with kind, version and every field of every setting."""
    if isinstance(value, Setting):
        fields = {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(cast(Any, value))}
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

    A nested setting gives its short form under its own path and its fields below it; tuples and mappings of plain
    values give their JSON text.
    """
    row: dict[str, str | int | float | bool | None] = {}
    for field in dataclasses.fields(cast(Any, setting)):
        path, value = _join(prefix, field.name), getattr(setting, field.name)
        if isinstance(value, Setting):
            row[path] = str(value)
            row |= flatten(value, path)
        elif isinstance(value, tuple | Mapping):
            row[path] = _short(value)
        else:
            row[path] = value
    return row


def from_data(target: type[AnySetting], data: Any, path: str = "") -> AnySetting:
    """The setting that ``to_data`` (or a JSON or TOML file, or the short form) describes.

    Args:
        target: the family, or one class of it. A family with several kinds needs ``kind`` in the data.
        path: where ``data`` sits in its file, for errors.

    Raises:
        SettingError: an unknown kind or field, a missing or wrong value, or a version that this release does not
            know; the path says where.
    """
    return cast(AnySetting, _conform(target, data, path))


def from_text(target: type[AnySetting], text: str, path: str = "") -> AnySetting:
    """The setting that the short form describes: ``Planted(k=3, locality=Recent(width=8))`` or just ``Planted``.

    The text is parsed as literals only; nothing is evaluated.

    Raises:
        SettingError: not of that form, or as ``from_data``.
    """
    form = f"a {target.family} such as {next(iter(kinds(target.family)))}(...)"
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise SettingError(path, form, text) from None
    return from_data(target, _literal(tree, path, form), path)


def replace_at(setting: AnySetting, path: str, value: Any) -> AnySetting:
    """A copy with the field at a dotted path changed: ``replace_at(run, "task.locality", "Recent(width=8)")``.

    The value may be an object, plain data or the short form.

    Raises:
        SettingError: no such field, or a value that does not fit.
    """
    name, _, rest = path.partition(".")
    hints = _field_hints(type(setting))
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


# --- inside


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(_short(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_short(item)}" for key, item in value.items()) + "}"
    return str(value) if isinstance(value, Setting) else repr(value)


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _literal(node: ast.expr, path: str, form: str) -> Any:
    """Plain data from the short form's syntax tree: calls become ``{"kind": ..., field: ...}``."""
    match node:
        case ast.Name(id=name):
            return {"kind": name}
        case ast.Attribute(attr=name):
            return {"kind": name}
        case ast.Call(func=(ast.Name() | ast.Attribute()) as function, args=[], keywords=keywords):
            fields = {word.arg: _literal(word.value, _join(path, word.arg or ""), form) for word in keywords}
            return {**_literal(function, path, form), **fields}
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_literal(item, path, form) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {
                _literal(cast(ast.expr, k), path, form): _literal(v, path, form)
                for k, v in zip(keys, values, strict=True)
            }
        case _:
            try:
                return ast.literal_eval(node)
            except ValueError:
                raise SettingError(path, form, Shown(ast.unparse(node))) from None


@functools.cache
def _field_hints(cls: type[Setting]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cast(Any, cls))}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


def _conform(hint: Any, value: Any, path: str) -> Any:
    """``value`` as the type hint wants it; descends into settings, tuples and mappings, the rest is pydantic's."""
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Setting):
        return _conform_setting(hint, value, path)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [choice for choice in arguments if choice is not type(None)]
        sequences = [choice for choice in choices if get_origin(choice) is tuple]
        others = [choice for choice in choices if get_origin(choice) is not tuple]
        fitting = sequences if isinstance(value, list | tuple) and sequences else others
        if len(fitting) == 1:
            return _conform(fitting[0], value, path)
    if origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_conform(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        if len(arguments) == len(value):
            pairs = zip(arguments, value, strict=True)
            return tuple(_conform(inner, item, f"{path}[{i}]") for i, (inner, item) in enumerate(pairs))
        raise SettingError(path, f"{len(arguments)} values", value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _conform(arguments[1], item, _join(path, str(key))) for key, item in value.items()}
    return _conform_leaf(hint, value, path)


def _conform_leaf(hint: Any, value: Any, path: str) -> Any:
    # Scalars of numpy and its like are numbers too; files and ids want the plain kind.
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        expected = (
            message.removeprefix("Input should be ").replace("a valid ", "a ").replace("a integer", "an integer")
        )
        raise SettingError(path, expected, value) from None


def _conform_setting(target: type[Setting], value: Any, path: str) -> Setting:
    if isinstance(value, target):
        return value
    if isinstance(value, str):
        return from_text(target, value, path)
    if not isinstance(value, Mapping):
        shown = Shown(f"{value.kind}, a {value.family}") if isinstance(value, Setting) else value
        raise SettingError(path, f"a {target.family}", shown, kinds(target.family))
    known = {kind: cls for kind, cls in kinds(target.family).items() if issubclass(cls, target)}
    data = dict(value)
    if "kind" not in data and len(known) != 1:
        raise SettingError(_join(path, "kind"), f"the name of a {target.family}", Shown("nothing"), known)
    kind = data.pop("kind", next(iter(known)))
    if kind not in known:
        raise SettingError(_join(path, "kind"), f"a {target.family}", kind, known)
    cls = known[kind]
    version = data.pop("version", cls.version)
    if version != cls.version:
        raise SettingError(_join(path, "version"), f"version {cls.version} of {kind}", version)
    hints = _field_hints(cls)
    for name in data:
        if name not in hints:
            raise SettingError(_join(path, name), f"a field of {kind}", name, hints)
    for field in dataclasses.fields(cast(Any, cls)):
        if field.name not in data and _default(field) is dataclasses.MISSING:
            raise SettingError(_join(path, field.name), f"a value ({kind} needs one)", Shown("nothing"))
    conformed = {name: _conform(hints[name], item, _join(path, name)) for name, item in data.items()}
    try:
        return cls(**conformed)
    except SettingError as error:
        raise error.inside(path) from None
