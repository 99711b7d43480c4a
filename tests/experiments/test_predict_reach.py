"""The study ``predict_reach``: its rules say each verdict, and a run that never learned counts against them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
import pytest
from predict_reach.study import CELLS, DILUTED, LONG, ROPE, WITHOUT_POSITIONS, measure
from predict_reach.study import study as predict_reach

from sparsity_lab.models import NoPE, RoPE
from sparsity_lab.studies import Evidence, MostSeeds
from sparsity_lab.training import train

SEEDS = range(12)
Curve = Callable[[int], float]


def evidence(
    predicted: Mapping[str, Curve], measured: Curve, never: Mapping[str, tuple[int, ...]] | None = None
) -> Evidence:
    """Of all arms; accuracies by length. ``never`` says in which seeds an arm did not learn."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "length": length,
            "predicted": predicted[arm](length),
            "measured": measured(length),
        }
        for arm in CELLS
        for seed in SEEDS
        if seed not in (never or {}).get(arm, ())
        for length in LONG
    ]
    begun = pl.DataFrame([{"arm": arm, "seed": seed, "learned": True} for arm in CELLS for seed in SEEDS])
    return Evidence(begun, pl.DataFrame(rows))


def falls(length: int) -> float:
    return 1.0 if length < 128 else 0.2


def off_by(by: float) -> Curve:
    return lambda length: falls(length) - by


def verdicts(found: Evidence) -> dict[str, str]:
    return {name: one.verdict for name, one in predict_reach.judge(found).items()}


def test_cells_have_no_positions_but_for_one() -> None:
    arms = {name: arm.run(3) for name, arm in predict_reach.arms("small").items()}
    assert {name for name, run in arms.items() if run.model.position == NoPE()} == set(WITHOUT_POSITIONS)  # type: ignore[attr-defined]
    assert arms[ROPE].model.position == RoPE()  # type: ignore[attr-defined]
    assert predict_reach.primary == tuple(claim.name for claim in predict_reach.claims)
    assert all(isinstance(claim.criterion, MostSeeds) for claim in predict_reach.claims)


def test_an_exact_forecast_holds_and_leaves_no_residue() -> None:
    assert verdicts(evidence(dict.fromkeys(CELLS, falls), falls)) == {
        "error": "held",
        "reach": "held",
        "better_than_carrying_on": "held",
        "residue_of_rope": "did not hold",
    }


def test_what_positions_do_is_the_residue() -> None:
    found = evidence(dict.fromkeys(CELLS, falls) | {ROPE: lambda length: 1.0}, falls)
    assert verdicts(found)["residue_of_rope"] == "held"
    judged = predict_reach.judge(found)["residue_of_rope"]
    assert judged.outcomes.numbers[0] == pytest.approx(0.8 * 3 / 5)


@pytest.mark.parametrize(("by", "verdict"), [(0.04, "held"), (-0.04, "held"), (0.06, "did not hold")])
def test_errors_have_no_sign(by: float, verdict: str) -> None:
    assert verdicts(evidence(dict.fromkeys(CELLS, off_by(by)), falls))["error"] == verdict


def test_a_forecast_of_no_failure_is_wrong_in_its_reach_and_no_better_than_carrying_on() -> None:
    found = verdicts(evidence(dict.fromkeys(CELLS, lambda length: 1.0), falls))
    assert found["reach"] == "did not hold"
    assert found["better_than_carrying_on"] == "did not hold"
    # One step late is within a factor of two.
    late = verdicts(evidence(dict.fromkeys(CELLS, lambda length: falls(length // 2)), falls))
    assert late["reach"] == "held"


def test_a_model_that_never_learned_counts_against_what_is_said_of_it() -> None:
    never = {arm: tuple(SEEDS) for arm in (DILUTED[0], ROPE)}
    found = evidence(dict.fromkeys(CELLS, falls) | {ROPE: lambda length: 1.0}, falls, never)
    assert verdicts(found) == {
        "error": "did not hold",
        "reach": "did not hold",
        "better_than_carrying_on": "held",
        "residue_of_rope": "did not hold",
    }
    assert predict_reach.judge(found)["error"].outcomes.numbers[0] == pytest.approx(1 / 5)


def test_nothing_is_measured_of_a_run_that_never_learned(tmp_path: Path) -> None:
    run = train(predict_reach.arms("smoke")["softmax, k=3"].run(0), tmp_path)
    assert run.summary["learned"].to_list() == [False]
    assert measure(run).height == 0
