import polars as pl
import pytest
from analysis.synthetic import SyntheticResults, frame_of
from matplotlib.figure import Figure
from polars.testing import assert_frame_equal

from sparsity_lab.analysis import extrapolation_curve
from sparsity_lab.settings import SettingError


@pytest.fixture
def frame():
    """k=1: three learned runs; k=2: one learned, one not; k=3: never learned. Lengths 8, 24 (trained), 48, 96."""
    return frame_of(
        ("a0", {"task.k": 1}, [1, 1, 1.0, 0.95]),
        ("a1", {"task.k": 1}, [1, 1, 0.8, 0.2]),
        ("a2", {"task.k": 1}, [1, 1, 0.95, 0.4]),
        ("b0", {"task.k": 2}, [0.95, 0.92, 0.7, 0.1]),
        ("b1", {"task.k": 2}, [0.95, 0.5, -0.1, 0.0]),
        ("c0", {"task.k": 3}, [0.0, 0.1, 0.0, 0.0]),
        ("c1", {"task.k": 3}, [0.1, 0.0, 0.0, 0.0]),
    )


def rows_of_arm(curve, arm):
    return curve.frame().filter(pl.col("arm") == arm)


def test_medians_and_bands_by_hand(frame):
    rows = rows_of_arm(extrapolation_curve(frame), "k=1")
    assert rows["length"].to_list() == [8, 24, 48, 96]
    assert rows["median"].to_list() == [1, 1, 0.95, 0.4]
    # With three runs the band is their range, and covers the median unless all lie on one side of it.
    assert rows["low"].to_list() == [1, 1, 0.8, 0.2]
    assert rows["high"].to_list() == [1, 1, 1, 0.95]
    assert rows["coverage"].to_list() == [1 - 2 / 8] * 4
    assert rows["trained"].to_list() == [True, True, False, False]


def test_runs_that_never_learned_are_counted_apart_and_never_averaged_in(frame):
    curve = extrapolation_curve(frame)
    rows = rows_of_arm(curve, "k=2")
    assert rows["median"].to_list() == [0.95, 0.92, 0.7, 0.1]
    assert rows.select("runs", "learned", "used").unique().rows() == [(2, 1, 1)]
    assert rows["low"].null_count() == 4
    never = rows_of_arm(curve, "k=3")
    assert never["median"].null_count() == 4
    assert never.select("runs", "learned", "used").unique().rows() == [(2, 0, 0)]


def test_all_runs_on_request(frame):
    rows = rows_of_arm(extrapolation_curve(frame, only_learned=False), "k=2")
    assert rows["median"].to_list() == pytest.approx([0.95, 0.71, 0.3, 0.05])
    assert rows["learned"].to_list() == [1] * 4


def test_reach_is_the_median_over_learned_runs_with_the_censored_ones_counted(frame):
    # k=1: 96 (held to the end), 24, 48; k=2: 24; k=3: none
    arms = extrapolation_curve(frame).frame().unique("arm", maintain_order=True)
    assert arms["reach"].to_list() == [48, 24, None]
    assert arms["reach_censored"].to_list() == [1, 0, 0]
    assert arms["reach_at_least"].to_list() == [False, False, False]
    assert arms["reach_low"].to_list() == [24, None, None]
    assert arms["reach_high"].to_list() == [96, None, None]
    assert arms["reach_high_at_least"].to_list() == [True, False, False]
    assert arms["reach_coverage"].to_list() == [0.75, None, None]


def test_a_median_reach_that_rests_on_a_censored_run_is_a_bound():
    frame = frame_of(("a0", {"task.k": 1}, [1, 1, 1, 1]), ("a1", {"task.k": 1}, [1, 1, 0, 0]))
    curve = extrapolation_curve(frame)
    assert curve.summary().rows() == [("k=1", 2, 2, 2, "≥ 60", "[24, ≥ 96] (50%)", 1)]
    assert "reach ≥ 60" in repr(curve)


