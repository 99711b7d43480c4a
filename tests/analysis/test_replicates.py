import polars as pl
import pytest
from analysis.synthetic import frame_of

from sparsity_lab.analysis import arm_table, drop
from sparsity_lab.analysis.panels import panels_of
from sparsity_lab.analysis.replicates import is_seed, seed_columns, without_seeds
from sparsity_lab.analysis.runs import arms_of

SEEDS = ("task.position_seed", "parent.data_seed", "parent.task.position_seed", "task.rule.seed")


def test_seeds_are_seeds_at_any_depth_and_the_evaluation_has_none():
    assert all(is_seed(name) for name in ("data_seed", "model_seed", *SEEDS))
    assert not any(is_seed(name) for name in ("evaluation.seed", "parent.evaluation.seed", "task.seeds", "task.k"))


def test_a_replicate_is_named_by_every_seed_that_varies():
    frame = frame_of(("a0", dict.fromkeys(SEEDS, 0), [1] * 4), ("a1", dict.fromkeys(SEEDS[:2], 1), [1] * 4))
    # Null, where a run has no such setting, is a value too.
    assert seed_columns(frame) == ("data_seed", "model_seed", *SEEDS)
    assert seed_columns(frame.filter(pl.col("run") == "a0")) == ("data_seed", "model_seed")
    assert seed_columns(frame, ("data_seed", *SEEDS[1:])) == ("model_seed", "task.position_seed")


def test_texts_lose_the_seeds_that_vary():
    names = ["Lookup()", "Lookup(seed=3)", "Lookup(seed=4, size=2)", "Lookup(size=2, seed=1)"]
    frame = pl.DataFrame({"task.rule": names, "task.rule.seed": [0, 3, 4, 1]})
    stripped = ["Lookup()", "Lookup()", "Lookup(size=2)", "Lookup(size=2)"]
    assert without_seeds(frame, ["task.rule"])["task.rule"].to_list() == stripped
    assert without_seeds(frame[1:2], ["task.rule"])["task.rule"].to_list() == ["Lookup(seed=3)"]


@pytest.mark.parametrize("column", SEEDS)
def test_a_drop_takes_every_seed_for_a_replicate(column):
    """Two fixed sets by two seeds, k=1 and k=2: four replicates, paired one to one."""
    runs = [
        (f"{k}{place}{seed}", {"task.k": k, column: place}, [1, 1, 1, 1 - 0.1 * k * (1 + place)])
        for k in (1, 2)
        for place in (0, 1)
        for seed in (0, 1)
    ]
    drops = drop(frame_of(*runs))
    assert drops.seeds == ("data_seed", "model_seed", column)
    assert drops.frame()["drop"].to_list() == pytest.approx([0.15, 0.3])
    found = drops.difference(2, 1)
    assert (found.pairs, found.unpaired) == (4, 0)
    assert found.interval.estimate == pytest.approx(0.15)


def test_a_set_that_goes_with_the_seed_is_one_replicate():
    runs = [
        (f"{k}{seed}", {"task.k": k, "task.position_seed": seed}, [1, 1, 1, 0.5]) for k in (1, 2) for seed in (0, 1)
    ]
    assert drop(frame_of(*runs)).difference(2, 1).pairs == 2


def test_a_seed_may_make_the_arms_and_the_others_pair_them():
    runs = [(f"{place}{seed}", {"task.position_seed": place}, [1, 1, 1, 0.5]) for place in (0, 1) for seed in (0, 1)]
    drops = drop(frame_of(*runs), by="task.position_seed")
    assert drops.seeds == ("data_seed", "model_seed")
    assert drops.difference(0, 1).pairs == 2
    alone = drop(frame_of(("a0", {}, [1] * 4), ("a1", {}, [1] * 4)), by=("data_seed", "model_seed"))
    found = alone.difference("data_seed=0, model_seed=0", "data_seed=1, model_seed=1")
    assert found.reason == "no seed is left to pair them by"


def test_a_seed_that_one_arm_does_not_have_pairs_nothing():
    runs = [(f"a{seed}", {"parent": None, "parent.data_seed": None}, [1, 1, 1, 0.9]) for seed in (0, 1)]
    runs += [
        (f"{'bc'[older]}{seed}", {"parent": "Run()", "parent.data_seed": older}, [1, 1, 1, 0.5])
        for older in (0, 1)
        for seed in (0, 1)
    ]
    frame = frame_of(*runs)
    arms = {"parent": "Run()"}, {"parent": None}
    once = drop(frame.filter(~pl.col("run").str.starts_with("c")), by="parent").difference(*arms)
    assert (once.pairs, once.reason) == (2, None)
    twice = drop(frame, by="parent").difference(*arms)
    assert "have the same data_seed, model_seed" in twice.reason
    assert (twice.interval.estimate, twice.pairs) == (None, 0)


def test_tables_of_a_rule_that_differ_in_their_seed_are_one_panel_and_one_arm():
    rules = {0: "Lookup()", 1: "Lookup(seed=1)"}
    frame = frame_of(
        *(
            (f"a{seed}", {"task.k": 1, "task.rule": rule, "task.rule.seed": seed}, [1] * 4)
            for seed, rule in rules.items()
        )
    )
    (panel,) = panels_of(frame)
    assert panel.title == "Lookup"
    assert [arm.label for arm in arms_of(frame, "task.rule")] == ["Lookup"]
    assert arm_table(frame)["learned"].to_list() == ["2/2"]
