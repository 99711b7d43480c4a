import polars as pl
import pytest
from analysis.synthetic import frame_of, rows_of

from sparsity_lab.analysis import drop
from sparsity_lab.analysis.drop import drop_table
from sparsity_lab.settings import SettingError


@pytest.fixture
def frame():
    """Drops from 24 to 96: k=1: 0.1, 0.2, 0.3; k=2: 0.5, 0.9 and one not learned; k=3: one seed; k=4: none."""
    return frame_of(
        ("a0", {"task.k": 1}, [1, 1.0, 1, 0.9]),
        ("a1", {"task.k": 1}, [1, 1.0, 1, 0.8]),
        ("a2", {"task.k": 1}, [1, 0.95, 1, 0.65]),
        ("b0", {"task.k": 2}, [1, 1, 1, 0.5]),
        ("b1", {"task.k": 2}, [1, 1, 1, 0.1]),
        ("b2", {"task.k": 2}, [1, 0.1, 0, 0.1]),
        ("c2", {"task.k": 3}, [1, 1, 1, 0.3]),
        ("d0", {"task.k": 4}, [0, 0, 0, 0.0]),
    )


def test_drops_and_intervals_by_hand(frame):
    rows = drop(frame).frame()
    assert rows["arm"].to_list() == ["k=1", "k=2", "k=3", "k=4"]
    assert rows["drop"].to_list() == [pytest.approx(0.2), pytest.approx(0.7), pytest.approx(0.7), None]
    # k=1: s = 0.1, t = 4.302653, half = 0.248414; k=2: s = 0.282843, t(1) = 12.706205, half = 2.541241
    assert rows["low"].to_list() == [
        pytest.approx(-0.048414, abs=1e-6),
        pytest.approx(-1.841241, abs=1e-6),
        None,
        None,
    ]
    assert rows["high"].to_list() == [
        pytest.approx(0.448414, abs=1e-6),
        pytest.approx(3.241241, abs=1e-6),
        None,
        None,
    ]
    assert rows["at_trained"].to_list()[0] == pytest.approx(2.95 / 3)
    assert rows["at_length"].to_list()[0] == pytest.approx(2.35 / 3)


def test_learned_runs_are_counted(frame):
    assert drop(frame).frame().select("runs", "learned").rows() == [(3, 3), (3, 2), (1, 1), (1, 0)]
    assert drop(frame).runs()["run"].to_list() == ["a0", "a1", "a2", "b0", "b1", "c2"]


def test_the_row_says_which_lengths_were_compared(frame):
    exact = drop(frame).frame().row(0, named=True)
    assert (exact["trained_length"], exact["length"], exact["ratio"], exact["exact"]) == (24, 96, 4, True)
    near = drop(frame, factor=3).frame().row(0, named=True)
    assert (near["length"], near["ratio"], near["exact"]) == (96, 4, False)
    # 1 - 1, 1 - 1 and 0.95 - 1
    assert drop(frame, factor=2).frame()["drop"][0] == pytest.approx(-0.05 / 3)


def test_differences_are_paired_by_seed(frame):
    drops = drop(frame)
    found = drops.difference("k=2", "k=1")
    # seeds 0 and 1: 0.5 - 0.1 = 0.4 and 0.9 - 0.2 = 0.7; seed 2 has no learned k=2
    assert found.interval.estimate == pytest.approx(0.55)
    assert found.interval.high == pytest.approx(0.55 + 12.706205 * 0.15, abs=1e-6)
    assert (found.pairs, found.unpaired) == (2, 1)
    assert drops.difference(1, {"task.k": 2}).interval.estimate == pytest.approx(-0.55)


def test_one_pair_has_no_interval_and_no_pair_no_difference(frame):
    one = drop(frame).difference(3, 1)
    assert (one.interval.estimate, one.interval.low, one.pairs) == (pytest.approx(0.4), None, 1)
    none = drop(frame).difference(3, 2)
    assert (none.interval.estimate, none.pairs, none.unpaired) == (None, 0, 3)


def test_arms_of_a_difference_must_exist(frame):
    with pytest.raises(SettingError, match=r"of: expected an arm \(one of k=1"):
        drop(frame).difference("k=9", 1)


def test_pooled_arms_are_refused(frame):
    mixed = pl.concat([frame, frame.with_columns(pl.col("run") + "x")])
    mixed = mixed.with_columns(pl.col("run").str.ends_with("x").alias("task.coupled"))
    with pytest.raises(SettingError, match=r"one run per seed in 'k=1'; its runs also differ in task.coupled"):
        drop(mixed)
    assert drop(mixed, by=("task.k", "task.coupled")).frame().height == 8


def test_without_a_longer_length_there_is_no_drop():
    frame = frame_of(("a0", {"task.k": 1}, [1, 1]), lengths=(8, 24))
    row = drop(frame).frame().row(0, named=True)
    assert (row["trained_length"], row["length"], row["drop"], row["learned"]) == (24, None, None, 1)
    assert [text.get_text() for text in drop(frame).plot().texts] == ["no drop: no longer length evaluated"]


