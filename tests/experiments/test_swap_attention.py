"""The study ``swap_attention``: swapped runs are the softmax run's weights, and its rules say each verdict."""

from pathlib import Path

import polars as pl
import pytest
from made_up_evidence import TORN, claim_of, shifted
from swap_attention.study import (
    FAR,
    LENGTHS,
    MECHANISMS,
    PASSKEY,
    POWERS,
    SHARPEST,
    TEXT,
    TRAINED,
    arm,
    arms,
    lssar,
    re_weighted,
    study,
)

from sparsity_lab.kernels import LSSAR
from sparsity_lab.studies import Evidence
from sparsity_lab.training import train

SEEDS = range(3)
BY = [(shifted(0.3), "held"), (shifted(-0.3), "did not hold"), (TORN, "not decided")]


def evidence(
    name: str, length: int, more: tuple[float, ...], harm: tuple[float, ...] = (0.0,) * 3, learned: bool = True
) -> Evidence:
    """All losses are 2 and all accuracies 0.6, but for the arm at the length, which is above by what its seed says;
    so is the harm of a wrong key to it."""
    keys = [(one, seed) for task in (TEXT, PASSKEY) for one in (arm(task, m) for m in MECHANISMS) for seed in SEEDS]
    rows = [
        {
            "arm": one,
            "seed": seed,
            "length": at,
            "loss": 2.0 + (more[seed] if (one, at) == (name, length) else 0.0),
            "normalized_accuracy": 0.6 + (more[seed] if (one, at) == (name, length) else 0.0),
            "learned": None if one.startswith(TEXT) else learned or seed != 0,
        }
        for one, seed in keys
        for at in LENGTHS
    ]
    measures = [
        {
            "arm": one,
            "seed": seed,
            "layer": layer,
            "strength": 1.0,
            "loss_change": layer + (harm[seed] * (one == name)),
        }
        for one, seed in keys
        for layer in (0, 1)
    ]
    return Evidence(pl.DataFrame(rows, infer_schema_length=None), pl.DataFrame(measures))


def verdict(claim: str, found: Evidence) -> str:
    return claim_of(study, claim).decide(found).verdict


@pytest.mark.parametrize("mechanism", ["LSSA", lssar(15), re_weighted(15)])
@pytest.mark.parametrize(
    ("rise", "said"),
    [
        (shifted(0.04), "held"),
        (shifted(0.2), "did not hold"),
        (shifted(0.09), "not decided"),
        (shifted(-0.3), "held"),
    ],
)
def test_text_takes_a_mechanism_up_to_five_per_cent_of_its_loss(
    mechanism: str, rise: tuple[float, ...], said: str
) -> None:
    """Of a loss of 2, so that a rise of 0.1 is the bound."""
    assert verdict(f"{mechanism} is taken, {TEXT}", evidence(arm(TEXT, mechanism), TRAINED, rise)) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [((0.0,) * 3, "held"), (shifted(-0.2), "did not hold"), (shifted(-0.04), "not decided"), (shifted(0.2), "held")],
)
def test_the_passkey_takes_re_weighting_up_to_a_twentieth_of_its_accuracy(
    change: tuple[float, ...], said: str
) -> None:
    assert verdict(f"{SHARPEST} is taken, {PASSKEY}", evidence(arm(PASSKEY, SHARPEST), TRAINED, change)) == said


@pytest.mark.parametrize("p", [3, 15])
@pytest.mark.parametrize(("by", "said"), BY)
def test_further_is_a_smaller_loss_or_a_larger_accuracy(p: int, by: tuple[float, ...], said: str) -> None:
    name = f"{re_weighted(p)} carries further, "
    lower = tuple(-one for one in by)
    assert verdict(name + TEXT, evidence(arm(TEXT, re_weighted(p)), FAR, lower)) == said
    assert verdict(name + PASSKEY, evidence(arm(PASSKEY, re_weighted(p)), FAR, by)) == said


@pytest.mark.parametrize(("by", "said"), BY)
def test_costs_of_sharpness(by: tuple[float, ...], said: str) -> None:
    assert verdict("a larger p costs more", evidence(arm(TEXT, re_weighted(POWERS[-1])), TRAINED, by)) == said
    for task in (TEXT, PASSKEY):
        assert verdict(f"distractors, {task}", evidence(arm(task, SHARPEST), FAR, (0.0,) * 3, harm=by)) == said


def test_seeds_that_did_not_learn_the_passkey_do_not_count() -> None:
    """Seed 0 says the opposite of the others, and alone made the claim open."""
    by = (-0.9, 0.3, 0.31)
    claim, name = f"{SHARPEST} carries further, {PASSKEY}", arm(PASSKEY, SHARPEST)
    assert verdict(claim, evidence(name, FAR, by)) == "not decided"
    decision = claim_of(study, claim).decide(evidence(name, FAR, by, learned=False))
    assert (decision.verdict, decision.interval.count) == ("held", 2)


def test_a_swapped_run_is_the_softmax_run_with_another_kernel(tmp_path: Path) -> None:
    made = arms("smoke")
    softmax = train(made[arm(PASSKEY, "softmax")][0], tmp_path)
    swapped = train(made[arm(PASSKEY, lssar(3))][0], tmp_path)
    assert swapped.config.parent == softmax.config
    columns = ["length", "loss", "accuracy"]
    assert swapped.evaluation.select(columns).equals(softmax.with_kernel(LSSAR(p=3)).evaluate().select(columns))
    assert not swapped.evaluation["loss"].equals(softmax.evaluation["loss"])
