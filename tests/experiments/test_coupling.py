"""The study ``coupling``: what its arms differ in, its rules on made-up evidence, and what it measures."""

from pathlib import Path

import polars as pl
import pytest
from coupling.arms import (
    ADDITION,
    AHEAD,
    CLIPPED,
    GIVEN,
    LOG_N,
    NAMES,
    NO_OFFSET,
    NOPE,
    OFFSET,
    PARITY,
    PARTS,
    PREDICTED,
    PREDICTED_AHEAD,
    PREDICTED_OFFSET,
    PUBLISHED,
    RE_WEIGHTED,
    ROPE,
    SHUFFLED,
    SLACK,
    SPARSE,
    arm,
)
from coupling.claims import CLAIMS, HALF_MORE
from coupling.measure import measure
from coupling.study import study as coupling

from sparsity_lab.generators import Addition
from sparsity_lab.models import Decoder, Ignored, Shuffled
from sparsity_lab.models.ppc import EmbeddedCoupling
from sparsity_lab.studies import Evidence
from sparsity_lab.training import RunConfig, train

RULES = {claim.name: claim.decide for claim in CLAIMS}
FAR = PARTS[SPARSE].longest
SMALL = coupling.arms("small")


def small(label: str, name: str) -> RunConfig:
    return SMALL[arm(label, name)][0]


def model_of(label: str, name: str) -> Decoder:
    model = small(label, name).model
    assert isinstance(model, Decoder)
    return model


def test_every_task_has_every_arm_and_lengths_to_four_times_the_trained() -> None:
    for label, part in PARTS.items():
        assert {arm(label, name) for name in NAMES} <= set(SMALL)
        assert part.longest >= 4 * part.trained[1]
    assert all(len(SMALL[arm(label, name)]) >= 3 for label in (ADDITION, SPARSE) for name in NAMES)


def test_compared_arms_differ_in_one_thing() -> None:
    moved = model_of(ADDITION, OFFSET)
    for name in (LOG_N, RE_WEIGHTED):
        assert model_of(ADDITION, name).replace(kernel=moved.kernel) == moved
    published = small(ADDITION, PUBLISHED)
    assert published.task == Addition()
    assert published.replace(task=Addition(end_ids=True)) == small(ADDITION, OFFSET)
    laws = (
        (ADDITION, OFFSET, GIVEN),
        (ADDITION, CLIPPED, GIVEN),
        (ADDITION, NO_OFFSET, PREDICTED),
        (SPARSE, NO_OFFSET, PREDICTED),
        (SPARSE, PREDICTED_OFFSET, PREDICTED),
    )
    for label, name, main in laws:
        assert model_of(label, name) != model_of(label, main)
        same = model_of(label, name).coupling.replace(random_offset="spread")
        assert model_of(label, name).replace(coupling=same) == model_of(label, main)
    assert model_of(ADDITION, SHUFFLED).coupling.replace(max_id=9) == Shuffled(max_id=9, random_offset=True)
    assert model_of(ADDITION, SHUFFLED).replace(coupling=moved.coupling) == moved
    for name, main in ((AHEAD, GIVEN), (PREDICTED_AHEAD, PREDICTED)):
        ahead = small(SPARSE, name)
        assert ahead.task != PARTS[SPARSE].task
        assert ahead.replace(task=PARTS[SPARSE].task) == small(SPARSE, main)
    assert model_of(PARITY, NOPE).replace(coupling=model_of(PARITY, GIVEN).coupling) == model_of(PARITY, GIVEN)


def test_ids_of_the_longest_sequences_can_still_move() -> None:
    for runs in SMALL.values():
        model, task = runs[0].model, runs[0].task
        assert isinstance(model, Decoder)
        if isinstance(model.coupling, EmbeddedCoupling):
            assert model.coupling.max_id >= task.largest_position_id(runs[0].evaluation.lengths[-1]) + SLACK


def evidence(values: dict[tuple[str, str, int], list[float]]) -> Evidence:
    """Rows with these numbers, by arm, measure and length, one for each seed."""
    rows = [
        {"arm": name, "seed": seed, "condition": "trained", "length": length, measure: value}
        for (name, measure, length), found in values.items()
        for seed, value in enumerate(found)
    ]
    return Evidence(pl.DataFrame(rows, infer_schema_length=None))


