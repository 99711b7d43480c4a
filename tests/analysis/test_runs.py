import polars as pl
import pytest
from analysis.synthetic import Failed, SyntheticResults, frame_of, rows_of

from sparsity_lab.analysis.runs import (
    arms_of,
    common_lengths,
    evaluation_rows,
    nearest_length,
    pooled_by,
    trained_range,
    varying,
)
from sparsity_lab.generators import Planted
from sparsity_lab.settings import SettingError
from sparsity_lab.training import RunConfig


def test_bare_frames_are_judged_like_results():
    frame = frame_of(("a", {"task.k": 1}, [1, 0.95, 0.9, 0.5]), ("b", {"task.k": 1}, [1, 0.89, 1, 1]))
    for given in (frame, SyntheticResults(frame)):
        rows = evaluation_rows(given).unique("run").sort("run")
        assert rows["learned"].to_list() == [True, False]
        assert rows["reach"].to_list() == [48, None]


def test_bare_frames_are_judged_by_their_own_threshold():
    frame = frame_of(("a", {"evaluation.threshold": 0.5}, [1, 0.6, 0.6, 0.4]))
    assert evaluation_rows(frame)["learned"].all()
    assert evaluation_rows(frame)["reach"].to_list() == [48] * 4


def test_one_condition_needs_no_choice_and_several_do():
    both = [
        *rows_of("a", {}, [1.0], lengths=[8], condition="x"),
        *rows_of("a", {}, [0.0], lengths=[8], condition="y"),
    ]
    frame = pl.DataFrame(both)
    with pytest.raises(SettingError, match=r"condition.*x, y"):
        evaluation_rows(frame)
    assert evaluation_rows(frame, condition="y")["normalized_accuracy"].to_list() == [0.0]
    assert evaluation_rows(frame, by=["condition"]).height == 2
    with pytest.raises(SettingError, match="did you mean 'x'|one of x, y"):
        evaluation_rows(frame, condition="z")


def test_empty_and_foreign_frames_are_refused():
    with pytest.raises(SettingError, match="no run has been evaluated"):
        evaluation_rows(pl.DataFrame())
    with pytest.raises(SettingError, match="'run'"):
        evaluation_rows(pl.DataFrame({"length": [1]}))


def test_no_results_say_why_the_first_run_failed():
    config = RunConfig(task=Planted())
    results = SyntheticResults(pl.DataFrame(), [config], [Failed(config, "the workers could not start")])
    with pytest.raises(SettingError, match="evaluated; the first failure: the workers could not start"):
        evaluation_rows(results)


def test_arms_come_in_natural_order_with_speaking_labels():
    names = ["Recent(width=16)", "Recent()", None, "Anchored(width=4)"]
    runs = [(f"r{i}{k}", {"task.k": k, "task.locality": n}, [1] * 4) for i, n in enumerate(names) for k in (10, 9)]
    arms = arms_of(frame_of(*runs), ("task.locality", "task.k"))
    assert [arm.label for arm in arms] == [
        "Anchored(width=4), k=9",
        "Anchored(width=4), k=10",
        "Recent, k=9",
        "Recent, k=10",
        "Recent(width=16), k=9",
        "Recent(width=16), k=10",
        "locality=None, k=9",
        "locality=None, k=10",
    ]


def test_a_setting_with_one_field_shows_it_even_at_its_default():
    wide = {"task.locality": "Recent()", "task.locality.width": 8}
    flat = {"task.locality": "Uniform()", "task.locality.width": None}
    arms = arms_of(frame_of(("a", wide, [1] * 4), ("b", flat, [1] * 4)), "task.locality")
    assert [arm.label for arm in arms] == ["Recent(width=8)", "Uniform"]
    assert arms[0].values == {"task.locality": "Recent()"}


def test_unknown_columns_are_named():
    with pytest.raises(SettingError, match=r"by: .*did you mean 'task.k'"):
        arms_of(frame_of(("a", {"task.k": 1}, [1] * 4)), "task.kk")


def test_varying_settings_are_named_once_and_without_seeds():
    def config(width, steps, seed):
        return {
            "task": f"Planted(locality=Recent(width={width}))",
            "task.locality": f"Recent(width={width})",
            "task.locality.width": width,
            "training": f"Training(steps={steps})",
            "training.steps": steps,
            "evaluation.sequences": seed,
            "parent": f"RunConfig(data_seed={seed})",
            "parent.data_seed": seed,
            "data_seed": seed,
            "model_seed": seed,
        }

    frame = frame_of(("a", config(8, 10, 0), [1] * 4), ("b", config(16, 20, 1), [1] * 4))
    assert varying(frame) == ["task.locality", "training.steps"]
    assert varying(frame, ["task.locality"]) == ["training.steps"]
    assert varying(frame.filter(pl.col("run") == "a")) == []
    assert pooled_by(arms_of(frame, ())) == ("task.locality", "training.steps")
    assert pooled_by(arms_of(frame, "task.locality")) == ()


def test_another_kind_of_task_is_named_as_the_task():
    one = {"task": "Planted()", "task.k": 3}
    other = {"task": "SparseParity()", "task.k": None}
    assert varying(frame_of(("a", one, [1] * 4), ("b", other, [1] * 4))) == ["task"]


def test_trained_range_comes_from_the_curriculum_or_from_the_lengths():
    plain = frame_of(("a", {}, [1] * 4))
    assert trained_range(plain) == (8, 24)
    named = plain.with_columns(
        pl.lit(5).alias("training.curriculum.low"), pl.lit(30).alias("training.curriculum.high")
    )
    assert trained_range(named) == (5, 30)
    assert trained_range(plain.with_columns(trained=False)) is None


def test_nearest_length_is_nearest_in_ratio():
    assert nearest_length([48, 96, 200], 96) == 96
    assert nearest_length([48, 200], 96) == 48  # 2.0 against 2.08
    assert nearest_length([48, 192], 96) == 48  # a tie goes to the smaller
    assert nearest_length([], 96) is None


def test_common_lengths_are_those_of_every_run():
    frame = pl.DataFrame(rows_of("a", {}, [1, 1, 1], lengths=[8, 24, 96]) + rows_of("b", {}, [1, 1], lengths=[8, 96]))
    assert common_lengths(frame) == [8, 96]
    assert common_lengths(frame, trained=True) == [8]
