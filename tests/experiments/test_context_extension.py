"""The context-extension study: its runs keep to the plan, and its rules decide by hand what they decide."""

import math

import polars as pl
import pytest
from context_extension.arms import (
    FEW,
    INTERPOLATED,
    LONGER,
    METHODS,
    PLAIN,
    SCALES,
    arm,
    arms,
)
from context_extension.claims import CLAIMS
from context_extension.lookup import chosen
from context_extension.study import study as context_extension

from sparsity_lab.analysis import Interval, mean_interval
from sparsity_lab.kernels import ShiftedSparse, Softmax
from sparsity_lab.studies import Decision, Evidence, judged
from sparsity_lab.training import EVALUATION_SCHEMA

MEASURES = {
    "arm": pl.String(),
    "seed": pl.Int64(),
    "validation_loss": pl.Float64(),
    "sparse_loss": pl.Float64(),
    "attention_over_dense": pl.Float64(),
    "trainable_parameters": pl.Int64(),
    "parameters": pl.Int64(),
    "step_ms": pl.Float64(),
    "peak_mib": pl.Float64(),
}


def evidence(*runs: dict[str, object], column: str = "loss", length: int = 256) -> Evidence:
    """Evidence of runs given as arm, seed, ``at`` (what was found at the trained length) and measures."""
    rows = [
        {"arm": run["arm"], "seed": run["seed"], "length": length, "trained": True, column: run["at"]} for run in runs
    ]
    measured = [{name: value for name, value in run.items() if name != "at"} for run in runs]
    schema = {"arm": pl.String(), "seed": pl.Int64(), **EVALUATION_SCHEMA}
    return Evidence(pl.DataFrame(rows, schema=schema), pl.DataFrame(measured, schema=MEASURES))


def run(name: str, seed: int, at: float, validation: float = 1.0, **measured: float) -> dict[str, object]:
    return {"arm": name, "seed": seed, "at": at, "validation_loss": validation, **measured}


def decided(name: str, found: Evidence) -> Decision:
    return next(claim for claim in CLAIMS if claim.name == name).decide(found)


@pytest.mark.parametrize("size", ["small", "full"])
def test_runs_keep_to_the_plan(size: str) -> None:
    scale, found = SCALES[size], arms(size)
    tuned = {name: runs for name, runs in found.items() if ", rate " in name}
    assert len(tuned) == len(scale.rates) * (len(METHODS) + 3 * len(FEW))
    for name, runs in tuned.items():
        longer = name.startswith(LONGER)
        length = scale.longer if longer else scale.long
        for one in runs:
            assert one.training.curriculum.range() == (length, length)
            assert one.model.position.scale == pytest.approx(length / scale.short, rel=0.05)
            assert one.parent.training.curriculum.range() == (scale.short, scale.short)
            assert one.training.batch_size * length == scale.tokens
            kernel = one.model.kernel
            if ": dense" in name:
                assert kernel == Softmax()
            else:
                # Deep enough for the last token to depend on the whole context.
                assert isinstance(kernel, ShiftedSparse)
                assert one.model.num_layers >= 2 * length / kernel.group_size(length) - 1
    assert context_extension.sweep(size).runs[0].parent is None


def test_rate_is_chosen_on_the_mean_validation_loss_of_all_seeds() -> None:
    names = [arm("text", "dense", rate) for rate in (1e-4, 1e-3, 1e-2)]
    found = evidence(
        run(names[0], 0, 1.0, validation=1.2),
        run(names[0], 1, 1.0, validation=1.2),
        run(names[1], 0, 9.0, validation=1.3),
        run(names[1], 1, 9.0, validation=1.0),
        # Best, but one seed diverged.
        run(names[2], 0, 0.5, validation=0.5),
        run(arm("text", "dense, of another kind", 1e-3), 0, 0.5, validation=0.1),
    )
    assert chosen(found, "text", "dense") == names[1]


def test_perplexities_are_compared_seed_by_seed() -> None:
    dense, shifted = arm("text", "dense", 1e-3), arm("text", "shifted", 1e-3)
    runs = [run(dense, 0, 1.0), run(dense, 1, 2.0)]
    worse = evidence(*runs, run(shifted, 0, 1.0 + math.log(1.02)), run(shifted, 1, 2.0 + math.log(1.021)))
    decision = decided("shifted sparse is enough", worse)
    assert decision.verdict == "did not hold"
    expected = mean_interval([2.0, 2.1])
    assert decision.interval.low == pytest.approx(expected.low)
    assert decision.interval.high == pytest.approx(expected.high)
    same = evidence(*runs, run(shifted, 0, 1.001), run(shifted, 1, 2.001))
    assert decided("shifted sparse is enough", same).verdict == "held"
    apart = evidence(*runs, run(shifted, 0, 1.1), run(shifted, 1, 2.0))
    assert decided("shifted sparse is enough", apart).verdict == "not decided"
    assert decided("shifted sparse is enough", evidence(*runs, run(shifted, 0, 1.1))).verdict == "not decided"


