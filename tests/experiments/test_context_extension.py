"""The context-extension study: its runs keep to the plan, its measure is known, and its rules say each verdict."""

import math
from pathlib import Path

import polars as pl
import pytest
import torch
from context_extension.arms import (
    BOTH,
    CALIBRATION_SEED,
    DENSE,
    INTERPOLATED,
    LONGER,
    LORA,
    METHODS,
    PARENT,
    RATES,
    SCALES,
    SHIFTED,
    TRIED,
    with_rate,
)
from context_extension.measure import loss_in_windows, measure
from context_extension.study import study as context_extension
from made_up_evidence import JITTER, TORN, claim_of

from sparsity_lab.kernels import ShiftedSparse, Softmax
from sparsity_lab.models import LoRA, ModelOutput
from sparsity_lab.studies import Evidence
from sparsity_lab.sweeps import Serial, Sweep, run_sweep
from sparsity_lab.training import Run

SEEDS = range(12)
WITHIN, BEHIND, CLOSE, MATTERS = context_extension.primary
NAMES = (PARENT, INTERPOLATED, DENSE, SHIFTED, LORA, BOTH)


def evidence(by: tuple[float, ...] = JITTER, sparse: float = 1.2, short: float = 1.1, **losses: float) -> Evidence:
    """Losses at four times the context by arm; a tenth of ``by`` is what seeds have more, each arm in an order of its
    own."""
    at_long = {PARENT: 2.0, INTERPOLATED: 1.8, DENSE: 1.0, SHIFTED: 1.005, LORA: 1.1, BOTH: 1.03} | losses
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "length": length,
            "loss": loss * (1 + 0.1 * by[(seed + place) % len(by)]),
            "sparse_loss": sparse if (arm, length) == (SHIFTED, 1024) else None,
            "trainable": 10,
        }
        for place, (arm, at) in enumerate(at_long.items())
        for seed in SEEDS
        for length, loss in ((256, 1.0 if arm == PARENT else short), (1024, at), (2048, 2 * at))
    ]
    begun = pl.DataFrame({"arm": NAMES}).with_columns(seed=0, learned=pl.lit(None, pl.Boolean()))
    return Evidence(begun, pl.DataFrame(rows, infer_schema_length=None))


def verdicts(found: Evidence) -> dict[str, str]:
    return {name: decision.verdict for name, decision in context_extension.judge(found).items()}


@pytest.mark.parametrize("size", ["small", "full"])
def test_runs_keep_to_the_plan(size: str) -> None:
    scale, found = SCALES[size], context_extension.arms(size)
    rated = {with_rate(method, rate) for method, rates in TRIED.items() for rate in rates}
    assert found.keys() == {*NAMES, LONGER, *rated}
    assert TRIED.keys() == METHODS.keys()
    assert all(rate in TRIED[method] for method, rate in RATES.items())
    for name, arm in found.items():
        run = arm.run(3)
        length = {PARENT: scale.short, LONGER: 8 * scale.short}.get(name, 4 * scale.short)
        assert run.training.curriculum.range() == (length, length)
        assert run.training.batch_size * length == scale.tokens
        if name != PARENT:
            assert run.model.position.scale == pytest.approx(length / scale.short)
            assert run.parent == found[PARENT].run(3)
        if name in (PARENT, INTERPOLATED) or name.startswith(DENSE):
            assert run.model.kernel == Softmax()
        else:
            # Deep enough for the last byte to depend on the whole context.
            assert isinstance(run.model.kernel, ShiftedSparse)
            assert run.model.num_layers >= 2 * length / run.model.kernel.group_size(length) - 1
        assert isinstance(run.adapter, LoRA) == ("LoRA" in name)
        assert run.training.steps == {PARENT: scale.parent_steps, INTERPOLATED: 0}.get(name, scale.steps)


def test_the_calibration_seed_is_in_no_claim() -> None:
    found = context_extension.arms("small")
    judged = {arm for claim in context_extension.claims for arm in claim.arms}
    tried = {name for name in found if ", rate " in name}
    assert not judged & tried
    assert {run.data_seed for name in tried for run in found[name].runs} == {CALIBRATION_SEED}
    assert all(run.data_seed < CALIBRATION_SEED for name in judged for run in found[name].runs)
    for method, rate in RATES.items():
        assert found[method].run(CALIBRATION_SEED) == found[with_rate(method, rate)].run(CALIBRATION_SEED)


