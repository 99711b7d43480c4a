"""The study ``softplus_extrapolation``: what its arms are, what it measures, and that its rules say each verdict."""

import math
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from made_up_evidence import SEEDS, decided
from softplus_extrapolation.arms import FACTORS, FAR, HEADS, KERNELS, LONGER, LSSAR_15, SOFTMAX, VARIANTS, arm
from softplus_extrapolation.claims import CLAIMS, PRIMARY, positional_share
from softplus_extrapolation.measure import loss_in_windows
from softplus_extrapolation.page import figure, finding, tables
from softplus_extrapolation.study import study as softplus_extrapolation

from sparsity_lab.analysis import titled
from sparsity_lab.models import Decoder, ModelOutput, NoPE, PoSE, RoPE
from sparsity_lab.studies import Evidence
from sparsity_lab.training import train

WINDOW = 128
SMALL = softplus_extrapolation.arms("small")

Growth = Callable[[str, int], float]
"""From arm and seed, by which share the loss grows to eight times the window."""


def evidence(growth: Growth, share: Growth = lambda name, seed: 0.9) -> Evidence:
    """Losses of 2 at the trained length. ``share`` of the growth goes when distances are clamped."""
    cells = [(name, seed, factor) for name in SMALL for seed in range(SEEDS) for factor in FACTORS]
    rows = [
        {"arm": name, "seed": seed, "run": f"{name}, {seed}", "length": factor * WINDOW, "trained": factor == 1}
        | {"learned": None}
        for name, seed, factor in cells
    ]
    measures = [
        {"arm": name, "seed": seed, "run": f"{name}, {seed}", "length": factor * WINDOW}
        | {"loss": 2.0 * (1 + growth(name, seed) * (factor == FAR))}
        | (
            {"trained": 2.0, "full": 2.0 * (1 + growth(name, seed)), "windowed": 2.0}
            | {"clamped": 2.0 * (1 + growth(name, seed) * (1 - share(name, seed)))}
            if factor == FAR
            else dict.fromkeys(("trained", "full", "clamped", "windowed"))
        )
        for name, seed, factor in cells
    ]
    return Evidence(
        pl.DataFrame(rows, schema_overrides={"learned": pl.Boolean}),
        pl.DataFrame(measures, infer_schema_length=None),
    )


def jittered(value: float) -> Growth:
    """About this value in every seed, so that arms differ by no constant."""
    return lambda name, seed: value + (0.0, 0.01, -0.01)[seed * (1 + name.startswith("softmax")) % 3]


def of(values: dict[str, float], other: float = 0.0) -> Growth:
    return lambda name, seed: jittered(values.get(name, other))(name, seed)


def verdict(claim: str, found: Evidence) -> str:
    return decided(softplus_extrapolation, claim, found).verdict


def test_arms_differ_in_kernel_and_heads_alone() -> None:
    assert set(SMALL) == {arm(kernel, head) for kernel in KERNELS for head in HEADS} | {*VARIANTS, *LONGER}
    for head in HEADS:
        one, other = (SMALL[arm(kernel, head)].run(3) for kernel in KERNELS)
        assert isinstance(one.model, Decoder)
        assert isinstance(other.model, Decoder)
        assert one.model.head_dim == head
        assert one.replace(model=one.model.replace(kernel=other.model.kernel)) == other
        assert one.training.steps * one.training.batch_size * WINDOW == 4_096_000
    changed = {name: SMALL[name].run(0).model for name in VARIANTS}
    assert all(isinstance(model, Decoder) and model.head_dim == 32 for model in changed.values())
    pose, nope = changed["softmax, PoSE"], changed["softmax, NoPE"]
    assert isinstance(pose, Decoder)
    assert isinstance(nope, Decoder)
    assert (pose.position, pose.index_sampling) == (RoPE(), PoSE(target=FAR * WINDOW))
    assert nope.position == NoPE()
    longer = SMALL[LONGER[0]].run(0)
    assert longer.evaluation.lengths == tuple(2 * WINDOW * factor for factor in FACTORS)
    assert longer.training.batch_size * 2 * WINDOW * longer.training.steps == 4_096_000