def test_shares_of_the_gap() -> None:
    """LoRA alone 2.0, full 1.0; with embedding 1.2, so 0.8 of the gap is closed."""
    names = {method: arm("text", method, 1e-3) for method in METHODS}
    alone, full = "shifted, LoRA", "shifted"
    ends = [run(names[alone], seed, 2.0) for seed in (0, 1)] + [run(names[full], seed, 1.0) for seed in (0, 1)]
    embed = [run(names["shifted, LoRA + embed"], seed, 1.2 + 0.01 * seed) for seed in (0, 1)]
    both = [run(names["shifted, LoRA + both"], seed, 1.2 + 0.001 * seed) for seed in (0, 1)]
    found = evidence(*ends, *embed, *both)
    assert decided("embeddings close most of it", found).verdict == "held"
    assert decided("embeddings close most of it", found).interval.estimate == pytest.approx(0.795)
    assert decided("both close nearly all", found).verdict == "did not hold"
    assert decided("LoRA alone falls short", found).verdict == "held"
    no_gap = evidence(*ends[:3], run(names[full], 1, 2.1), *embed)
    assert decided("embeddings close most of it", no_gap).verdict == "not decided"


def test_rules_of_measures() -> None:
    shifted = arm("text", "shifted", 1e-3)
    sparse = evidence(*(run(shifted, seed, 1.0 + seed, sparse_loss=1.05 + 1.001 * seed) for seed in (0, 1)))
    assert decided("dense in use is better", sparse).verdict == "held"
    longer = [arm(LONGER, method, 1e-3) for method in ("shifted", "dense")]
    timed = evidence(
        *(run(longer[0], seed, 1.0, step_ms=50.0 + seed, attention_over_dense=0.4 + 0.01 * seed) for seed in (0, 1)),
        *(run(longer[1], seed, 1.0, step_ms=100.0) for seed in (0, 1)),
    )
    assert decided("steps are faster", timed).verdict == "held"
    assert decided("steps are faster", timed).interval.estimate == pytest.approx(0.505)
    assert decided("attention falls towards G / N", timed).verdict == "held"
    assert decided("attention falls towards G / N", timed).interval.estimate == pytest.approx(0.405)
    assert decided("a step gains less", timed).verdict == "held"
    assert decided("a step gains less", timed).interval.estimate == pytest.approx(0.1)
    slow = evidence(*(run(longer[0], seed, 1.0, attention_over_dense=0.7) for seed in (0, 1)))
    assert decided("attention falls towards G / N", slow).verdict == "did not hold"
    keys = arm("passkey", "shifted", 1e-3)
    found = evidence(*(run(keys, seed, 0.97 + 0.001 * seed) for seed in (0, 1)), column="accuracy")
    assert decided("retrieval survives", found).verdict == "held"


def test_without_fine_tuning() -> None:
    """A parent and its interpolated self are arms without rates; which context is compared is the claim's."""
    plain, interpolated = arm("text", PLAIN), arm("text", INTERPOLATED)
    tuned = arm("text", "shifted", 1e-3)
    schema = {"arm": pl.String(), "seed": pl.Int64(), **EVALUATION_SCHEMA}
    rows = [
        {"arm": name, "seed": seed, "length": length, "trained": length == trained, "loss": loss + 0.01 * seed}
        for name, trained, losses in (
            (plain, 64, {64: 1.0, 256: 2.0}),
            (interpolated, 256, {64: 3.0, 256: 1.5}),
            (tuned, 256, {64: 0.9, 256: 1.2}),
        )
        for length, loss in losses.items()
        for seed in (0, 1)
    ]
    measured = pl.DataFrame([{"arm": tuned, "seed": 0, "validation_loss": 1.0}], schema=MEASURES)
    found = Evidence(pl.DataFrame(rows, schema=schema), measured)
    better = decided("interpolation before training", found)
    assert better.verdict == "held"
    assert better.interval.estimate == pytest.approx(100 * math.expm1(0.5))
    short = decided("short contexts suffer", found)
    assert short.verdict == "did not hold"
    assert short.interval.estimate == pytest.approx(100 * math.expm1(-0.1))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.5, "held"), (0.4, 0.6, "not decided"), (0.5, 0.6, "not decided"), (0.51, 0.6, "did not hold")],
)
def test_at_most(low: float, high: float, verdict: str) -> None:
    assert judged(Interval((low + high) / 2, low, high, 2), at_most=0.5) == verdict
    assert judged(Interval(0.0, None, None, 1), at_most=0.5) == "not decided"


def test_nothing_is_decided_of_what_has_not_been_run() -> None:
    found = evidence()
    assert {claim.decide(found).verdict for claim in CLAIMS} == {"not decided"}
    assert context_extension.figure(found).axes
    assert context_extension.tables(found)
