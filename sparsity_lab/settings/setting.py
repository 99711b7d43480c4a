"""``Setting``, the base of all settings, and the registry of their kinds."""

import contextlib
import dataclasses
import functools
import json
from abc import ABC
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar, cast, dataclass_transform, get_args, get_type_hints

from sparsity_lab.settings import short_form
from sparsity_lab.settings.errors import LARGEST_SEED, LARGEST_WHOLE, SettingError, Shown, check_range
from sparsity_lab.settings.errors import join as join_path
from sparsity_lab.settings.fields import check_keys, conform
from sparsity_lab.settings.markup import Markup, details, element, escape, join, table
from sparsity_lab.settings.reloading import renew

AnySetting = TypeVar("AnySetting", bound="Setting")
Made = TypeVar("Made")


class Setting(ABC):
    """Base of all settings.

    A family is a direct or indirect subclass with a family name: ``class Law(Setting, family="law")``. ``@register``
    makes a class a member. Fields are checked and normalized when an object is made: an int given for a float becomes
    a float, a list becomes a tuple, and a dict becomes a ``FrozenMapping``. So equal settings have equal ids, and no
    setting can change.

    Attributes:
        family: name of the family.
        kind: name in files and on the command line; the class name unless the class sets it.
        version: raise it when the behavior of the class or one of its defaults changes.
        former_kinds: earlier names of the kind, the oldest first; they can still be read.
        former_fields: current names of fields by their earlier names; these can still be read.
        not_in_id: fields that do not affect results, such as the device of a computation; see ``identifier``.
        largest: the largest integer in its fields, except seeds. Families whose numbers are sizes have a smaller
            limit, so that impossible sizes are refused before anything is made. Floats are bounded too
            (``LARGEST_NUMBER``).
    """

    family: ClassVar[str]
    kind: ClassVar[str]
    version: ClassVar[int] = 1
    former_kinds: ClassVar[tuple[str, ...]] = ()
    former_fields: ClassVar[Mapping[str, str]] = {}
    not_in_id: ClassVar[tuple[str, ...]] = ()
    largest: ClassVar[int] = LARGEST_WHOLE

    def __init_subclass__(cls, *, family: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family is not None:
            cls.family = family

    def __post_init__(self) -> None:
        for name, hint in field_hints(type(self)).items():
            value = getattr(self, name)
            conformed = conform(hint, value, name)
            if conformed is not value:
                object.__setattr__(self, name, conformed)
            check_range(conformed, name, LARGEST_SEED if name.endswith("seed") else self.largest)
        self.check()

    @property
    def outside_id(self) -> tuple[str, ...]:
        """Fields of this setting that do not enter its id, in addition to ``not_in_id``. An example is the path of a
        text whose hash is another field."""
        return ()

    @classmethod
    def examples(cls) -> "tuple[Self, ...]":
        """Instances that together cover every option; the shared tests run over them. The default is one instance
        with all defaults, so a class with a required field must override this."""
        return (cls(),)

    def check(self) -> None:
        """Raise ``SettingError`` if the fields do not fit together. Field names are paths from this object."""

    def __getstate__(self) -> dict[str, Any]:
        """Only the fields, for pickles and copies. Values computed from them and cached can be large."""
        return {name: getattr(self, name) for name in field_hints(type(self))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        """The short form: the kind with the fields that are not defaults. ``from_text`` reads it back."""
        shown = [
            f"{field.name}={short_form.write(getattr(self, field.name))}"
            for field in dataclasses.fields(cast(Any, self))
            if getattr(self, field.name) != default_of(field)
        ]
        return f"{self.kind}({', '.join(shown)})"

    def _repr_html_(self) -> Markup:
        """For notebooks: the short form, which opens to all fields. Fields that are not defaults are bold."""
        rows = [
            (field.name if value == default_of(field) else element("b", field.name), _shown(value))
            for field in dataclasses.fields(cast(Any, self))
            for value in [getattr(self, field.name)]
        ]
        return details(element("code", str(self)), table([self.family, f"{self.kind}, version {self.version}"], rows))

    def replace(self: AnySetting, **changes: Any) -> AnySetting:
        """A copy with some fields changed, checked again.

        Raises:
            SettingError: no such field, or a value that does not fit.
        """
        hints = field_hints(type(self))
        for name in changes:
            if name not in hints:
                raise unknown_field(type(self), name, name)
        return dataclasses.replace(cast(Any, self), **changes)  # type: ignore[no-any-return]

    @classmethod
    def _conformed(cls, value: Any, path: str) -> Self:
        """``fields.conform`` with this class as the hint."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return from_text(cls, value, path)
        if not isinstance(value, Mapping):
            if isinstance(value, type) and issubclass(value, cls):
                shown = Shown(f"the class {value.__name__}")
                raise SettingError(path, f"a {cls.family}", shown, meant=f"{value.__name__}()")
            got = Shown(f"{value.kind}, a {value.family}") if isinstance(value, Setting) else value
            raise SettingError(path, f"a {cls.family}", got, kinds(cls.family))
        return _made(cls, value, path)


_registry: dict[str, dict[str, type[Setting]]] = {}
_reloads: list[type[Setting]] = []
"""Classes that were defined again."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def register(cls: type[AnySetting]) -> type[AnySetting]:
    """Class decorator: make ``cls`` a frozen keyword-only dataclass and enter it in its family under its kind.

    The kind is the class name unless the class sets ``kind`` itself. When a notebook reloads a module, the class that
    was registered before gets the contents of the new class and is returned in its place. So imported names and
    existing objects use the new code. The same holds for a class that moves from a notebook cell to a module.

    An unknown field raises a ``SettingError`` that names the nearest field, not the ``TypeError`` of a dataclass.

    >>> class Shape(Setting, family="shape for an example"):
    ...     pass
    >>> @register
    ... class Circle(Shape):
    ...     radius: float = 1.0
    >>> Circle(radius=2)
    Circle(radius=2.0)

    Raises:
        TypeError: another class has or had this kind in this family, or the class has no family. Or a former field is
            still a field, or its new name is not a field. Or a field is a mapping whose keys are neither names nor
            integers.
    """
    if not hasattr(cls, "family"):
        raise TypeError(f"{cls.__qualname__} belongs to no family: one of its bases must be declared with family=")
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    _refuse_unknown_fields(cls)
    if "kind" not in cls.__dict__:
        cls.kind = cls.__name__
    if "former_kinds" not in cls.__dict__:
        cls.former_kinds = ()
    _check_names(cls)
    with contextlib.suppress(NameError):  # for names defined later in the module; then it is checked on first use
        field_hints(cls)
    members = _registry.setdefault(cls.family, {})
    if other := members.get(cls.kind):
        _reloads.append(cls)
        renew(other, cls)
        for cached in (field_hints, _required):
            cached.cache_clear()
        return cast(type[AnySetting], other)
    members[cls.kind] = cls
    return cls


def _refuse_unknown_fields(cls: type[Setting]) -> None:
    """Give the class an ``__init__`` that suggests a field for an unknown name."""
    made: Callable[..., None] = cls.__init__

    @functools.wraps(made)
    def __init__(self: Setting, *args: Any, **fields: Any) -> None:  # noqa: N807
        known = type(self).__dataclass_fields__  # type: ignore[attr-defined]
        for name in fields:
            if name not in known:
                raise unknown_field(type(self), name, name)
        made(self, *args, **fields)

    cls.__init__ = __init__  # type: ignore[method-assign, assignment]


def unknown_field(cls: type[Setting], name: Any, path: str) -> SettingError:
    """The error for a field that a class does not have. If a part of the class has such a field, the error suggests
    its path: ``task.k`` for the k of a run."""
    inner = [f"{outer}.{name}" for outer, hint in field_hints(cls).items() if name in _fields_below(hint)]
    return SettingError(path, f"a field of {cls.kind}", name, field_hints(cls), next(iter(inner), None))


def _fields_below(hint: Any) -> set[str]:
    """Names of the fields that a setting in this field can have."""
    families = [one for one in (hint, *get_args(hint)) if isinstance(one, type) and issubclass(one, Setting)]
    members = [kind for one in families if hasattr(one, "family") for kind in kinds(one.family).values()]
    return {name for kind in members for name in field_hints(kind)}


def _check_names(cls: type[Setting]) -> None:
    """Raise ``TypeError`` if a name of the kind, or a former name of a field, is taken."""
    for kind in (cls.kind, *cls.former_kinds):
        other = _known(cls.family, kind)
        if other and (other.__qualname__ != cls.__qualname__ or other.__module__ not in (cls.__module__, "__main__")):
            raise TypeError(
                f"the {cls.family} kind {kind!r} is taken by {other.__module__}.{other.__qualname__}; "
                f"give {cls.__module__}.{cls.__qualname__} another name or set its `kind`"
            )
    fields = {field.name for field in dataclasses.fields(cast(Any, cls))}
    for old, new in cls.former_fields.items():
        if old in fields or new not in fields:
            raise TypeError(f"{cls.__qualname__} has fields {sorted(fields)}: {old!r} cannot have become {new!r}")


def _known(family: str, kind: str) -> type[Setting] | None:
    """The class of a family that has or had this kind."""
    members = _registry.get(family, {})
    return members.get(kind) or next((cls for cls in members.values() if kind in cls.former_kinds), None)


def is_registered(cls: type[Setting]) -> bool:
    """Whether this class is the registered class of its kind.

    >>> is_registered(Planted)
    True
    """
    return _registry.get(cls.family, {}).get(cls.kind) is cls


def families() -> list[str]:
    """Names of all families that have members, sorted.

    >>> "kernel" in families()
    True
    """
    return sorted(_registry)


def kinds(family: str) -> dict[str, type[Setting]]:
    """The registered classes of a family by kind, sorted by kind.

    >>> kinds("kernel")["Softmax"] is Softmax
    True

    Raises:
        SettingError: there is no such family.
    """
    if family not in _registry:
        raise SettingError("family", "a family of settings", family, families())
    return dict(sorted(_registry[family].items()))


def from_data(target: type[AnySetting], data: Any, path: str = "") -> AnySetting:
    """The setting that ``to_data`` (or a JSON or TOML file, or the short form) describes.

    >>> print(from_data(Task, {"kind": "Planted", "k": 2, "locality": "Recent(width=8)"}))
    Planted(k=2, locality=Recent())

    Args:
        target: the family, or one class of it. A family with several kinds needs ``kind`` in the data.
        path: the path of ``data`` in its file, for errors.

    Raises:
        SettingError: an unknown kind or field, a missing or wrong value, or a version that this release does not
            know. The error has the path.
    """
    try:
        return target._conformed(data, path)
    except RecursionError:
        raise SettingError(path, f"a {target.family} with fewer levels of nesting", data) from None


def from_text(target: type[AnySetting], text: str, path: str = "") -> AnySetting:
    """The setting that the short form describes: ``Planted(k=3, locality=Recent(width=8))`` or just ``Planted``.

    The text is parsed as literals only; nothing is evaluated.

    >>> from_text(Task, "Planted(k=2, locality=Recent(width=8))").locality
    Recent(width=8)

    Raises:
        SettingError: the text does not have this form, or as for ``from_data``.
    """
    form = f"a {target.family} such as {next(iter(kinds(target.family)))}(...)"
    if not isinstance(text, str):
        raise SettingError(path, form, text)
    return from_data(target, short_form.read(text, path, form), path)


def with_shared_parts(target: type[Setting], items: Sequence[Any]) -> list[Any]:
    """The data of many settings of one class, for ``from_data``. Equal parts are made only once.

    Values that cannot be converted stay unchanged, so that ``from_data`` reports the error and its path.

    >>> data = with_shared_parts(Planted, [{"locality": {"kind": "Recent"}}, {"locality": {"kind": "Recent"}}])
    >>> data[0]["locality"] is data[1]["locality"]
    True
    """
    hints, made = field_hints(target), dict[tuple[str, str], Any]()

    def shared(name: str, part: Any) -> Any:
        if name not in hints or not isinstance(part, dict):
            return part
        if (key := (name, json.dumps(part))) not in made:
            try:
                made[key] = conform(hints[name], part, name)
            except (SettingError, RecursionError):
                made[key] = part
        return made[key]

    return [
        {name: shared(name, part) for name, part in item.items()} if isinstance(item, dict) else item
        for item in items
    ]


def kept(setting: AnySetting, name: Hashable, make: Callable[[AnySetting], Made]) -> Made:
    """The result of ``make`` for a setting, cached. A setting never changes, and is part of many runs."""
    texts = setting.__dict__.setdefault("_kept", {})
    # A class that is defined again can behave differently.
    key = (name, len(_reloads))
    if key not in texts:
        texts[key] = make(setting)
    return cast(Made, texts[key])


@functools.cache
def field_hints(cls: type[Setting]) -> dict[str, Any]:
    """The resolved type hint of each field, by name."""
    hints = get_type_hints(cls)
    own = {field.name: hints[field.name] for field in dataclasses.fields(cast(Any, cls))}
    for name, hint in own.items():
        try:
            check_keys(hint)
        except TypeError as error:
            raise TypeError(f"{cls.__qualname__}.{name}: {error}") from None
    return own


def _shown(value: Any) -> Markup:
    """The value of a field as HTML."""
    if isinstance(value, Setting):
        return value._repr_html_()
    if isinstance(value, tuple) and any(isinstance(item, Setting) for item in value):
        return join(_shown(item) for item in value)
    return escape(short_form.write(value))


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The default of a field; ``MISSING`` if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _made(target: type[AnySetting], value: Mapping[Any, Any], path: str) -> AnySetting:
    """The setting of a family, or of one of its classes, with this kind, version and fields."""
    data = dict(value)
    cls = _known(target.family, data["kind"]) if isinstance(data.get("kind"), str) else None
    if cls is None or not issubclass(cls, target):
        cls = _only_class(target, data, path)
    data.pop("kind", None)
    version = data.pop("version", cls.version)
    # True and 1.0 equal 1.
    if type(version) is not int or version != cls.version:
        raise SettingError(join_path(path, "version"), f"version {cls.version} of {cls.kind}", version)
    hints = field_hints(cls)
    for old, new in cls.former_fields.items():
        if old in data:
            if new in data:
                raise SettingError(join_path(path, new), f"given twice, once under its old name {old!r}")
            data[new] = data.pop(old)
    for name in data:
        if name not in hints:
            raise unknown_field(cls, name, join_path(path, str(name)))
    for name in _required(cls):
        if name not in data:
            raise SettingError(join_path(path, name), f"missing; {cls.kind} requires it")
    try:
        return cls(**data)
    except SettingError as error:
        raise error.inside(path) from None


def _only_class(target: type[AnySetting], data: Mapping[Any, Any], path: str) -> type[AnySetting]:
    """The only class that data without a kind can mean.

    Raises:
        SettingError: the data name another kind, or there are several classes.
    """
    known = {kind: cls for kind, cls in kinds(target.family).items() if issubclass(cls, target)}
    if "kind" in data:
        raise SettingError(join_path(path, "kind"), f"a {target.family}", data["kind"], known)
    if len(known) != 1:
        raise SettingError(join_path(path, "kind"), f"missing; give the name of a {target.family}", known=known)
    return next(iter(known.values()))


@functools.cache
def _required(cls: type[Setting]) -> list[str]:
    """The fields without a default."""
    return [field.name for field in dataclasses.fields(cast(Any, cls)) if default_of(field) is dataclasses.MISSING]
