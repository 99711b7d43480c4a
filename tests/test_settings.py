"""Settings: registry, texts, ids and errors."""

import copy
import dataclasses
import functools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_lab.settings import (
    FrozenMapping,
    Setting,
    SettingError,
    Shown,
    canonical_json,
    column_types,
    distinct,
    flatten,
    from_data,
    from_text,
    identifier,
    kinds,
    register,
    replace_at,
    to_data,
    with_shared_parts,
)


class Color(Setting, family="test color"):
    """A family for these tests."""


class Reloaded(Setting, family="reloaded test setting"):
    """Another one, whose members come and go."""


@register
class Red(Color):
    shade: float = 0.5


@register
class Blue(Color):
    depth: int = 3

    def check(self) -> None:
        if self.depth < 1:
            raise SettingError("depth", "at least 1", self.depth)


class Taste(Setting, family="test taste"):
    """A family of one."""


@register
class Picky(Taste):
    choice: bool | Literal["a", "b"] = False


class Picture(Setting, family="test picture"):
    """A family of settings that hold settings."""


@register
class Painting(Picture):
    title: str = "untitled"
    ground: Color = Red()
    layers: tuple[Color, ...] | Color = ()
    frame: Color | None = None
    size: tuple[int, int] = (3, 4)
    named: dict[str, Color] = dataclasses.field(default_factory=dict)
    tagged: Mapping[str, float] = dataclasses.field(default_factory=dict)
    numbered: Mapping[int, Color] = dataclasses.field(default_factory=dict)
    original: Picture | None = None
    signed: bool = False


colors = st.one_of(
    st.builds(Red, shade=st.floats(-1e6, 1e6)),
    st.builds(Blue, depth=st.integers(1, 100)),
)
whole = st.integers(-(2**31), 2**31)
letters = st.characters(codec="utf-8", exclude_characters="\0")
paintings = st.builds(
    Painting,
    title=st.text(letters, max_size=12),
    ground=colors,
    layers=st.one_of(colors, st.lists(colors, max_size=3).map(tuple)),
    frame=st.none() | colors,
    size=st.tuples(whole, whole),
    named=st.dictionaries(st.text(letters, min_size=1, max_size=5), colors, max_size=2),
    tagged=st.dictionaries(st.text(letters, max_size=5), st.floats(-1e6, 1e6), max_size=2),
    numbered=st.dictionaries(whole, colors, max_size=2),
    original=st.none() | st.builds(Painting, ground=colors),
    signed=st.booleans(),
)


@given(paintings)
def test_all_three_texts_come_back(painting: Painting) -> None:
    assert from_data(Picture, to_data(painting)) == painting
    assert from_data(Picture, json.loads(canonical_json(painting))) == painting
    assert from_text(Picture, str(painting)) == painting


@given(st.lists(paintings, min_size=1, max_size=2))
def test_shared_parts_change_nothing(paintings: list[Painting]) -> None:
    items = [to_data(painting) for painting in (*paintings, *paintings)]
    shared = with_shared_parts(Painting, items)
    made = [from_data(Picture, item) for item in shared]
    assert made == [from_data(Picture, item) for item in items]
    assert all(one.ground is other.ground for one, other in zip(made, made[len(paintings) :], strict=False))


@pytest.mark.parametrize("wrong", [{"ground": {"kind": "Rad"}}, {"grund": {"kind": "Red"}}, 7, {"version": 2}])
def test_shared_parts_leave_what_is_wrong_to_be_named(wrong: Any) -> None:
    good = to_data(Painting())
    items = [good, good | wrong if isinstance(wrong, dict) else wrong]
    named = []
    for data in (items[1], with_shared_parts(Painting, items)[1]):
        with pytest.raises(SettingError) as error:
            from_data(Picture, data, "items[1]")
        named.append(str(error.value))
    assert named[0] == named[1]


@given(paintings)
def test_ids_follow_equality(painting: Painting) -> None:
    again = from_text(Picture, str(painting))
    assert identifier(again) == identifier(painting)
    assert identifier(painting.replace(size=(painting.size[0] + 1, 0))) != identifier(painting)