def test_every_part_of_the_headline_can_hold() -> None:
    found = verdicts(evidence(short=1.3))
    assert found == dict.fromkeys(found, "held")


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        (WITHIN, {SHIFTED: 1.02}),
        (BEHIND, {LORA: 1.006}),
        (CLOSE, {BOTH: 1.09}),
        (MATTERS, {INTERPOLATED: 1.01, PARENT: 1.3}),
    ],
)
def test_every_part_can_fail(name: str, losses: dict[str, float]) -> None:
    assert verdicts(evidence(**losses))[name] == "did not hold"


def test_seeds_that_disagree_decide_nothing() -> None:
    found = verdicts(evidence(by=TORN, **{LORA: 1.02}))
    assert [found[name] for name in (WITHIN, BEHIND)] == ["not decided", "not decided"]


@pytest.mark.parametrize(("sparse", "expected"), [(1.2, "held"), (0.9, "did not hold"), (1.0, "not decided")])
def test_sparse_at_test(sparse: float, expected: str) -> None:
    found = evidence(sparse=sparse, by=(0.5, -0.5), **{SHIFTED: 1.0})
    assert verdicts(found)["dense at test is better"] == expected


@pytest.mark.parametrize(("short", "expected"), [(1.1, "held"), (0.9, "did not hold"), (1.0, "smaller than matters")])
def test_short_contexts(short: float, expected: str) -> None:
    assert verdicts(evidence(short=short))["short contexts suffer"] == expected


def test_numbers_of_a_seed() -> None:
    """LoRA alone 1.5, all weights 1.0; both 1.2, so .6 of the gap is closed."""
    found = evidence(by=(0.0,), **{SHIFTED: 1.0, LORA: 1.5, BOTH: 1.2, DENSE: 0.8})
    first = {name: claim_of(context_extension, name).numbers(found).numbers[0] for name in context_extension.primary}
    assert first == pytest.approx({WITHIN: 0.25, BEHIND: 0.5, CLOSE: 0.6, MATTERS: 1.25})


def test_without_a_gap_nothing_can_be_closed() -> None:
    found = evidence(by=(0.0,), **{SHIFTED: 1.0, LORA: 0.9, BOTH: 0.8})
    assert claim_of(context_extension, CLOSE).numbers(found).numbers == {}


class Counting(torch.nn.Module):
    """Knows byte 0 with a probability that falls with the place in the window: e^-place."""

    def forward(self, tokens: torch.Tensor) -> ModelOutput:
        place = torch.arange(tokens.shape[1]).double()
        rest = torch.log1p(-(-place - 1).exp())
        return ModelOutput(torch.stack([-place - 1, rest], dim=-1).expand(len(tokens), -1, -1), {})


def test_all_lengths_are_tested_on_the_same_bytes() -> None:
    """Windows of 2 have the places 1 and 2, of 4 the places 1 to 4."""
    zeros = torch.zeros(3, 8, dtype=torch.int64)
    assert loss_in_windows(Counting(), zeros, zeros, 2, 100) == pytest.approx(1.5)
    assert loss_in_windows(Counting(), zeros, zeros, 4, 5) == pytest.approx(2.5)
    assert loss_in_windows(Counting(), zeros, 1 - zeros, 1, 100) == pytest.approx(-math.log1p(-math.exp(-1)))


def test_smoke_runs_to_its_figure(tmp_path: Path) -> None:
    """With arms that have no run yet; the parent's clock is its own, and that of the runs made from it."""
    arms = context_extension.arms("smoke")
    results = run_sweep(Sweep(name="context_extension", runs=(arms[SHIFTED].run(0),)), tmp_path, Serial())
    found = context_extension.evidence(results, "smoke")
    assert set(found.rows["arm"]) == {PARENT, SHIFTED}
    clocks = {arm: found.rows.filter(pl.col("arm") == arm).row(0, named=True) for arm in (PARENT, SHIFTED)}
    assert clocks[PARENT]["parent_seconds"] == 0.0
    assert clocks[SHIFTED]["parent_seconds"] == pytest.approx(clocks[PARENT]["seconds"])
    assert context_extension.figure(found).axes
    assert context_extension.tables(found)
    assert set(verdicts(found).values()) == {"not decided"}
    own = measure(Run.load(tmp_path / arms[SHIFTED].run(0).id))
    assert own.filter(pl.col("sparse_loss").is_not_null())["length"].to_list() == [64]