def test_the_primary_claims() -> None:
    assert softplus_extrapolation.primary == PRIMARY == (
        "headline_lssar_constant",
        "headline_lssar_less_than_softmax",
        "headline_lssar_not_with_small_heads",
        "accounting_softmax",
        "accounting_lssar_small_heads",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("claim", "head", "holds"),
    [
        ("headline_lssar_constant", 64, True),
        ("headline_lssar_not_with_small_heads", 16, False),
        ("constant, heads of 32", 32, True),
    ],
)
def test_five_per_cent_is_nearly_constant(claim: str, head: int, holds: bool) -> None:
    for growth, grows in ((0.02, False), (0.08, True)):
        expected = "did not hold" if grows == holds else "held"
        assert verdict(claim, evidence(of({arm(LSSAR_15, head): growth}, 0.5))) == expected
    assert verdict(claim, evidence(of({arm(LSSAR_15, head): NEARLY}, 0.5))) == "not decided"


NEARLY = 0.05


@pytest.mark.parametrize(
    ("claim", "head"),
    [("headline_lssar_less_than_softmax", 64), *((f"less than softmax, heads of {head}", head) for head in (16, 32))],
)
@pytest.mark.parametrize(("softmax", "said"), [(0.5, "held"), (0.2, "did not hold")])
def test_less_is_twenty_points(claim: str, head: int, softmax: float, said: str) -> None:
    assert verdict(claim, evidence(of({arm(SOFTMAX, head): softmax, arm(LSSAR_15, head): 0.1}, 9.0))) == said


@pytest.mark.parametrize(
    ("claim", "kernel", "head"),
    [
        ("accounting_softmax", SOFTMAX, 64),
        ("accounting_lssar_small_heads", LSSAR_15, 16),
        ("accounting, softmax, heads of 16", SOFTMAX, 16),
        ("accounting, softmax, heads of 32", SOFTMAX, 32),
    ],
)
@pytest.mark.parametrize(("share", "said"), [(0.9, "held"), (0.8, "did not hold")])
def test_most_seeds_lose_to_distances(claim: str, kernel: str, head: int, share: float, said: str) -> None:
    own = arm(kernel, head)
    found = evidence(jittered(0.5), lambda name, seed: share if name == own else 0.85 - (share - 0.85))
    assert verdict(claim, found) == said


def test_a_loss_that_does_not_grow_has_no_share() -> None:
    own = arm(SOFTMAX, 64)
    found = evidence(lambda name, seed: -0.1 if seed == 2 else 0.5)
    assert sorted(positional_share(found, own)) == [seed for seed in range(SEEDS) if seed != 2]


@pytest.mark.parametrize("name", ["LSSA", "LSSAR p=3"])
@pytest.mark.parametrize(("by", "said"), [(0.3, "held"), (-0.3, "did not hold"), (0.0, "smaller than matters")])
def test_variants_grow_less(name: str, by: float, said: str) -> None:
    softmax = arm(SOFTMAX, 32)
    found = evidence(lambda one, seed: 0.5 + (by + 0.01 * (seed % 3 - 1)) * (one == softmax))
    assert verdict(f"{name} grows less", found) == said


@pytest.mark.parametrize("what", ["PoSE", "NoPE"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("growth", "said"), [(0.0, "held"), (0.2, "did not hold")])
def test_what_takes_it_from_both(what: str, kernel: str, growth: float, said: str) -> None:
    found = evidence(of({f"{kernel}, {what}": growth}, 0.5))
    assert verdict(f"{what} takes it from both, {kernel}", found) == said


def test_the_figure_and_the_tables_are_drawn() -> None:
    found = evidence(jittered(0.5))
    assert len(figure(found).axes) == len(HEADS) + 1
    words = finding(found)
    assert " ".join(titled(figure(found), words).get_suptitle().split()) == words
    losses, accounts = tables(found).values()
    assert losses["arm"].to_list() == list(SMALL)
    assert accounts.height == len(SMALL)


def test_every_claim_is_shown_here() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS) == 5 + 1 + 2 + 2 + 2 + 4


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


def test_losses_and_accounts_of_a_run(tmp_path: Path) -> None:
    smoke = softplus_extrapolation.arms("smoke")
    run = train(smoke[arm(LSSAR_15, 16)].run(0), tmp_path)
    assert softplus_extrapolation.measure is not None
    found = softplus_extrapolation.measure(run)
    assert found["length"].to_list() == list(run.config.evaluation.lengths)
    assert found["loss"][-1] == pytest.approx(run.evaluation["loss"][-1], rel=1e-6)
    assert found["full"].null_count() == 3
    assert found["full"][-1] != found["clamped"][-1]
    without = softplus_extrapolation.measure(train(smoke["LSSAR p=15, NoPE"].run(0), tmp_path))
    assert without["full"].null_count() == 4
