"""Ids: no later release changes them, and what was renamed can still be read."""

import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

import sparsity_lab
from sparsity_lab.generators import Planted
from sparsity_lab.kernels import NormalizedActivation, ShiftedSparse
from sparsity_lab.models import Decoder, PoSE, RoPE
from sparsity_lab.settings import (
    Setting,
    SettingError,
    families,
    from_data,
    from_text,
    identifier,
    kinds,
    register,
    replace_at,
    settings_in,
    short_form,
    to_data,
)
from sparsity_lab.settings.setting import _registry, default_of
from sparsity_lab.sweeps.config_file import load_sweep
from sparsity_lab.training import RunConfig, Training

PINNED = Path(__file__).with_name("pinned_defaults.json")

for _found in pkgutil.walk_packages(sparsity_lab.__path__, "sparsity_lab."):
    if not _found.name.endswith("__main__"):
        importlib.import_module(_found.name)

CLASSES = [
    cls
    for family in families()
    for cls in kinds(family).values()
    if cls.__module__.partition(".")[0] == sparsity_lab.__name__
]
"""Every class that the package registers."""
EXAMPLES = [example for cls in CLASSES for example in cls.examples()]


class Shape(Setting, family="test shape"):
    """A family for these tests."""


@register
class Square(Shape):
    side: float = 1.0
    inner: Shape | None = None


@register
class Box(Shape):
    content: Shape = Square()
    color: str = "red"
    place: str = "here"

    not_in_id: ClassVar[tuple[str, ...]] = ("place",)


@pytest.fixture(autouse=True)
def _registry_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_registry, "test shape", dict(_registry["test shape"]))


def with_a_field_more(cls: type[Setting], **options: Any) -> type[Setting]:
    """The class as a later release has it."""
    body = {"__annotations__": {"later": int}, "later": 0, "__module__": cls.__module__, **options}
    return dataclasses.dataclass(frozen=True, kw_only=True)(type(cls.__name__, (cls,), body))


def fields_of(setting: Setting) -> dict[str, Any]:
    return {field.name: getattr(setting, field.name) for field in dataclasses.fields(cast(Any, setting))}


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_field_that_is_added_later_changes_no_id(example: Setting) -> None:
    later = with_a_field_more(type(example))
    assert identifier(later(**fields_of(example))) == identifier(example)
    assert identifier(later(**fields_of(example), later=1)) != identifier(example)


def test_a_field_that_is_added_later_changes_no_id_of_what_holds_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel, in the model of a run, and in its parent's."""
    config = RunConfig(task=Planted(), model=Decoder(kernel=ShiftedSparse(group=8)))
    child = config.replace(parent=config, training=Training(steps=5))
    later = with_a_field_more(ShiftedSparse)
    with monkeypatch.context() as patch:
        patch.setitem(_registry["kernel"], "ShiftedSparse", later)
        again = from_data(RunConfig, to_data(child))
        assert [type(setting).__name__ for setting in settings_in(again)].count("ShiftedSparse") == 2
        assert all(hasattr(setting, "later") for setting in settings_in(again) if isinstance(setting, ShiftedSparse))
        assert again.id == child.id
        assert replace_at(again, "parent.model.kernel.later", 1).id != child.id


def test_a_field_whose_default_is_a_setting_changes_no_id() -> None:
    body = {"__annotations__": {"content": Shape, "more": Shape}, "more": Square(), "__module__": Box.__module__}
    later = dataclasses.dataclass(frozen=True, kw_only=True)(type("Box", (Box,), body))
    assert identifier(later(color="blue")) == identifier(Box(color="blue"))


@pytest.mark.committed
def test_ids_are_pinned() -> None:
    """Ids of published runs must stay what they were."""
    assert identifier(Square()) == "cc8c7790d03774a8"
    assert identifier(Box(content=Square(side=2.0), color="blue")) == "0505512c472ec913"
    child = RunConfig(task=Planted(k=2), data_seed=3, parent=RunConfig(task=Planted(k=2), model=Decoder(d_model=32)))
    assert child.id == "e32ee26736586667"
    assert child.evaluation_id == "fa9f34fab693333d"