def test_levels_follow_the_measure(frame):
    for measure, chance, bayes in [
        ("normalized_accuracy", 0, 1),
        ("accuracy", 0.5, 1),
        ("loss", 0.7, 0),
        ("excess_loss", 0.7, 0),
        ("exact_match", None, None),
    ]:
        row = extrapolation_curve(frame, measure=measure).frame().row(0, named=True)
        assert (row["chance"], row["bayes"]) == (chance, bayes)


def test_the_curve_knows_no_order_and_no_other_arms(frame):
    first = extrapolation_curve(frame).frame()
    assert_frame_equal(first, extrapolation_curve(frame.sample(fraction=1, shuffle=True, seed=1)).frame())
    alone = extrapolation_curve(frame.filter(pl.col("task.k") == 1)).frame()
    assert_frame_equal(first.filter(pl.col("arm") == "k=1"), alone)


def test_results_and_frame_agree(frame):
    assert_frame_equal(extrapolation_curve(SyntheticResults(frame)).frame(), extrapolation_curve(frame).frame())


def test_pooled_settings_are_named(frame):
    mixed = frame.with_columns(pl.when(pl.col("run") == "a0").then(10).otherwise(20).alias("training.steps"))
    curve = extrapolation_curve(mixed)
    assert curve.pooled == ("training.steps",)
    assert "pooled over training.steps" in repr(curve)
    assert "pooled over training.steps" in note_of(curve.plot())
    assert extrapolation_curve(mixed, by=("task.k", "training.steps")).pooled == ()


def note_of(ax):
    return ax.texts[-1].get_text().replace("\n", " ")


def test_the_figure_says_what_it_shows(frame):
    ax = extrapolation_curve(frame).plot()
    assert ax.get_xlabel() == "length (tokens, log scale)"
    assert ax.get_ylabel() == "normalized accuracy\n(0 = chance, 1 = Bayes)"
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["8", "24", "48", "96"]
    assert [text.get_text() for text in ax.texts[:-1]] == ["trained 8–24", "Bayes", "chance", "k=1", "k=2"]
    assert ax.texts[-1].get_text().split("\n") == [
        "k=2 (1 of 2 runs learned)",
        "k=3: never learned (0 of 2 runs), 0.05 at the trained lengths, not",
        "drawn",
        "line: median of 1 to 3 runs; thin: each run",
    ]


def test_the_title_is_what_the_frame_shows(frame):
    curve = extrapolation_curve(frame)
    expected = "k=1 holds to 48; k=2 to 24; k=3 was not learned (0.05 at length 24)"
    assert curve.finding == expected
    assert curve.figure().get_suptitle().replace("\n", " ") == expected
    assert f'alt="{expected}"' in curve._repr_html_()
    reaches = curve.frame().unique("arm", keep="first", maintain_order=True).select("arm", "reach").rows()
    assert reaches == [("k=1", 48.0), ("k=2", 24.0), ("k=3", None)]
    unjudged = frame_of(("a0", {"task.k": 1}, [1, 1, 0.5, 0]), judged=False)
    words = "Accuracy from length 8 to 96: 1.00 to 0.50 (k=1)"
    assert extrapolation_curve(unjudged, measure="accuracy").finding == words
    many = frame_of(*((f"r{k}", {"task.k": k}, [1, 1] + [1] * (k < 3) + [0] * (1 + (k >= 3))) for k in range(6)))
    assert extrapolation_curve(many).finding == "k=0, k=1 and k=2 hold to 48; k=3, k=4 and k=5 to 24"
    many = range(1, 6)
    steps = frame_of(
        *((f"r{k}", {"task.k": k}, [1] * k + [0] * (5 - k)) for k in many), lengths=(24, 48, 96, 192, 384)
    )
    assert extrapolation_curve(steps).finding == "k=5 holds to 384 or more; k=1 to 24; 3 arms lie between"
    failed = frame_of(*((f"r{k}", {"task.k": k}, [k / 10] * 4) for k in range(2)))
    assert extrapolation_curve(failed).finding == "k=0 and k=1 were not learned (at most 0.10 at length 24)"


