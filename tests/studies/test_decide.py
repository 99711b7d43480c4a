"""``decide``: seeds are added until claims are decided, and no seed is run twice."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from matplotlib.figure import Figure

from sparsity_lab.generators import TextBytes
from sparsity_lab.models import Decoder
from sparsity_lab.settings import SettingError
from sparsity_lab.studies import (
    Arm,
    BoundedMean,
    Claim,
    Criterion,
    Evidence,
    MostSeeds,
    Outcomes,
    Review,
    Study,
    decide,
    seeded,
)
from sparsity_lab.sweeps import Results, Serial, Sweep, run_sweep
from sparsity_lab.training import Evaluation, FixedLength, Run, RunConfig, Training

BASE = RunConfig(
    task=TextBytes(),
    model=Decoder(num_layers=1, num_heads=1, d_model=8),
    training=Training(steps=1, batch_size=2, curriculum=FixedLength(length=8)),
    evaluation=Evaluation(lengths=(8,), sequences=2),
)
ARMS = ("a", "b", "c")


def arms(size: str) -> dict[str, Arm]:
    rates = dict(zip(ARMS, (1e-3, 2e-3, 3e-3), strict=True))
    return {
        name: Arm(seeded(BASE.replace(training=BASE.training.replace(learning_rate=rate))), 1)
        for name, rate in rates.items()
    }


def claim(
    name: str, own: tuple[str, ...], number: Callable[[int], float], criterion: Criterion, at: float | None = None
) -> Claim:
    """Each seed that all arms have gives a number that does not depend on what was trained."""

    def numbers(evidence: Evidence) -> Outcomes:
        seeds = [set(evidence.rows.filter(pl.col("arm") == arm)["seed"]) for arm in own]
        shared = sorted(set.intersection(*seeds))
        levels = {} if at is None else {arm: dict.fromkeys(shared, at) for arm in own}
        return Outcomes({seed: number(seed) for seed in shared}, "of it", "", levels)

    return Claim(name=name, statement=name, source="", outcome="It.", numbers=numbers, criterion=criterion, arms=own)


def measure(run: Run) -> pl.DataFrame:
    return pl.DataFrame({"rate": [run.config.training.learning_rate]})


def study(*claims: Claim) -> Study:
    return Study(
        name="made",
        title="Made",
        question="?",
        arms=arms,
        claims=claims,
        primary=tuple(one.name for one in claims),
        figure=lambda evidence: Figure(),
        columns=(),
        measure=measure,
    )


ALWAYS, NEVER = MostSeeds(at_least=0.5), MostSeeds(at_least=2.0)
QUICK = claim("quick", ("a", "b"), lambda seed: 1.0, ALWAYS)
SLOW = claim("slow", ("b", "c"), lambda seed: float(seed != 1), ALWAYS)


class Runner:
    """Runs sweeps in ``out``, and remembers which runs were asked for."""

    def __init__(self, out: Path) -> None:
        self.out, self.asked = out, list[str]()

    def __call__(self, sweep: Sweep) -> Results:
        self.asked += [run.id for run in sweep.runs]
        return run_sweep(sweep, self.out, Serial())


def looks(made: Study, tmp_path: Path, run: Runner, budget: float = 10.0, at_once: int | None = 1) -> list[Review]:
    return list(decide(made, tmp_path / "runs", tmp_path / "result", run, budget=budget, at_once=at_once))


def recorded(tmp_path: Path) -> dict[str, str]:
    data = json.loads((tmp_path / "result" / "result.json").read_text())
    return {one["id"]: one["verdict"] for one in data["claims"]}


def test_seeds_go_where_claims_are_open(tmp_path: Path) -> None:
    """Two claims: 6 seeds decide the one that always succeeds, alone at 40. Then its own arm gets no more. The first
    look has one seed, since the cost is not known yet, and each later one has three."""
    run = Runner(tmp_path / "runs")
    found = looks(study(QUICK, SLOW), tmp_path, run, at_once=3)
    assert [look.decisions[name].verdict for look in found[-1:] for name in ("quick", "slow")] == ["held", "held"]
    rows = pl.read_parquet(tmp_path / "result" / "rows.parquet")
    seeds = dict(rows.group_by("arm").agg(pl.col("seed").n_unique()).iter_rows())
    assert seeds["a"] == 1 + 3 + 3
    assert seeds["b"] == seeds["c"] > 6
    assert len(run.asked) == len(set(run.asked)) == sum(seeds.values())
    assert recorded(tmp_path) == {"quick": "held", "slow": "held"}
    measures = pl.read_parquet(tmp_path / "result" / "measures.parquet")
    assert measures.height == sum(seeds.values())


def test_a_seed_whose_run_is_gone_is_not_run_again(tmp_path: Path) -> None:
    """The store is deleted between two looks."""
    run = Runner(tmp_path / "runs")
    going = decide(study(QUICK), tmp_path / "runs", tmp_path / "result", run, budget=10.0, at_once=1)
    for _ in range(4):
        next(going)
    going.close()  # type: ignore[attr-defined]
    shutil.rmtree(tmp_path / "runs")
    looks(study(QUICK), tmp_path, run)
    assert len(run.asked) == len(set(run.asked)) == 2 * 5
    assert pl.read_parquet(tmp_path / "result" / "rows.parquet")["seed"].n_unique() == 5
    assert recorded(tmp_path) == {"quick": "held"}


def test_every_look_says_what_is_open(tmp_path: Path) -> None:
    found = looks(study(QUICK), tmp_path, Runner(tmp_path / "runs"))
    assert len(found) == 1 + 5
    assert found[0].open["quick"].seeds is None
    assert [look.open["quick"].seeds for look in found[1:-1]] == [4, 3, 2, 1]
    assert all((look.open["quick"].core_minutes or 0) > 0 for look in found[1:-1])
    assert not found[-1].open
    assert set(found[1].minutes) == {"a", "b"}


def test_the_budget_ends_it_and_more_of_it_goes_on(tmp_path: Path) -> None:
    run = Runner(tmp_path / "runs")
    found = looks(study(QUICK), tmp_path, run, budget=1e-6)
    assert len(run.asked) == 2, "nothing was known of the cost before the first look"
    assert found[-1].open
    assert recorded(tmp_path) == {"quick": "not decided"}
    assert looks(study(QUICK), tmp_path, run, budget=1e-6)[-1].spent > 1e-6
    assert len(run.asked) == 2
    looks(study(QUICK), tmp_path, run)
    assert len(run.asked) == 10


def test_what_the_arms_cannot_tell_is_given_up(tmp_path: Path) -> None:
    same = claim("same", ("a", "b"), lambda seed: 0.0, BoundedMean(above=0.0, matters=0.05), at=1.0)
    run = Runner(tmp_path / "runs")
    found = looks(study(same), tmp_path, run)
    assert found[-1].decisions["same"].cannot_tell == "at the ceiling or floor"
    assert len(run.asked) == 2 * 3


def test_seeds_that_give_no_number_are_given_up(tmp_path: Path) -> None:
    nothing = dataclasses.replace(QUICK, numbers=lambda evidence: Outcomes({}, "of it"))
    run = Runner(tmp_path / "runs")
    found = looks(study(nothing), tmp_path, run)
    assert found[-1].decisions["quick"].verdict == "not decided"
    assert len(run.asked) == 2 * 3


def test_did_not_hold_and_smaller_than_matters_are_decided_too(tmp_path: Path) -> None:
    small = claim("small", ("a",), lambda seed: 0.01, BoundedMean(above=0.0, matters=0.05))
    not_so = claim("not so", ("b",), lambda seed: 1.0, NEVER)
    looks(study(small, not_so), tmp_path, Runner(tmp_path / "runs"))
    assert recorded(tmp_path) == {"small": "smaller than matters", "not so": "did not hold"}


def test_short_runs_are_looked_at_in_bunches(tmp_path: Path) -> None:
    run = Runner(tmp_path / "runs")
    found = looks(study(QUICK), tmp_path, run, at_once=None)
    assert len(found) == 3, "none, one seed, and the four that it needs"
    assert len(run.asked) == 10


def test_a_run_that_fails_is_left_out_and_said(tmp_path: Path) -> None:
    run = Runner(tmp_path / "runs")
    broken = arms("small")["a"].run(1).id
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / broken).write_text("in the way")
    found = looks(study(QUICK), tmp_path, run)
    assert list(found[-1].failed) == [broken]
    assert run.asked.count(broken) == 1
    rows = pl.read_parquet(tmp_path / "result" / "rows.parquet")
    assert sorted(rows.filter(pl.col("arm") == "a")["seed"].unique()) == [0, 2, 3, 4, 5]


def changed(**fields: object) -> Study:
    return study(dataclasses.replace(QUICK, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            changed(criterion=MostSeeds(at_least=0.6)),
            r"the rule of 'quick' has changed since the study started",
        ),
        (changed(outcome="Another number."), r"has changed since the study started"),
        (changed(arms=("a", "c")), r"has changed since the study started"),
        (study(QUICK, SLOW), r"the primary claims fixed at the start"),
    ],
)
@pytest.mark.parametrize("gone", ["result", "runs"])
def test_a_rule_that_changed_after_the_first_run_is_refused(
    tmp_path: Path, made: Study, message: str, gone: str
) -> None:
    run = Runner(tmp_path / "runs")
    looks(study(QUICK), tmp_path, run, budget=1e-6)
    shutil.rmtree(tmp_path / gone)
    before = len(run.asked)
    with pytest.raises(SettingError, match=message):
        looks(made, tmp_path, run)
    assert len(run.asked) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dataclasses.replace(study(QUICK), primary=()),
            "primary: expected one to five names of the study's claims",
        ),
        (lambda: study(dataclasses.replace(QUICK, arms=("a", "d"))), "claim 'quick': expected arms of the study"),
    ],
)
def test_what_cannot_be_decided_is_refused_first(tmp_path: Path, make: Callable[[], Study], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        looks(make(), tmp_path, Runner(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_above_zero(tmp_path: Path, budget: float) -> None:
    with pytest.raises(SettingError, match="budget: expected a positive number of core-minutes"):
        looks(study(QUICK), tmp_path, Runner(tmp_path / "runs"), budget=budget)


def test_a_study_has_at_most_five_primary_claims() -> None:
    six = [dataclasses.replace(QUICK, name=f"{i}") for i in range(6)]
    with pytest.raises(SettingError, match="primary: expected at most 5 claims, got 6"):
        study(*six)
    with pytest.raises(SettingError, match="two claims have the same name"):
        study(QUICK, QUICK)
    with pytest.raises(SettingError, match="claim 'quick' names no arms"):
        study(dataclasses.replace(QUICK, arms=()))
    with pytest.raises(SettingError, match="primary: expected names of claims, each once"):
        dataclasses.replace(study(QUICK), primary=("quick", "slow"))


def test_frames_of_other_runs_or_of_another_size_are_refused(tmp_path: Path) -> None:
    run = Runner(tmp_path / "runs")
    looks(study(QUICK), tmp_path, run, budget=1e-6)
    with pytest.raises(SettingError, match="expected a result of size full, got 'small'"):
        decide(study(QUICK), tmp_path / "runs", tmp_path / "result", run, budget=1.0, size="full")
    file = tmp_path / "result" / "rows.parquet"
    pl.read_parquet(file).with_columns(run=pl.lit("other")).write_parquet(file)
    with pytest.raises(SettingError, match="expected only rows of the study's own runs, got 'a, seed 0'"):
        looks(study(QUICK), tmp_path, run)


def test_frames_that_are_older_than_rules_stay_so_under_a_new_store(tmp_path: Path) -> None:
    """A result whose record names no rules: seeds that are added in a new store do not make its rules older."""
    run = Runner(tmp_path / "runs")
    looks(study(QUICK), tmp_path, run, budget=1e-6)
    file = tmp_path / "result" / "result.json"
    data = json.loads(file.read_text())
    assert not data["claims"][0]["rule_changed"]
    del data["run"]["rules"]
    file.write_text(json.dumps(data))
    shutil.rmtree(tmp_path / "runs")
    looks(study(QUICK), tmp_path, run)
    data = json.loads(file.read_text())
    assert (data["run"]["rules_after_runs"], data["claims"][0]["rule_changed"]) == (True, True)
    assert data["claims"][0]["verdict"] == "held"
