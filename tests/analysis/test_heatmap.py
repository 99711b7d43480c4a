import pytest
from analysis.synthetic import frame_of

from sparsity_lab.analysis import heat_map
from sparsity_lab.settings import SettingError


def planted(k, locality):
    return {"task.k": k, "task.locality": locality}


@pytest.fixture
def frame():
    return frame_of(
        ("a0", planted(1, "Recent(width=4)"), [1, 1, 1, 0.9]),
        ("a1", planted(1, "Recent(width=4)"), [1, 1, 1, 0.6]),
        ("a2", planted(1, "Recent(width=4)"), [0, 0, 0, 0.0]),
        ("b0", planted(2, "Recent(width=4)"), [0, 0, 0, 0.0]),
        ("c0", planted(2, "Uniform()"), [1, 1, 0.5, 0.25]),
    )


def test_cells_by_hand(frame):
    cells = heat_map(frame).frame()
    assert cells.select("task.k", "task.locality", "runs", "learned", "median", "state", "length").rows() == [
        (1, "Recent(width=4)", 3, 2, pytest.approx(0.75), "median", 96),
        (1, "Uniform()", 0, 0, None, "not run", None),
        (2, "Recent(width=4)", 1, 0, None, "none learned", 96),
        (2, "Uniform()", 1, 1, 0.25, "median", 96),
    ]


def test_a_length_may_be_chosen(frame):
    assert heat_map(frame, length=48).frame()["median"].to_list() == [1, None, None, 0.5]
    with pytest.raises(SettingError, match="one of 8, 24, 48, 96"):
        heat_map(frame, length=50)


def test_every_cell_is_written(frame):
    chart = heat_map(frame)
    ax = chart.plot()
    assert [text.get_text() for text in ax.texts] == [
        "0.75\n2 of 3 learned",
        "not run",
        "reached 0.00\n0 of 1 learned",
        "0.25\n1 of 1 learned",
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Recent\n(width=4)", "Uniform"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "2"]
    assert ax.get_title(loc="left").endswith("at length 96, 4 x the trained 24")
    assert "k=2, Recent(width=4): reached 0.00, 0 of 1 learned" in repr(chart)
    assert chart._repr_html_().count("<img") == 1


def test_the_title_is_what_the_frame_shows(frame):
    chart = heat_map(frame)
    expected = "Highest: 1, Recent(width=4) (0.75); lowest: 2, Uniform() (0.25); 1 of 4 not learned"
    assert chart.finding == expected
    assert chart.figure().get_suptitle().replace("\n", " ") == expected
    assert f'alt="{expected}"' in chart._repr_html_()


def test_cells_without_a_run_and_without_a_learned_one_look_different(frame):
    boxes = {patch.get_xy(): patch for patch in heat_map(frame).plot().patches}
    assert boxes[(1.02, 0.04)].get_hatch() is None
    assert boxes[(0.02, 1.04)].get_hatch() == "////"


def test_nothing_learned_at_all_can_be_drawn():
    frame = frame_of(("a0", planted(1, "Uniform()"), [0, 0, 0, 0.0]))
    assert [text.get_text() for text in heat_map(frame).plot().texts] == ["reached 0.00\n0 of 1 learned"]


def test_pooled_settings_are_named(frame):
    mixed = frame_of(
        ("a0", {**planted(1, "Uniform()"), "task.rule": "Parity()"}, [1] * 4),
        ("a1", {**planted(1, "Uniform()"), "task.rule": "Majority()"}, [1] * 4),
    )
    assert heat_map(mixed).pooled == ("task.rule",)
    assert "pooled over task.rule" in heat_map(mixed).title


def test_cells_that_are_not_judged_show_their_value_and_say_so():
    frame = frame_of(("a0", planted(1, "Uniform()"), [1, 1, 1, 0.5]), judged=False)
    texts = [text.get_text() for text in heat_map(frame, measure="accuracy").plot().texts]
    assert texts == ["0.75\n1 not judged"]
    assert [text.get_text() for text in heat_map(frame).plot().texts] == ["no value\n1 not judged"]