def test_an_int_for_a_float_is_the_same_setting() -> None:
    assert identifier(Red(shade=1)) == identifier(Red(shade=1.0))  # type: ignore[arg-type]
    assert identifier(Blue(depth=np.int64(5))) == identifier(Blue(depth=5))  # type: ignore[arg-type]


def test_minus_zero_is_zero() -> None:
    assert identifier(Red(shade=-0.0)) == identifier(Red(shade=0.0))
    assert str(Painting(tagged={"a": -0.0})) == str(Painting(tagged={"a": 0.0}))


def test_mappings_are_frozen() -> None:
    given = {"b": Red(), "a": Blue()}
    painting = Painting(named=given)
    assert isinstance(painting.named, FrozenMapping)
    with pytest.raises(TypeError):
        painting.named["c"] = Red()
    given["c"] = Red()
    assert painting.named == {"a": Blue(), "b": Red()}
    assert painting.replace(title="x").named == painting.named


def test_keys_that_files_cannot_hold_are_refused_with_the_class() -> None:
    with pytest.raises(TypeError, match=r"Weighed\.weights: keys of a mapping in a setting are str or int.*float"):

        @register
        class Weighed(Reloaded):
            weights: tuple[Mapping[float, int], ...] = ()


def test_equal_mappings_make_equal_settings_whatever_their_order() -> None:
    one, other = Painting(named={"b": Red(), "a": Blue()}), Painting(named={"a": Blue(), "b": Red()})
    assert one == other
    assert len({one, other}) == 1
    assert str(one) == str(other) == "Painting(named={'a': Blue(), 'b': Red()})"
    assert repr(one) == repr(other)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert Painting(named={"a": Blue()}) != one


def test_hints_never_propose_what_was_given() -> None:
    assert "did you mean" not in str(SettingError("x", "a name", "same", ["same", "some"]))
    assert "did you mean" not in str(SettingError("x", "a name", Shown("neither"), ["either"]))
    assert str(SettingError("x", "a name", "sme", ["same"])).endswith("did you mean 'same'?")


def test_long_values_are_cut() -> None:
    assert len(str(SettingError("x", "a name", "y" * 10**6))) < 300


@pytest.mark.committed
def test_canonical_json_is_pinned() -> None:
    assert canonical_json(Blue()) == '{"depth":3,"kind":"Blue","version":1}'


def test_a_raised_version_changes_ids_and_old_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old, data = identifier(Painting()), to_data(Painting())
    monkeypatch.setattr(Red, "version", 2)
    assert identifier(Painting()) != old
    with pytest.raises(SettingError, match="ground.version: expected version 2 of Red, got 1"):
        from_data(Picture, data)


def test_short_form_shows_only_what_differs() -> None:
    assert str(Painting()) == "Painting()"
    assert str(Painting(ground=Blue(depth=4), size=(1, 2))) == "Painting(ground=Blue(depth=4), size=(1, 2))"
    assert from_text(Color, "Blue") == Blue()


def test_flatten_gives_short_forms_and_leaves() -> None:
    row = flatten(Painting(ground=Blue(depth=4)))
    assert row["ground"] == "Blue(depth=4)"
    assert row["ground.depth"] == 4
    assert row["size"] == "(3, 4)"
    assert row["frame"] is None


def test_replace_at_descends() -> None:
    painting = replace_at(Painting(original=Painting()), "original.ground", "Blue(depth=9)")
    assert painting.original == Painting(ground=Blue(depth=9))
    assert replace_at(painting, "original.ground.depth", 2).original == Painting(ground=Blue(depth=2))