def test_a_raised_version_changes_the_ids_of_all_that_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [Square(), Box(), Box(content=Square(inner=Box()))]
    before = [identifier(setting) for setting in settings]
    assert len(set(before)) == 3
    untouched = identifier(Box(content=Box(content=Box()).replace(content=Square())))
    monkeypatch.setattr(Square, "version", 2)
    assert all(identifier(setting) != old for setting, old in zip(settings, before, strict=True))
    assert untouched != identifier(Box(content=Box()))


def test_what_is_not_in_an_id_is_nowhere_in_it() -> None:
    assert identifier(Box(place="there")) == identifier(Box())
    assert identifier(Box(content=Box(place="there"))) == identifier(Box(content=Box()))
    assert Box(place="there") != Box()


def test_where_a_run_is_computed_is_not_in_its_id_though_all_else_is_at_its_default() -> None:
    """A default that differs in its device alone is still the default: in a run, its parent and its grandparent."""
    here, there = (RunConfig(task=Planted(), training=training) for training in (Training(), Training(device="cuda")))
    for _ in range(3):
        assert here != there
        assert here.id == there.id
        here, there = RunConfig(task=Planted(), parent=here), here.replace(parent=there, training=Training(threads=3))

    @register
    class Outer(Shape):
        boxes: tuple[Shape, ...] = (Box(),)
        table: Mapping[str, Shape] = dataclasses.field(default_factory=lambda: {"a": Box()})

    elsewhere = Box(place="there")
    assert identifier(Outer(boxes=(elsewhere,), table={"a": elsewhere})) == identifier(Outer())
    assert identifier(Outer(boxes=(elsewhere, elsewhere))) != identifier(Outer())


# --- what was renamed


def renamed() -> type[Setting]:
    """``Box``, which a later release calls otherwise, and its field ``color`` too."""

    class Crate(Shape):
        content: Shape = Square()
        paint: str = "red"

        kind = "Crate"
        former_kinds = ("Box", "Bx")
        former_fields: ClassVar[Mapping[str, str]] = {"color": "paint"}

    del _registry["test shape"]["Box"]
    return register(Crate)


def test_a_renamed_kind_and_field_keep_the_id_and_are_read() -> None:
    old, data = identifier(Box(color="blue")), {"kind": "Box", "version": 1, "color": "blue"}
    crate = renamed()(paint="blue")
    assert identifier(crate) == old
    for read in (
        from_data(Shape, data),
        from_data(Shape, data | {"kind": "Bx"}),
        from_text(Shape, "Box(color='blue')"),
        from_text(Shape, "Crate(color='blue')"),
        replace_at(type(crate)(), "color", "blue"),
    ):
        assert read == crate
    assert str(crate) == "Crate(paint='blue')"
    with pytest.raises(SettingError, match="paint: given twice, once under its old name 'color'"):
        from_text(Shape, "Crate(color='blue', paint='red')")
    assert "Box" not in kinds("test shape")


def test_names_that_were_a_kinds_cannot_be_anothers() -> None:
    renamed()
    for name, former in (("Box", ()), ("Other", ("Bx",)), ("Other", ("Square",))):
        body = {"__module__": "elsewhere", "__qualname__": name, "former_kinds": former}
        with pytest.raises(TypeError, match=f"the test shape kind '{(*former, name)[0]}' is taken by"):
            register(type(name, (Shape,), body))
    # What a class was called, its subclasses were not.
    assert register(type("Bigger", (kinds("test shape")["Crate"],), {"__module__": "elsewhere"})).former_kinds == ()


