"""Every figure says what it shows and can be read: those of the committed studies, and those of the analysis."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from inspect import isabstract
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis.synthetic import frame_of
from figure_rules import broken_rules
from made_up_evidence import made_up
from matplotlib.figure import Figure
from torch import nn

from sparsity_lab import interop
from sparsity_lab.analysis import (
    ExtrapolationCurve,
    TokenData,
    attention_entropy,
    attention_map,
    attention_sink,
    dependency_sparsity,
    diagnose,
    dilution,
    distractor_robustness,
    draw_cells,
    draw_curve,
    drop,
    extrapolation_curve,
    field_map,
    heat_map,
    look,
    look_at,
    norm_sensitivity,
    planted_mass,
    retained_mass,
    styled,
    titled,
    transfer_check,
)
from sparsity_lab.analysis.lines import name_lines, spread
from sparsity_lab.analysis.measurement import Measurement
from sparsity_lab.analysis.style import GRAY, new_axes
from sparsity_lab.generators import Copy, FlipFlop, Planted
from sparsity_lab.models import Decoder
from sparsity_lab.studies import demo, load_study
from sparsity_lab.studies.files import read_found

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STUDIES = sorted(file.parent.name for file in EXPERIMENTS.glob("*/rows.parquet"))


DRAWN: set[str] = set()
"""Names of classes whose figures were checked."""


def plain(words: str | None) -> str:
    return " ".join((words or "").split())


@pytest.mark.parametrize("name", STUDIES)
def test_figures_of_committed_studies(name: str) -> None:
    """The title is the finding of the record, which is also what a screen reader hears."""
    folder = EXPERIMENTS / name
    study = load_study(folder)
    found = read_found(study, folder)
    assert found.evidence is not None
    words = json.loads((folder / "result.json").read_text(encoding="utf-8"))["finding"]
    assert study.finding is not None
    assert words == study.finding(found.evidence)
    figure = titled(study.figure(found.evidence), words)
    assert plain(figure.get_suptitle()) == plain(words)
    assert broken_rules(figure) == []


TASK = Planted(k=2)
FEW: dict[str, Any] = {"lengths": [8, 16], "sequences": 4}
FRAME = frame_of(
    *(
        (f"{k}, {seed}", {"task.k": k, "task.locality": "Uniform()"}, [1, 1, 1 - k / 10, 0.3 - seed / 10])
        for k in range(1, 9)
        for seed in range(3)
    ),
    ("never", {"task.k": 9, "task.locality": "Uniform()"}, [0.2, 0.1, 0.0, 0.0]),
)


@cache
def model() -> nn.Module:
    """It learned nothing."""
    return Decoder(num_layers=2, num_heads=2, d_model=8).build(0, vocab_size=TASK.vocabulary.size)


def two() -> ExtrapolationCurve:
    return extrapolation_curve(FRAME.filter(FRAME["task.k"] < 3))


MEASUREMENTS: dict[str, Callable[[], Any]] = {
    "curve": two,
    "curve of many": lambda: extrapolation_curve(FRAME),
    "difference": lambda: two().difference(1, 2),
    "drop": lambda: drop(FRAME),
    "heat map": lambda: heat_map(FRAME),
    "entropy": lambda: attention_entropy(model(), TASK, **FEW),
    "entropy at one length": lambda: attention_entropy(model(), TASK, lengths=[16], sequences=4),
    "map": lambda: attention_map(model(), 0, TASK, (8, 16)),
    "norms": lambda: norm_sensitivity(model(), TASK, [8], factors=(0.5, 2.0), sequences=4),
    "distractors": lambda: distractor_robustness(model(), TASK, [8], strengths=(0.0, 1.0), sequences=4),
    "dilution": lambda: dilution(model(), TASK, **FEW),
    "planted": lambda: planted_mass(model(), TASK, **FEW),
    "sink": lambda: attention_sink(model(), TASK, **FEW),
    "retained": lambda: retained_mass(model(), TASK, [16, 32], sequences=2, block_size=4),
    "dependencies": lambda: dependency_sparsity(model(), TASK, 8, sequences=4, largest=2, least_gain=0.01),
    "transfer": lambda: transfer_check(k=2, width=3, length=8, hypotheses=50, steps=5, sequences=8),
    "field": lambda: field_map({"copy": Copy(), "flip-flop": FlipFlop()}, positions=(16, 64), sequences=4),
    "look": lambda: look_at(TokenData.of([np.arange(400) % 7 for _ in range(6)])),
}
"""One of each object that draws."""


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_figures_of_the_analysis(name: str) -> None:
    one = MEASUREMENTS[name]()
    DRAWN.add(type(one).__name__)
    figure = one.figure()
    assert plain(figure.get_suptitle()) == plain(one.finding)
    assert broken_rules(figure) == []


def subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_every_object_that_draws_is_here() -> None:
    """But three that take long to make, whose own tests check their figures."""
    elsewhere = {"Diagnosis", "ExtendedContext", "SwapReport"}
    assert diagnose
    assert interop.SwapReport
    assert interop.ExtendedContext
    ours = [cls for cls in subclasses(Measurement) if cls.__module__.startswith("sparsity_lab")]
    named = {cls.__name__ for cls in ours if not isabstract(cls)}
    if len(DRAWN) > 1:  # all of them, not one that was chosen
        assert named == (DRAWN & named) | elsewhere


def test_a_title_has_two_lines_at_most() -> None:
    clauses = [f"k={k} loses half at {k}x;" for k in range(1, 12)]
    for width in (3.0, 5.0, 7.4):
        figure = titled(Figure(figsize=(width, 3.0)), " ".join(clauses))
        title = figure.get_suptitle()
        assert title.count("\n") == 1
        shown = plain(title).removesuffix(" …")
        assert shown == " ".join(clauses[: shown.count(";")]), "whole clauses"
        assert figure.get_figheight() == pytest.approx(3.0 + 0.2 * 2 + 0.08)
    assert plain(titled(Figure(figsize=(7.4, 3.0)), "a long word " * 30).get_suptitle()).endswith("word …")


@pytest.mark.parametrize("learned", [True, False])
def test_the_title_of_the_demo_fits(learned: bool) -> None:
    """Whatever comes of it."""
    for carried in (1, 2, 3):
        values = [1.0] * carried + [0.7] * (4 - carried)
        lengths = dict(zip((24, 48, 96, 192), values, strict=True))
        found = made_up(demo, lambda arm, condition, length, seed: lengths.get(length, 1.0), lambda *_: learned)  # noqa: B023
        words = demo.finding(found)  # type: ignore[misc]
        assert plain(titled(demo.figure(found), words).get_suptitle()) == plain(words)


def drawn(*, colors: int = 2, **text: Any) -> Figure:
    with styled():
        ax = new_axes(5, 3)
        for index in range(colors):
            draw_curve(ax, [1, 2], [index, index], look(index), f"arm {index}")
        name_lines(ax)
        if text:
            ax.text(**text)
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def test_what_breaks_a_rule_is_seen() -> None:
    assert broken_rules(drawn()) == []
    assert broken_rules(drawn(x=1, y=0, s="small", fontsize=8)) == ["8 pt: 'small'"]
    assert broken_rules(drawn(x=-3, y=0, s="away", in_layout=False)) == ["outside the canvas: 'away'"]
    assert broken_rules(drawn(colors=7)) == ["7 arms in one panel"]
    figure = drawn()
    figure.axes[0].lines[1].set(marker="o", linestyle="-")
    assert broken_rules(figure) == ["arm 0 and arm 1 look alike without color"]
    figure.axes[0].lines[1].set(color=look(0).color)
    assert f"{look(0).color} means arm 0, arm 1" in broken_rules(figure)
    figure.axes[0].lines[1].set(color="#ffff00")
    assert "#ffff00 cannot be read on white or on dark" in broken_rules(figure)
    assert GRAY not in str(broken_rules(drawn()))
    with styled():
        ax = new_axes(3, 3)
        draw_cells(ax, np.eye(2), cmap="Blues")
        ax.text(0, 1, "pale", color="white")
        ax.text(1, 1, "dark", color="white")
    assert broken_rules(ax.figure) == ["'pale' on its ground"]
    figure.set_size_inches(11, 3)
    assert "11.0 inches wide" in broken_rules(figure)


def test_names_leave_each_other_room_and_stay_in_order() -> None:
    assert spread([5, 5, 5], [2, 2, 2], 0, 20) == [3, 5, 7]
    assert spread([0, 0.5], [2, 2], 0, 20) == [1, 3]
    assert spread([19.5, 18], [2, 2], 0, 20) == [19, 17]
    places = spread([3.0, 9.0, 3.1, 8.9, 3.2], [2] * 5, 0, 12)
    assert sorted(range(5), key=lambda i: places[i]) == [0, 2, 4, 3, 1]
    assert min(b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)) > 1.999