ERRORS: list[tuple[Any, str]] = [
    (lambda: Blue(depth=0), "depth: expected at least 1, got 0"),
    (lambda: Blue(depth="x"), "depth: expected an integer, got 'x'"),
    (lambda: Blue(depth=True), "depth: expected an integer, got True"),
    (lambda: Picky(choice="c"), "choice: expected a boolean or 'a' or 'b', got 'c'"),
    (lambda: Red(shade=float("inf")), "shade: expected a finite number, got inf"),
    (
        lambda: Painting(ground=Painting()),
        "ground: expected a test color (one of Blue, Red), got Painting, a test picture",
    ),
    (lambda: Painting(size=(1, 2, 3)), "size: expected 2 values, got (1, 2, 3)"),
    (lambda: Painting(layers=[Red(), 5]), "layers[1]: expected a test color (one of Blue, Red), got 5"),
    (
        lambda: from_text(Color, "Rd()"),
        "kind: expected a test color (one of Blue, Red), got 'Rd'; did you mean 'Red'?",
    ),
    (
        lambda: from_text(Picture, "Painting(ground=Blue(dept=4))"),
        "ground.dept: expected a field of Blue (one of depth), got 'dept'; did you mean 'depth'?",
    ),
    (lambda: from_text(Picture, "Painting(ground=Blue(depth=0))"), "ground.depth: expected at least 1, got 0"),
    (
        lambda: from_data(Picture, {"named": {"a": {"kind": "Blue", "depth": 0}}}),
        "named.a.depth: expected at least 1, got 0",
    ),
    (
        lambda: from_data(Color, {"depth": 3}),
        "kind: missing; give the name of a test color (one of Blue, Red)",
    ),
    (
        lambda: from_text(Color, "Blue(depth=open('x'))"),
        "depth: expected a test color such as Blue(...), got open('x')",
    ),
    (lambda: from_text(Color, "Blue(3)"), "expected a test color such as Blue(...), got Blue(3)"),
    (lambda: from_text(Color, "Blue("), "expected a test color such as Blue(...), got 'Blue('"),
    (
        lambda: from_text(Color, "Blue(depth={[1]})"),
        "depth: expected a test color such as Blue(...), got {[1]}",
    ),
    (lambda: from_text(Picture, "Painting(named={1: Red()})"), "named.1: expected a string, got 1"),
    (
        lambda: from_text(Picture, "Painting(named={**x})"),
        "named: expected names in quotes, or whole numbers, as keys, got **",
    ),
    (
        lambda: from_text(Picture, "Painting(named={[1]: Red()})"),
        "named: expected names in quotes, or whole numbers, as keys, got [1]",
    ),
    (lambda: Painting(numbered={"01": Red()}), "numbered.01: expected an integer, got '01'"),
    (lambda: Painting(numbered={True: Red()}), "numbered.True: expected an integer, got True"),
    (
        lambda: Painting(numbered={1: Red(), "1": Red()}),
        "numbered: expected a mapping with each key once, got {1: Red(",
    ),
    (lambda: from_text(Color, "Blue(**x)"), "expected a test color such as Blue(...), got Blue(**x)"),
    (lambda: from_text(Color, f"Blue(depth={'-' * 5000}1)"), "expected a test color such as Blue(...), got 'Blue("),
    (
        lambda: from_text(Color, f"Blue(depth={'-' * 10**5}1)"),
        "expected a test color such as Blue(...), got 'Blue(",
    ),
    (lambda: from_text(Color, f"Blue(depth=1{'0' * 5000})"), "expected a test color such as Blue(...), got 'Blue("),
    (lambda: from_text(Color, "Blue(depth=1, depth=2)"), "depth: given twice"),
    (lambda: from_text(Color, "Blue(kind='Red')"), "kind: given twice"),
    (
        lambda: from_text(Picture, "Painting(named={'a': Red(), 'a': Blue()})"),
        "named.a: given twice",
    ),
    (lambda: distinct([("a", 1), ("a", 1)], "b"), "b.a: given twice"),
    (lambda: from_data(Color, {"kind": ["Red"]}), "kind: expected a test color (one of Blue, Red), got ['Red']"),
    (lambda: from_data(Color, {"kind": "Red", 3: 4}), "3: expected a field of Red (one of shade), got 3"),
    (lambda: from_data(Color, {"kind": "Red", "version": True}), "version: expected version 1 of Red, got True"),
    (lambda: from_data(Color, {"kind": "Red", "version": 1.0}), "version: expected version 1 of Red, got 1.0"),
    (
        lambda: from_data(Picture, functools.reduce(lambda data, _: {"original": data}, range(2000), {})),
        "expected a test picture with fewer levels of nesting, got ",
    ),
    (lambda: Painting(named={1: Red()}), "named.1: expected a string, got 1"),
    (lambda: Painting(named=5), "named: expected a table of values by name, got 5"),
    (lambda: Painting(size=5), "size: expected a list of values, got 5"),
    (lambda: Red(shade=Fraction(10**400)), "shade: expected a finite number, got Fraction(1000"),
    (lambda: Blue(depth=2**63), "depth: expected an integer of at most 64 bits, got 9223372036854775808"),
    (
        lambda: Blue(depth=10**5000),
        "depth: expected an integer of at most 64 bits, got a value of type int, too large to show",
    ),
    (lambda: Blue().replace(**{"a\nb": 3}), "a\\nb: expected a field of Blue"),
    (lambda: replace_at(Painting(), "grund", Red()), "grund: expected a field of Painting"),
    (
        lambda: replace_at(Painting(), "ground.depth", 3),
        "ground.depth: expected a field of Red (one of shade), got 'depth'",
    ),
    (
        lambda: replace_at(Painting(), "title.size", 3),
        "title.size: expected a setting with fields at 'title', got 'untitled'",
    ),
    (lambda: Blue().replace(dept=3), "dept: expected a field of Blue"),
    (lambda: kinds("color"), "family: expected a family of settings"),
]