@pytest.mark.parametrize("fields", [{"side": "inner"}, {"edge": "sides"}])
def test_a_former_field_is_a_field_no_more_and_has_become_one(fields: dict[str, str]) -> None:
    body = {"__module__": "elsewhere", "__annotations__": {"side": float, "inner": float}, "side": 1.0, "inner": 1.0}
    with pytest.raises(TypeError, match="cannot have become"):
        register(type("Wrong", (Shape,), body | {"former_fields": fields}))


def test_names_of_earlier_releases_are_read(tmp_path: Path) -> None:
    kernel = NormalizedActivation(l1=False)
    model = Decoder(index_sampling=PoSE(target=64), kernel=kernel, position=RoPE())
    text = "Decoder(schedule=PoSE(target=64), kernel=NormalisedActivation(l1=False))"
    assert from_text(Decoder, text) == model
    assert from_text(ShiftedSparse, "ShiftedSparse(group=8, sparse_in_use=True)").sparse_at_inference
    (tmp_path / "old.toml").write_text(
        '[base]\ntask = "Planted"\n'
        '[base.model]\nkind = "Decoder"\nkernel = {kind = "NormalisedActivation", l1 = false}\n'
        '[grid]\n"model.schedule" = ["PoSE(target=64)"]\n'
        "[base.evaluation]\nlengths = [8, 16, 24]\n"
    )
    (run,) = load_sweep(tmp_path / "old.toml").runs
    assert run.model == model


# --- defaults


def pinned(cls: type[Setting]) -> dict[str, Any]:
    """The version and the defaults of a class, as the file holds them; None for a field that has none."""
    defaults = {field.name: default_of(field) for field in dataclasses.fields(cast(Any, cls))}
    return {
        "version": cls.version,
        "defaults": {
            name: None if value is dataclasses.MISSING else short_form.write(value)
            for name, value in defaults.items()
        },
    }


def changes(recorded: Mapping[str, Any]) -> Iterator[str]:
    """What would let two releases give one id to different settings."""
    known = {f"{cls.family}.{kind}": cls for cls in CLASSES for kind in (*cls.former_kinds, cls.kind)}
    for name, before in recorded.items():
        cls = known.get(name)
        if cls is None:
            yield f"{name} is gone: name it in the `former_kinds` of what it is now"
            continue
        now = pinned(cls)
        if now["version"] > before["version"]:
            continue
        for field, default in before["defaults"].items():
            new = cls.former_fields.get(field, field)
            if new not in now["defaults"]:
                yield f"{name}.{field} is gone: raise the version, or name it in `former_fields`"
            elif now["defaults"][new] != default:
                yield f"{name}.{field} was {default} and is {now['defaults'][new]}: raise the version"


def test_a_changed_default_raises_the_version() -> None:
    recorded = json.loads(PINNED.read_text())
    assert list(changes(recorded)) == []
    missing = [name for name in current() if name not in recorded or current()[name] != recorded[name]]
    assert missing == [], "new kinds or fields: `python tests/test_identity.py` records them"


def test_a_default_that_changes_is_seen() -> None:
    recorded = json.loads(PINNED.read_text())
    recorded["training.Training"]["defaults"]["steps"] = "299"
    recorded["kernel.Nothing"] = {"version": 1, "defaults": {}}
    recorded["model.Decoder"]["defaults"]["num_layer"] = "2"
    assert list(changes(recorded)) == [
        "model.Decoder.num_layer is gone: raise the version, or name it in `former_fields`",
        "training.Training.steps was 299 and is 300: raise the version",
        "kernel.Nothing is gone: name it in the `former_kinds` of what it is now",
    ]
    recorded["training.Training"]["version"] = 0
    assert len(list(changes(recorded))) == 2


def current() -> dict[str, Any]:
    return {f"{cls.family}.{cls.kind}": pinned(cls) for cls in CLASSES}


if __name__ == "__main__":
    if found := list(changes(json.loads(PINNED.read_text()) if PINNED.exists() else {})):
        raise SystemExit("\n".join(found))
    PINNED.write_text(json.dumps(current(), indent=1, ensure_ascii=False) + "\n")
