"""The study of ``extend``: the runs and methods keep to the plan, and its rules say each verdict."""

from pathlib import Path

import polars as pl
import pytest
from extend_existing.study import (
    BOTH,
    BOTH_DENSE,
    DENSE,
    LORA,
    LORA_DENSE,
    METHODS,
    NO_STEP,
    PARENT,
    SCALES,
    SHIFTED,
    losses,
    measure,
)
from extend_existing.study import study as extend_existing
from made_up_evidence import JITTER, TORN, claim_of

from sparsity_lab.kernels import ShiftedSparse, Softmax
from sparsity_lab.studies import Evidence
from sparsity_lab.sweeps import Serial, Sweep, run_sweep
from sparsity_lab.training import Run

WITHIN, BEHIND, CLOSE, WITH_BOTH, MATTERS = extend_existing.primary


def evidence(by: tuple[float, ...] = JITTER, **losses: float) -> Evidence:
    """Losses at the new context by method; a tenth of ``by`` is what seeds have more."""
    made = {PARENT: 2.0, DENSE: 1.0, SHIFTED: 1.005, LORA: 1.1, BOTH: 1.03, BOTH_DENSE: 1.028} | losses
    rows = [
        {
            "arm": PARENT,
            "seed": seed,
            "method": method,
            "length": length,
            "loss": loss * (1 + 0.1 * by[(seed + place) % len(by)]),
        }
        for place, (method, at) in enumerate(made.items())
        for seed in range(12)
        for length, loss in ((64, 1.5), (256, at))
    ]
    begun = pl.DataFrame({"arm": [PARENT]}).with_columns(seed=0, learned=pl.lit(None, pl.Boolean()))
    return Evidence(begun, pl.DataFrame(rows))


def verdicts(found: Evidence) -> dict[str, str]:
    return {name: decision.verdict for name, decision in extend_existing.judge(found).items()}


def test_the_methods_are_those_of_the_paper() -> None:
    assert {name: (how.rank, how.whole) for name, how in METHODS.items()} == {
        NO_STEP: (None, False),
        DENSE: (None, False),
        SHIFTED: (None, False),
        LORA: (8, False),
        LORA_DENSE: (8, False),
        BOTH: (8, True),
        BOTH_DENSE: (8, True),
    }
    for name, how in METHODS.items():
        assert how.kernel == (Softmax() if "dense" in name or name == NO_STEP else ShiftedSparse(ratio=0.25))
        assert how.steps == (name != NO_STEP)
    scale = SCALES["small"]
    assert scale.layers >= 2 * 4 - 1  # as deep as the last byte needs to depend on the whole context
    assert len({own.parent_steps for own in SCALES.values()}) == len(SCALES)  # ``measure`` tells sizes by it


def test_every_claim_can_hold() -> None:
    found = verdicts(evidence())
    assert found == dict.fromkeys(extend_existing.primary, "held")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        (WITHIN, {SHIFTED: 1.02}),
        (BEHIND, {LORA: 1.006}),
        (CLOSE, {BOTH: 1.09}),
        (WITH_BOTH, {BOTH_DENSE: 1.0}),
        (MATTERS, {PARENT: 1.01}),
    ],
)
def test_every_claim_can_fail(name: str, changed: dict[str, float]) -> None:
    assert verdicts(evidence(**changed))[name] == "did not hold"


def test_seeds_that_disagree_decide_nothing() -> None:
    found = evidence()
    torn = found.measured.with_columns(
        loss=pl.when(pl.col("method") == LORA)
        .then(1.02 + 0.1 * pl.col("seed").map_elements(lambda seed: TORN[seed % len(TORN)], return_dtype=pl.Float64))
        .otherwise("loss")
    )
    assert verdicts(Evidence(found.rows, torn))[BEHIND] == "not decided"


def test_numbers_of_a_seed() -> None:
    """LoRA alone 1.5, all weights 1.0; both 1.2, so .6 of the gap is closed."""
    found = evidence(by=(0.0,), **{SHIFTED: 1.0, LORA: 1.5, BOTH: 1.2, BOTH_DENSE: 1.0, DENSE: 0.8})
    first = {name: claim_of(extend_existing, name).numbers(found).numbers[0] for name in extend_existing.primary}
    assert first == pytest.approx({WITHIN: 0.25, BEHIND: 0.5, CLOSE: 0.6, WITH_BOTH: 0.2, MATTERS: 1.5})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")
def test_what_is_measured(tmp_path: Path) -> None:
    """One model, seven methods, every length; LoRA trains fewest weights, and more with embeddings and norms."""
    pytest.importorskip("peft")
    run = extend_existing.arms("smoke")[PARENT].run(3)
    assert run_sweep(Sweep(name="measured", runs=[run]), tmp_path, Serial()).failures == ()
    found = measure(Run.load(tmp_path / run.id))
    scale = SCALES["smoke"]
    assert found["method"].unique(maintain_order=True).to_list() == [PARENT, *METHODS]
    lengths = [scale.short // 2, scale.short, 2 * scale.short, 4 * scale.short]
    for _, part in found.group_by("method"):
        assert part["length"].to_list() == lengths
        assert part["loss"].is_between(1.0, 12.0).all()
    trained = dict(found.select("method", "trained").unique().iter_rows())
    assert trained[LORA] < trained[BOTH] == trained[BOTH_DENSE] < trained[DENSE] == trained[SHIFTED]
    assert trained[LORA] == trained[LORA_DENSE]
    assert trained[PARENT] == 0
    own = Evidence(pl.DataFrame({"arm": [PARENT], "seed": [3]}), found.with_columns(seed=3, arm=pl.lit(PARENT)))
    assert losses(own, LORA) == {3: found.filter(method=LORA)["loss"].last()}