def test_only_lengths_of_all_runs_count():
    one = rows_of("a0", {"task.k": 1, "data_seed": 0, "model_seed": 0}, [1, 0.5, 0.2], lengths=[24, 90, 96])
    two = rows_of("a1", {"task.k": 1, "data_seed": 1, "model_seed": 1}, [1, 0.7], lengths=[24, 90])
    row = drop(pl.DataFrame(one + two)).frame().row(0, named=True)
    assert (row["length"], row["exact"], row["drop"]) == (90, False, pytest.approx(0.4))


def test_factor_is_checked(frame):
    with pytest.raises(SettingError, match="factor"):
        drop(frame, factor=1)


def test_figure_and_texts(frame):
    drops = drop(frame)
    ax = drops.plot()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[1] == "k=2\n2 of 3 runs learned"
    assert "drop of normalized accuracy to 4 x the trained length" in ax.get_xlabel().replace("\n", " ")
    assert [text.get_text() for text in ax.texts] == ["no drop: never learned"]
    assert "k=1: 0.20 [−0.05, 0.45], 3 of 3 runs learned" in repr(drops)
    assert "k=3: 0.70 no interval, 1 of 1 run learned" in repr(drops)
    assert "[−0.05, 0.45]" in drops._repr_html_()


def unequal(first, second, trained=((8, 24), (8, 24))):
    """Two arms of two seeds that were evaluated on these grids; accuracy falls with length, twice as fast for k=2."""
    rows = [
        row
        for k, lengths, own in ((1, first, trained[0]), (2, second, trained[1]))
        for seed in (0, 1)
        for row in rows_of(
            f"{k}{seed}",
            {"task.k": k, "data_seed": seed, "model_seed": seed},
            [1 - k * max(0, length - 32) / 1000 for length in lengths],
            lengths=lengths,
            trained=own,
        )
    ]
    return drop(pl.DataFrame(rows))


def test_a_difference_is_taken_over_lengths_that_both_arms_share():
    drops = unequal((24, 48, 96), (24, 48, 90, 200))
    assert drops.frame()["length"].to_list() == [96, 90]
    found = drops.difference(2, 1)
    assert (found.trained_length, found.length) == (24, 48)
    assert found.interval.estimate == pytest.approx(0.016)


@pytest.mark.parametrize(
    ("drops", "reason"),
    [
        (lambda: unequal((24, 96), (24, 90)), "no length beyond the trained ones was evaluated in both"),
        (lambda: unequal((24, 96), (24, 32, 96), ((8, 24), (8, 32))), "trained up to different lengths, 24 and 32"),
    ],
)
def test_arms_without_common_lengths_are_not_compared(drops, reason):
    found = drops().difference(1, 2)
    assert reason in found.reason
    assert (found.interval.estimate, found.pairs) == (None, 0)


def test_a_ratio_that_is_not_the_wanted_one_stands_out():
    page = drop_table(unequal((24, 96), (24, 90)))
    assert "<td>4 x</td>" in page
    assert "<td><strong>3.75 x, not 4 x</strong></td>" in page


def test_an_arm_that_never_learned_shows_what_it_reached(frame):
    assert drop(frame).frame()["unlearned"].to_list() == [None, pytest.approx(0.1), None, 0]
    assert "<td>never learned: mean 0.00 at length 24</td>" in drop_table(drop(frame))


def test_runs_that_are_not_judged_count():
    frame = frame_of(("a0", {"task.k": 1}, [1, 1, 1, 0.4]), ("a1", {"task.k": 1}, [0, 0, 0, 0]), judged=False)
    row = drop(frame, measure="accuracy").frame().row(0, named=True)
    assert (row["runs"], row["judged"], row["learned"]) == (2, 0, 0)
    assert row["drop"] == pytest.approx(0.15)
    assert drop(frame).frame()["drop"].to_list() == [None]
    assert [text.get_text() for text in drop(frame).plot().texts] == ["no drop: no values"]
    assert "2 runs not judged (no optimum declared)" in repr(drop(frame, measure="accuracy"))


def test_nothing_is_cut_off_beside_long_names():
    """The axis' words end where the axes end, so that wider letters of another font have room on the left."""
    name = "Anchored(width=8), coupled=True, Shuffled(max_id=4), steps=300"
    ax = drop(frame_of(("a0", {"task.locality": name}, [1, 1, 1, 0.4])), by="task.locality").plot()
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in (ax.xaxis.label, *ax.get_yticklabels())]
    assert min(box.x0 for box in boxes) >= 0
    assert boxes[0].x1 <= ax.get_window_extent().x1 + 1 < figure.bbox.x1
    assert boxes[0].width > ax.get_window_extent().width, "the case that this is about"
