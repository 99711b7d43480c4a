"""The study ``softplus_extrapolation``: what its arms are, what it measures, and that its rules say each verdict."""

import math
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from made_up_evidence import TORN, claim_of, shifted
from softplus_extrapolation.arms import (
    FACTORS,
    FEW,
    KERNELS,
    MARKOV,
    NOPE,
    NORMS,
    PASSKEY,
    PHIS,
    TEXT,
    WINDOW,
    activation,
    arm,
)
from softplus_extrapolation.claims import CLAIMS
from softplus_extrapolation.measure import loss_in_windows
from softplus_extrapolation.study import study as softplus_extrapolation

from sparsity_lab.kernels import LSSA, CosineSoftmax, NormalizedActivation
from sparsity_lab.models import ModelOutput, NoPE
from sparsity_lab.studies import Evidence
from sparsity_lab.training import RunConfig, train

TRAINED = 32
SEEDS = range(3)
LSSAR = "LSSAR p=15"
SMALL = softplus_extrapolation.arms("small")
BY = [(shifted(0.3), "held"), (shifted(-0.3), "did not hold"), (TORN, "not decided")]

Value = Callable[[str, int, int], float]
"""From arm, multiple of the trained length and seed."""


def small(name: str) -> RunConfig:
    return SMALL[name][0]


def evidence(loss: Value = lambda name, factor, seed: 2.0, other: Value = lambda name, factor, seed: 0.5) -> Evidence:
    """Losses of text as measured; ``other`` is the excess loss of SparseMarkov and the accuracy of the passkey."""
    cells = [(name, run.data_seed, factor) for name, runs in SMALL.items() for run in runs for factor in FACTORS]
    rows = [
        {
            "arm": name,
            "seed": seed,
            "length": factor * TRAINED,
            "trained": factor == 1,
            "excess_loss": other(name, factor, seed) if name.startswith(MARKOV) else None,
            "normalized_accuracy": other(name, factor, seed) if name.startswith(PASSKEY) else None,
            "learned": name != arm(PASSKEY, "softmax") or seed != 0,
        }
        for name, seed, factor in cells
    ]
    measures = [
        {"arm": name, "seed": seed, "length": factor * TRAINED, "loss": loss(name, factor, seed)}
        for name, seed, factor in cells
    ]
    return Evidence(pl.DataFrame(rows, infer_schema_length=None), pl.DataFrame(measures))


def above(name: str, by: tuple[float, ...], at: int = 8) -> Value:
    """2 everywhere, but for one arm at a multiple of the trained length, which is above by what its seed says."""
    return lambda one, factor, seed: 2.0 + (by[seed] if (one, factor) == (name, at) else 0.0)


def verdict(claim: str, found: Evidence) -> str:
    return claim_of(softplus_extrapolation, claim).decide(found).verdict


def test_arms_are_those_of_the_plan() -> None:
    for part, kernels in ((TEXT, KERNELS), (PASSKEY, KERNELS), (NOPE, FEW), (MARKOV, FEW)):
        assert all(len(SMALL[arm(part, kernel)]) == len(SEEDS) for kernel in kernels)
    # Each of these differs from the one before in one thing.
    models = [small(arm(TEXT, name)).model for name in ("cosine", "cosine log-n", "LSSA")]
    constant, log_n, softplus = (model.kernel for model in models)
    assert constant == CosineSoftmax(log_n=False, trained_length=TRAINED)
    assert (log_n, softplus) == (CosineSoftmax(), LSSA())
    assert len({model.replace(kernel=LSSA()) for model in models}) == 1
    assert small(arm(NOPE, LSSAR)).model == small(arm(TEXT, LSSAR)).model.replace(position=NoPE())
    assert small(arm(TEXT, WINDOW)).parent == small(arm(TEXT, "softmax"))
    assert small(arm(TEXT, WINDOW)).training.steps == 0
    found = {small(activation(phi, norm)).model.kernel for phi in PHIS for norm in NORMS}
    assert len(found) == len(PHIS) * len(NORMS)
    assert all(isinstance(kernel, NormalizedActivation) for kernel in found)


@pytest.mark.parametrize("factor", [8, 16])
@pytest.mark.parametrize(
    ("rise", "constant", "grows"),
    [
        (shifted(0.0), "held", "did not hold"),
        (shifted(0.3), "did not hold", "held"),
        (shifted(0.09), "not decided", "not decided"),
    ],
)
def test_growth_of_five_per_cent_is_the_bound(
    factor: int, rise: tuple[float, ...], constant: str, grows: str
) -> None:
    """Of a loss of 2, so 0.1."""
    assert verdict(f"LSSAR 15 is constant, {factor}x", evidence(above(arm(TEXT, LSSAR), rise, factor))) == constant
    assert verdict(f"softmax grows, {factor}x", evidence(above(arm(TEXT, "softmax"), rise, factor))) == grows
    if factor == 8:
        assert verdict("LSSAR 3 grows, 8x", evidence(above(arm(TEXT, "LSSAR p=3"), rise))) == grows