@pytest.mark.parametrize(("make", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_errors_are_one_line_with_path_expectation_and_value(make: Any, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_short_forms_run_nothing(tmp_path: Any) -> None:
    with pytest.raises(SettingError):
        from_text(Color, f"Blue(depth=__import__('pathlib').Path('{tmp_path}/x').touch())")
    assert not (tmp_path / "x").exists()


def test_settings_are_immutable_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Blue().depth = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        Blue(4)  # type: ignore[misc]


def test_reloading_is_allowed_and_a_second_owner_of_a_name_is_not() -> None:
    def define(module: str) -> type[Setting]:
        return register(type("Green", (Reloaded,), {"__module__": module, "__qualname__": "Green"}))

    first, second = define("notebook"), define("notebook")
    assert kinds("reloaded test setting")["Green"] is second is first
    with pytest.raises(TypeError, match="the reloaded test setting kind 'Green' is taken by notebook.Green"):
        define("elsewhere")
    with pytest.raises(TypeError, match="belongs to no family"):
        register(type("Homeless", (Setting,), {}))


MODULE = """
from sparsity_lab.settings import Setting, register

class Base(Setting, family="edited test setting"):
    def size(self) -> float:
        return 1.0

@register
class Edited(Base):
    width: int = 3

    def size(self) -> float:
        return super().size() * self.width
"""
FORMULA = MODULE.replace("* self.width", "* self.width * 10")
FIELD = MODULE.replace("= 3", "= 3\n    factor: float = 2.0").replace("* self.width", "* self.width * self.factor")
CELLS = [
    "%load_ext autoreload\n%autoreload 2",
    "import edited\nfrom edited import Edited\nold = Edited(width=5)\nassert old.size() == 5.0",
    "write(edited, FORMULA)",
    "assert old.size() == Edited(width=5).size() == 50.0",
    # A new field is more than %autoreload patches into a class, and what a real reload is for.
    "%autoreload 0",
    "write(edited, FIELD)",
    "import importlib\n_ = importlib.reload(edited)",
    """
from sparsity_lab.settings import from_data, kinds, to_data
assert (old.size(), Edited(factor=3).size()) == (10.0, 9.0)
assert isinstance(old, Edited) and old == Edited(width=5) and hash(old) == hash(Edited(width=5))
assert str(Edited(width=7).replace(factor=1)) == "Edited(width=7, factor=1.0)"
assert kinds("edited test setting") == {"Edited": Edited} and edited.Edited is Edited
assert from_data(edited.Base, to_data(old)) == old and to_data(old)["factor"] == 2.0
""",
]
SHELL = """
import json, os, pathlib, sys
from IPython.core.interactiveshell import InteractiveShell
sys.dont_write_bytecode = True
cells, names = json.load(sys.stdin)
times = iter((2e9, 3e9))  # a change within a tick of the clock would not be seen

def write(module, text):
    pathlib.Path(module.__file__).write_text(text)
    os.utime(module.__file__, (time := next(times), time))

shell = InteractiveShell(user_ns={"write": write, **names})
for cell in cells:
    shell.run_cell(cell).raise_error()
"""


def test_a_setting_can_be_edited_while_a_notebook_uses_it(tmp_path: Path) -> None:
    """Another formula and a field more: in the class that was imported before, and in objects made before."""
    (tmp_path / "edited.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-c", SHELL],
        input=json.dumps([CELLS, {"FORMULA": FORMULA, "FIELD": FIELD}]),
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


BASES = """
from sparsity_lab.settings import Setting, register

class Spoken:
    def words(self) -> str:
        return "first"

class Base(Setting, family="rebased test setting"):
    def size(self) -> float:
        return 1.0

@register
class Rebased(Spoken, Base):
    width: int = 3

    def size(self) -> float:
        return super().size() * self.width
"""


def test_base_classes_are_reloaded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an assignment to ``__bases__`` leads the class that was imported before to the new ones."""
    module = ModuleType("rebased")
    monkeypatch.setitem(sys.modules, "rebased", module)
    exec(BASES, vars(module))
    imported, old, members = module.Rebased, module.Rebased(width=5), dict(vars(module.Rebased))
    exec(BASES.replace("first", "second").replace("1.0", "10.0"), vars(module))
    assert module.Rebased is imported
    assert isinstance(old, module.Base)
    assert isinstance(old, module.Spoken)
    assert (old.words(), old.size(), imported(width=2).size()) == ("second", 50.0, 20.0)
    # No member of the class itself could have done that: they are what they were.
    assert members.keys() == vars(imported).keys()
    with pytest.raises(AttributeError, match="cannot assign to field 'width'"):
        old.width = 4


def test_unknown_fields_are_told_with_what_may_be_meant() -> None:
    """In Python as in texts; of a part's field the path, of a class the call."""
    for wrong in (lambda: Painting(titel="x"), lambda: from_text(Picture, "Painting(titel='x')")):
        with pytest.raises(SettingError, match=r"titel: expected a field of Painting .*; did you mean 'title'\?"):
            wrong()
    with pytest.raises(SettingError, match=r"^depth: expected a field of Painting .*; did you mean 'ground.depth'\?"):
        Painting(depth=3)  # type: ignore[call-arg]
    with pytest.raises(SettingError, match=r"^depth: .*; did you mean 'ground.depth'\?"):
        replace_at(Painting(), "depth", 3)
    with pytest.raises(SettingError, match=r"^ground: .*got the class Blue; did you mean 'Blue\(\)'\?"):
        Painting(ground=Blue)  # type: ignore[arg-type]
    assert str(pickle.loads(pickle.dumps(SettingError("a", "b", "c", ("d",), "e")))).endswith("did you mean 'e'?")


@given(paintings)
def test_canonical_json_is_the_json_of_the_data_with_sorted_keys(painting: Painting) -> None:
    """Though it is put together from the texts of its parts, which are kept."""
    expected = json.dumps(to_data(painting), sort_keys=True, separators=(",", ":"))
    assert canonical_json(painting) == canonical_json(painting) == expected
    rows: dict[tuple[str, int], Any] = {}
    assert flatten(painting, known=rows) == flatten(painting, known=rows) == flatten(painting)
    assert list(flatten(painting, known=rows)) == list(flatten(painting))
    assert column_types(painting, known={}) == column_types(painting)
