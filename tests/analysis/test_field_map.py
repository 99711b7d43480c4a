"""The map of the field: numbers of sources and distances of tasks whose sources are known, and its drawing."""

import pytest

from sparsity_lab.analysis import field_map
from sparsity_lab.generators import (
    AssociativeRecall,
    Copy,
    FlipFlop,
    InContextMarkov,
    MajorityOfAll,
    ParityScratchpad,
    Planted,
    Recent,
    Reverse,
    SparseMarkov,
)


def test_dials_by_hand() -> None:
    """Of n symbols: a copy stands n + 1 behind its source, a reversed one 3, 5, .., and the whole input from 1 on."""
    found = field_map({"copy": Copy(), "reverse": Reverse(), "majority": MajorityOfAll()}, positions=(13, 23)).frame()
    assert found.rows() == [
        ("copy", 13, 1.0, 6.0),
        ("copy", 23, 1.0, 11.0),
        ("reverse", 13, 1.0, 7.0),
        ("reverse", 23, 1.0, 12.0),
        ("majority", 13, 9.0, 10.0),
        ("majority", 23, 19.0, 20.0),
    ]


def test_sparse_and_local_tasks_stay_where_they_are() -> None:
    tasks = {"recent": Planted(k=2, locality=Recent(width=4)), "markov": SparseMarkov(), "steps": ParityScratchpad()}
    frame = field_map(tasks, positions=(32, 128)).frame()
    for task, column in (("recent", "sources"), ("recent", "distance"), ("markov", "distance"), ("steps", "sources")):
        short, long = frame.filter(task=task)[column].to_list()
        assert long == pytest.approx(short, rel=0.2)
    short, long = frame.filter(task="steps")["distance"].to_list()
    assert long > 3 * short


def test_what_has_no_sources_is_named_and_what_is_too_short_is_left_out() -> None:
    found = field_map({"markov": InContextMarkov(), "recall": AssociativeRecall(num_pairs=8)}, positions=(16, 64))
    assert found.without == ("markov",)
    assert found.frame()["positions"].to_list() == [64]


def test_drawing() -> None:
    found = field_map({"copy": Copy(), "flip-flop": FlipFlop()}, positions=(16, 64))
    ax = found.plot()
    # Those that need most, and then reach farthest, are on top.
    assert [label.get_text() for label in ax.get_yticklabels()] == ["copy", "flip-flop"]
    drawn = [tuple(line.get_xdata()) for line in ax.lines[:4]]
    frame = found.frame()
    assert drawn[0] == tuple(frame.filter(task="copy")["sources"])
    assert drawn[3] == tuple(frame.filter(task="flip-flop")["distance"])
    assert found.plot(ax) is ax
    # Over 16 to 64 positions a copy keeps one source, which moves away; a flip-flop's source moves as well.
    assert found.finding.startswith(
        "While sequences grow at least fourfold, the number of needed tokens less than doubles in 2 of 2 tasks"
    )
    assert "FieldMap" in repr(found)
    assert "flip-flop" in found._repr_html_()
