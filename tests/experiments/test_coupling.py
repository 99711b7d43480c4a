"""The study ``coupling``: what its arms differ in, and its rules on made-up evidence."""

from collections.abc import Callable

import polars as pl
import pytest
from coupling.arms import GIVEN, NAMES, PARTS, PREDICTED, WITHOUT, arm
from coupling.claims import BETTER, CLOSE, EXACT
from coupling.page import figure
from coupling.study import study as coupling

from sparsity_lab.models import Decoder, Ignored, NoPE
from sparsity_lab.studies import Evidence
from sparsity_lab.training import RunConfig

SEEDS = range(7)
Value = Callable[[str, str, int], float]
"""Exact match at four times the trained length, from task, arm and seed."""


def evidence(value: Value, *, learned: bool = True, names: tuple[str, ...] = NAMES) -> Evidence:
    rows = [
        {
            "arm": arm(label, name),
            "seed": seed,
            "condition": "trained",
            "length": length,
            "trained": length <= part.trained[1],
            "learned": learned,
            EXACT: value(label, name, seed) if length == part.longest else 1.0,
        }
        for label, part in PARTS.items()
        for name in names
        for length in part.lengths
        for seed in SEEDS
    ]
    return Evidence(pl.DataFrame(rows))


def levels(given: float, predicted: float, without: float, *, on: int) -> Value:
    """These on so many tasks; on the others given IDs are right, predicted ones half as often and so are none."""
    first = list(PARTS)[:on]

    def value(label: str, name: str, seed: int) -> float:
        values = (given, predicted, without) if label in first else (1.0, 0.5, 0.5)
        return values[NAMES.index(name)]

    return value


def verdict(name: str, found: Evidence) -> str:
    return coupling.judge(found)[name].verdict


def run_of(label: str, name: str, size: str = "small") -> RunConfig:
    return coupling.arms(size)[arm(label, name)].run(0)  # type: ignore[arg-type]


def model_of(label: str, name: str) -> Decoder:
    model = run_of(label, name).model
    assert isinstance(model, Decoder)
    return model


@pytest.mark.parametrize("label", PARTS)
def test_arms_of_a_task_differ_in_the_coupling_alone(label: str) -> None:
    """But for the positions of the one without IDs, which has the better scheme."""
    given, predicted, without = (run_of(label, name) for name in NAMES)
    assert given.replace(model=predicted.model) == predicted
    assert given.replace(model=without.model) == without
    of_given = model_of(label, GIVEN)
    assert of_given.position == NoPE()
    assert of_given.replace(coupling=model_of(label, PREDICTED).coupling) == model_of(label, PREDICTED)
    assert model_of(label, WITHOUT).replace(coupling=of_given.coupling, position=NoPE()) == of_given
    assert isinstance(model_of(label, WITHOUT).coupling, Ignored)


@pytest.mark.parametrize("label", PARTS)
def test_lengths_go_to_four_times_the_trained(label: str) -> None:
    part = PARTS[label]
    assert part.lengths[0] == part.trained[1]
    assert part.longest == 4 * part.trained[1]


@pytest.mark.parametrize(("on", "expected"), [(5, "held"), (3, "held"), (2, "did not hold"), (0, "did not hold")])
def test_predicted_ids_are_close_on_three_tasks(on: int, expected: str) -> None:
    assert verdict(CLOSE, evidence(levels(0.98, 0.94, 0.0, on=on))) == expected
    assert verdict(BETTER, evidence(levels(0.98, 0.94, 0.7, on=on))) == expected


def test_a_task_counts_where_predicted_ids_are_better_than_given_ones_but_not_where_both_fail() -> None:
    assert verdict(CLOSE, evidence(levels(0.1, 0.9, 0.0, on=3))) == "held"
    assert verdict(CLOSE, evidence(levels(0.4, 0.4, 0.0, on=3))) == "did not hold"


@pytest.mark.parametrize(
    ("predicted", "close", "better"), [(0.94, True, True), (0.92, False, True), (0.7, False, False)]
)
def test_thresholds_of_a_task(predicted: float, close: bool, better: bool) -> None:
    found = evidence(levels(0.98, predicted, 0.6, on=3))
    words = {True: "held", False: "did not hold"}
    label = next(iter(PARTS))
    assert (verdict(CLOSE, found), verdict(BETTER, found)) == (words[close], words[better])
    assert verdict(f"{label}: close to given ones", found) == words[close]
    assert verdict(f"{label}: above none", found) == words[better]


def test_tasks_are_counted_within_a_seed() -> None:
    """Each task fails in every other seed, so that odd seeds have two tasks and even ones three."""

    def value(label: str, name: str, seed: int) -> float:
        right = list(PARTS).index(label) % 2 == seed % 2
        return 1.0 if name == GIVEN or (name == PREDICTED and right) else 0.0

    decision = coupling.judge(evidence(value))[CLOSE]
    assert decision.verdict == "not decided"
    assert decision.outcomes.numbers == {seed: 2.0 + (seed % 2 == 0) for seed in SEEDS}


def test_nothing_is_said_where_nothing_was_learned_or_an_arm_is_missing() -> None:
    found = coupling.judge(evidence(levels(1.0, 1.0, 0.0, on=5), learned=False))
    assert {found[name].cannot_tell for name in coupling.primary} == {"never learned"}
    partly = evidence(levels(1.0, 1.0, 0.0, on=5), names=(GIVEN, PREDICTED))
    assert (verdict(CLOSE, partly), verdict(BETTER, partly)) == ("held", "not decided")
    assert len(figure(partly).axes) == len(PARTS) + 1