@pytest.mark.parametrize(
    ("claim", "part", "better", "worse"),
    [
        ("LSSAR 15", TEXT, LSSAR, "softmax"),
        ("p", TEXT, LSSAR, "LSSAR p=3"),
        ("norm of queries and keys", TEXT, "cosine", "softmax"),
        ("log n", TEXT, "cosine log-n", "cosine"),
        ("softplus", TEXT, "LSSA", "cosine log-n"),
        ("re-weighting", TEXT, LSSAR, "LSSA"),
        ("beyond log n", TEXT, LSSAR, "cosine log-n"),
        ("NoPE", NOPE, LSSAR, "softmax"),
    ],
)
def test_comparisons_need_a_like_beginning(claim: str, part: str, better: str, worse: str) -> None:
    for by, said in BY:
        assert verdict(claim, evidence(above(arm(part, worse), by))) == said
        assert verdict(claim, evidence(above(arm(part, better), tuple(-one for one in by)))) == said
    # More than a tenth apart at the trained length, whichever is worse there.
    for name in (better, worse):
        far = above(arm(part, worse), shifted(0.3))

        def apart(one: str, factor: int, seed: int, name: str = arm(part, name), far: Value = far) -> float:
            return 2.25 if (one, factor) == (name, 1) else far(one, factor, seed)

        assert verdict(claim, evidence(apart)) == "not decided"


@pytest.mark.parametrize(("by", "said"), BY)
def test_known_optimum_is_a_smaller_excess_loss(by: tuple[float, ...], said: str) -> None:
    assert verdict("known optimum", evidence(other=above(arm(MARKOV, "softmax"), by))) == said


def test_passkey_counts_seeds_that_both_learned() -> None:
    """Softmax did not learn with seed 0."""
    name = arm(PASSKEY, LSSAR)
    for by, said in (
        ((-0.9, 0.3, 0.31), "held"),
        ((0.9, -0.3, -0.31), "did not hold"),
        ((9.0, 0.3, -0.3), "not decided"),
    ):
        decision = claim_of(softplus_extrapolation, "passkey").decide(evidence(other=above(name, by)))
        assert (decision.verdict, decision.interval.count) == (said, 2)


def of_activations(values: dict[str, tuple[float, ...]], at: int) -> Evidence:
    """Losses of the activations by what they are divided by, in the order of ``PHIS``; 2 where nothing is said."""
    given = {activation(phi, norm): one for norm, of in values.items() for phi, one in zip(PHIS, of, strict=True)}
    return evidence(lambda name, factor, seed: given.get(name, 2.0) if factor == at else 2.0)


@pytest.mark.parametrize(
    ("claim", "norm", "at"),
    [("training without l1", "not divided", 1), ("l1", "divided by n", 1), ("l1, 8x", "divided by n", 8)],
)
@pytest.mark.parametrize(
    ("without", "said"),
    [
        ((2.3, 2.31, 2.32, 2.33), "held"),
        ((1.7, 1.71, 1.72, 1.73), "did not hold"),
        ((2.4, 1.6, 2.1, 1.9), "not decided"),
    ],
)
def test_l1_is_judged_over_activations(claim: str, norm: str, at: int, without: tuple[float, ...], said: str) -> None:
    assert verdict(claim, of_activations({norm: without}, at)) == said


@pytest.mark.parametrize(("suffix", "at"), [("", 1), (", 8x", 8)])
def test_l1_matters_more_than_the_exponential_if_it_moves_the_loss_further(suffix: str, at: int) -> None:
    without = {"divided by n": (2.0, 2.5, 2.51, 2.52)}
    for with_l1, said in (((2.0, 2.1, 1.9, 2.1), "held"), ((3.0, 2.0, 2.01, 2.02), "did not hold")):
        assert verdict(f"not the exponential{suffix}", of_activations(without | {"l1": with_l1}, at)) == said


def test_an_activation_without_a_run_is_left_out_and_said() -> None:
    found = evidence()
    without = found.measured.filter(pl.col("arm") != activation("exp", "divided by n"))
    decision = claim_of(softplus_extrapolation, "l1").decide(Evidence(found.rows, without))
    assert decision.interval.count == 3
    assert "Only 3 of 4" in decision.detail


def test_every_claim_is_shown_here() -> None:
    names = {claim.name for claim in CLAIMS}
    assert len(names) == len(CLAIMS) == 5 + 8 + 2 + 5


def test_windows_are_cut_from_the_same_bytes() -> None:
    """A model that predicts a byte from its place in the window: 1/2 at the first, certain after, and never wrong."""

    class Places(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> ModelOutput:
            sure = torch.where(torch.arange(tokens.shape[1]) == 0, 0.0, 50.0)
            logits = torch.stack([sure, torch.zeros_like(sure)], dim=-1)
            return ModelOutput(logits.expand(len(tokens), -1, -1), {})

    tokens = torch.zeros(3, 8, dtype=torch.int64)
    for length in (1, 2, 4, 8):
        for batch_tokens in (1, 5, 100):
            found = loss_in_windows(Places(), tokens, tokens, length, batch_tokens)
            assert found == pytest.approx(math.log(2) / length)


def test_losses_at_the_largest_length_are_those_of_the_evaluation(tmp_path: Path) -> None:
    run = train(softplus_extrapolation.arms("smoke")[arm(TEXT, LSSAR)][0], tmp_path)
    assert softplus_extrapolation.measure is not None
    found = softplus_extrapolation.measure(run)
    assert found["length"].to_list() == list(run.config.evaluation.lengths)
    assert found["loss"][-1] == pytest.approx(run.evaluation["loss"][-1], rel=1e-6)
    # Other windows of text below.
    assert found["loss"][0] != pytest.approx(run.evaluation["loss"][0], rel=1e-6)
    assert softplus_extrapolation.measure(
        train(softplus_extrapolation.arms("smoke")[arm(PASSKEY, LSSAR)][0], tmp_path)
    ).is_empty()
