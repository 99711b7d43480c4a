"""The study ``swap_attention``: swapped runs are the softmax run's weights, and its rules say each verdict."""

from pathlib import Path

import polars as pl
import pytest
from made_up_evidence import CLEAR, JITTER, MOST_SEEDS, SEEDS, TORN, decided, shifted
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

LOSSES = [
    ((*shifted(CLEAR), 0.5), "held"),
    ((*shifted(-CLEAR), -0.5), "did not hold"),
    (TORN, "not decided"),
]


def evidence(
    name: str, length: int, more: tuple[float, ...], harm: tuple[float, ...] = (0.0,), learned: bool = True
) -> Evidence:
    """All losses are 2 and all accuracies 0.6, but for the arm at the length, which is above by what its seed says;
    so is the harm of a wrong key to it."""
    arms = [arm(task, mechanism) for task in (TEXT, PASSKEY) for mechanism in MECHANISMS]
    keys = [(one, seed) for one in arms for seed in range(SEEDS)]
    rows = [
        {
            "arm": one,
            "seed": seed,
            "length": at,
            "loss": 2.0 + (more[seed % len(more)] if (one, at) == (name, length) else 0.0),
            "normalized_accuracy": 0.6 + (more[seed % len(more)] if (one, at) == (name, length) else 0.0),
            "learned": None if one.startswith(TEXT) else learned or seed % 2 == 1,
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
            "loss_change": layer + (harm[seed % len(harm)] * (one == name)),
        }
        for one, seed in keys
        for layer in (0, 1)
    ]
    return Evidence(pl.DataFrame(rows, infer_schema_length=None), pl.DataFrame(measures))


def verdict(claim: str, found: Evidence) -> str:
    return decided(study, claim, found).verdict


def test_every_claim_is_shown_here() -> None:
    assert [claim.name for claim in study.claims] == [
        f"{re_weighted(3)} is taken, {TEXT}",
        f"{lssar(15)} is taken, {TEXT}",
        f"{SHARPEST} carries further, {TEXT}",
        f"{re_weighted(3)} carries further, {PASSKEY}",
        f"distractors, {PASSKEY}",
        f"{SHARPEST} is taken, {TEXT}",
        f"{SHARPEST} is taken, {PASSKEY}",
        f"distractors, {TEXT}",
        "a larger p costs more",
    ]
    assert study.primary == tuple(claim.name for claim in study.claims[:5])


@pytest.mark.parametrize("mechanism", [re_weighted(3), lssar(15), SHARPEST])
@pytest.mark.parametrize(
    ("rise", "said"),
    [
        (shifted(0.04), "held"),
        (shifted(0.2), "did not hold"),
        (tuple(0.1 + one / 2 for one in TORN), "not decided"),
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
    [(JITTER, "held"), (shifted(-0.2), "did not hold"), (TORN, "not decided"), (shifted(0.2), "held")],
)
def test_the_passkey_takes_re_weighting_up_to_a_twentieth_of_its_accuracy(
    change: tuple[float, ...], said: str
) -> None:
    assert verdict(f"{SHARPEST} is taken, {PASSKEY}", evidence(arm(PASSKEY, SHARPEST), TRAINED, change)) == said


@pytest.mark.parametrize(("by", "said"), LOSSES)
def test_further_on_text_is_a_smaller_loss(by: tuple[float, ...], said: str) -> None:
    lower = tuple(-one for one in by)
    assert verdict(f"{SHARPEST} carries further, {TEXT}", evidence(arm(TEXT, SHARPEST), FAR, lower)) == said


@pytest.mark.parametrize(("by", "said"), [*MOST_SEEDS, (JITTER, "did not hold")])
def test_further_on_the_passkey_is_a_larger_accuracy(by: tuple[float, ...], said: str) -> None:
    """By a twentieth at least, in most seeds."""
    found = evidence(arm(PASSKEY, re_weighted(3)), FAR, by)
    assert verdict(f"{re_weighted(3)} carries further, {PASSKEY}", found) == said


@pytest.mark.parametrize(("by", "said"), LOSSES)
def test_costs_of_sharpness(by: tuple[float, ...], said: str) -> None:
    assert verdict("a larger p costs more", evidence(arm(TEXT, re_weighted(POWERS[-1])), TRAINED, by)) == said
    for task in (TEXT, PASSKEY):
        assert verdict(f"distractors, {task}", evidence(arm(task, SHARPEST), FAR, (0.0,), harm=by)) == said


def test_seeds_that_did_not_learn_the_passkey_do_not_count() -> None:
    """Even seeds say the opposite of the others, and leave the claim open; the detail has all."""
    by = (-0.5, 0.3)
    claim, name = f"{re_weighted(3)} carries further, {PASSKEY}", arm(PASSKEY, re_weighted(3))
    assert verdict(claim, evidence(name, FAR, by)) == "not decided"
    decision = decided(study, claim, evidence(name, FAR, by, learned=False))
    assert (decision.verdict, decision.count) == ("held", SEEDS // 2)
    assert "Over all seeds, learned or not: -0.10." in decision.outcomes.detail


def test_a_swapped_run_is_the_softmax_run_with_another_kernel(tmp_path: Path) -> None:
    made = arms("smoke")
    softmax = train(made[arm(PASSKEY, "softmax")].run(0), tmp_path)
    swapped = train(made[arm(PASSKEY, lssar(3))].run(0), tmp_path)
    assert swapped.config.parent == softmax.config
    columns = ["length", "loss", "accuracy"]
    assert swapped.evaluation.select(columns).equals(softmax.with_kernel(LSSAR(p=3)).evaluate().select(columns))
    assert not swapped.evaluation["loss"].equals(softmax.evaluation["loss"])