def test_many_runs_are_a_band_and_few_are_lines():
    values = [1, 1, 0.5, 0.2]
    runs = [
        (f"{k}, {seed}", {"task.k": k}, values) for k, count in ((1, 10), (2, 12), (3, 2)) for seed in range(count)
    ]
    curve = extrapolation_curve(frame_of(*runs))
    ax = curve.plot()
    least = curve.frame().filter(pl.col("used") >= 10)["coverage"].min()
    assert 0.9 < least < 1
    band = f"band: interval of the median, coverage at least {least:.0%}"
    assert note_of(ax).replace("- ", "-") == f"line: median of 2 to 12 runs; thin: each run; {band}"
    assert len(ax.collections) == 2
    assert len([line for line in ax.lines if line.get_label() == "_seed"]) == 2


def test_more_than_six_arms_are_several_panels_of_one_range():
    arms = [(f"{k}{seed}", {"task.k": k}, [1, 1, 1 - k / 10, 0.1]) for k in range(8) for seed in range(2)]
    curve = extrapolation_curve(frame_of(*arms))
    axes = curve.figure().axes
    named = [[str(line.get_label()) for line in ax.lines if str(line.get_label()).startswith("k=")] for ax in axes]
    assert named == [["k=0", "k=1", "k=2", "k=3"], ["k=4", "k=5", "k=6", "k=7"]]
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert len({line.get_color() for ax in axes for line in ax.lines if str(line.get_label()).startswith("k=")}) == 8


def test_the_drawn_values_are_the_medians(frame):
    ax = extrapolation_curve(frame).plot()
    drawn = [list(line.get_ydata()) for line in ax.lines if len(line.get_xdata()) == 4]
    assert [1, 1, 0.95, 0.4] in drawn
    assert [0.95, 0.92, 0.7, 0.1] in drawn
    # Two curves, the three runs of one of them, and the two levels; the arm that never learned has no line.
    assert len(ax.lines) == 7
    shaded = [patch for patch in ax.patches if patch.get_x() == 8]
    assert [patch.get_width() for patch in shaded] == [16]


def test_the_caller_may_give_the_axes_and_the_line_style(frame):
    ax = Figure().subplots()
    assert extrapolation_curve(frame).plot(ax, linewidth=7) is ax
    assert 7 in {line.get_linewidth() for line in ax.lines}


def test_html_holds_figure_and_numbers(frame):
    page = extrapolation_curve(frame)._repr_html_()
    assert page.count("<img") == 1
    assert "<td>k=3</td>" in page


def test_wrong_names_are_refused(frame):
    with pytest.raises(SettingError, match=r"measure: .*did you mean 'accuracy'"):
        extrapolation_curve(frame, measure="acuracy")
    with pytest.raises(SettingError, match="by"):
        extrapolation_curve(frame, by="task.locality")


def test_runs_that_are_not_judged_are_drawn_and_named():
    frame = frame_of(("a0", {"task.k": 1}, [1, 1, 0.5, 0]), ("a1", {"task.k": 1}, [0, 0, 0, 0]), judged=False)
    curve = extrapolation_curve(frame, measure="accuracy")
    assert curve.frame()["median"].to_list() == [0.75, 0.75, 0.625, 0.5]
    assert curve.frame().select("runs", "judged", "learned", "used").unique().rows() == [(2, 0, 0, 2)]
    lines = "line: median of 2 runs; thin: each run"
    assert note_of(curve.plot()) == f"not judged (no optimum declared) {lines}"
    # What needs an optimum cannot be drawn, and says why.
    expected = "k=1: no normalized accuracy, not judged (no optimum declared), not drawn"
    assert note_of(extrapolation_curve(frame).plot()) == expected


def test_the_axis_shows_all_lengths_even_if_nothing_is_drawn():
    ax = extrapolation_curve(frame_of(("a0", {"task.k": 1}, [0] * 4))).plot()
    low, high = ax.get_xlim()
    assert low < 8
    assert high > 96
    assert "nothing to draw" in [text.get_text() for text in ax.texts]
    assert note_of(ax) == "k=1: never learned (0 of 1 run), 0.00 at the trained lengths, not drawn"