@pytest.mark.parametrize(
    ("claim", "of"), [("1.5 times", GIVEN), ("1.5 times, offset alone", OFFSET), ("1.5 times, log-n", LOG_N)]
)
@pytest.mark.parametrize(
    ("given", "without", "verdict"),
    [([0.96, 0.94, 0.98], 0.1, "held"), ([0.96, 0.9, 0.95], 0.1, "did not hold"), ([1.0] * 3, 0.5, "did not hold")],
)
def test_level_needs_both_the_level_and_the_distance(
    claim: str, of: str, given: list[float], without: float, verdict: str
) -> None:
    arms = {name: [0.5] * 3 for name in (*NAMES, PUBLISHED)} | {ROPE: [without] * 3, NOPE: [without] * 3, of: given}
    values = {(arm(ADDITION, name), "free_exact_match", HALF_MORE): found for name, found in arms.items()}
    assert RULES[claim](evidence(values)).verdict == verdict


@pytest.mark.parametrize(
    ("given", "predicted", "verdict"),
    [
        ([0.9, 0.92, 0.91], [0.9, 0.91, 0.9], "held"),
        ([0.9, 0.92, 0.91], [0.6, 0.62, 0.61], "did not hold"),
        ([0.9, 0.92, 0.91], [0.9, 0.5, 0.9], "not decided"),
        ([0.01, 0.0, 0.0], [0.0, 0.0, 0.0], "not decided"),
    ],
)
def test_prediction_is_judged_only_beside_something_worth_reaching(
    given: list[float], predicted: list[float], verdict: str
) -> None:
    values = {
        (arm(SPARSE, GIVEN), "free_exact_match", FAR): given,
        (arm(SPARSE, PREDICTED), "free_exact_match", FAR): predicted,
        (arm(SPARSE, PREDICTED), "id_accuracy", FAR): predicted,
    }
    assert RULES["prediction"](evidence(values)).verdict == verdict


@pytest.mark.parametrize(
    ("given", "free", "verdict"),
    [
        ([0.9, 0.92, 0.91], [0.89, 0.91, 0.91], "held"),
        ([0.9, 0.92, 0.91], [0.6, 0.62, 0.61], "did not hold"),
        ([0.9, 0.92, 0.91], [0.9, 0.5, 0.9], "not decided"),
        ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1], "not decided"),
    ],
)
def test_prediction_alone_compares_a_model_with_itself(given: list[float], free: list[float], verdict: str) -> None:
    rows = [
        {"arm": arm(SPARSE, PREDICTED), "seed": seed, "length": FAR, "exact_match": one, "free_exact_match": other}
        for seed, (one, other) in enumerate(zip(given, free, strict=True))
    ]
    assert RULES["prediction alone"](Evidence(pl.DataFrame(rows))).verdict == verdict


@pytest.mark.parametrize(("shuffled", "verdict"), [([0.0, 0.1, 0.0], "held"), ([1.0, 0.9, 1.0], "did not hold")])
def test_differences_are_paired_by_seed(shuffled: list[float], verdict: str) -> None:
    values = {
        (arm(ADDITION, OFFSET), "free_exact_match", 6): [0.9, 0.8, 0.9],
        (arm(ADDITION, SHUFFLED), "free_exact_match", 6): shuffled,
    }
    assert RULES["shuffled"](evidence(values)).verdict == verdict


def test_measures_of_a_run(tmp_path: Path) -> None:
    """Accuracy by place averages to that of the evaluation, up to the sequences; mass only where IDs are used."""
    arms = coupling.arms("smoke")
    found = measure(train(arms[arm(PARITY, GIVEN)][0], tmp_path))
    assert found["length"].to_list() == list(PARTS[PARITY].judged)
    assert found.select("before", "end", "moved", "mass", "uniform").to_numpy().min() >= 0
    # Of a model that has learned nothing the attention is near uniform.
    assert (found["mass"] - found["uniform"]).abs().max() < 0.1
    without = train(arms[arm(PARITY, NOPE)][0], tmp_path)
    assert isinstance(without.config.model, Decoder)
    assert isinstance(without.config.model.coupling, Ignored)
    assert measure(without).columns == ["length", "before", "end"]
