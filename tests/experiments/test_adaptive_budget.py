"""The study ``adaptive_budget``: budgets of what it compares, what it measures, and its rules on made-up evidence."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest
import torch
from adaptive_budget.arms import CHOICES, DENSE, FIRST, KEYS, LENGTHS, RANDOM, SELECTED, WINDOW, arms, share_of_pairs
from adaptive_budget.claims import ABOVE_RANDOM, FASTER, KEPT
from adaptive_budget.measure import QUARTER, TIMED, TIMED_LENGTH, measure, recall, seconds
from adaptive_budget.page import figure
from adaptive_budget.study import study as adaptive_budget

from sparsity_lab.generators import InductionHeads, Stream
from sparsity_lab.kernels import AdaptiveSparse, Kernel, Softmax
from sparsity_lab.models import Decoder, DecoderModel, NoPE
from sparsity_lab.studies import Evidence
from sparsity_lab.training import train

SEEDS = range(7)


# --- budgets


def best(name: str, kernels: Mapping[str, Kernel] = CHOICES) -> AdaptiveSparse:
    kernel = kernels[name]
    assert isinstance(kernel, AdaptiveSparse)
    return kernel


def keys_of(name: str, length: int) -> torch.Tensor:
    """How many keys each row sees, in each head: (2, T)."""
    q, k = torch.randn(2, 1, 2, length, 8, generator=torch.Generator().manual_seed(0))
    return (CHOICES[name].weights(q, k, training=False) != 0).sum(-1)[0]


def test_share_of_pairs_counts_what_the_mechanism_keeps() -> None:
    length = 600
    kept = int(keys_of(SELECTED, length)[0].sum())
    assert share_of_pairs(best(SELECTED), length) == pytest.approx(kept / (length * (length + 1) / 2))
    assert int(keys_of(SELECTED, length).max()) == KEYS


def test_at_most_a_quarter_of_the_pairs() -> None:
    assert [share_of_pairs(best(SELECTED), length) for length in LENGTHS] == pytest.approx([0.207, 0.1066], abs=1e-3)
    assert 0.24 < share_of_pairs(best(QUARTER, TIMED), TIMED_LENGTH) <= 0.25


def test_a_window_has_as_many_keys() -> None:
    """In the mean over the places in a row's own block, up to half a key."""
    by_window, by_scores = (keys_of(name, 512)[:, KEYS:].double().mean() for name in (WINDOW, SELECTED))
    assert abs(float(by_window - by_scores)) <= 0.5


def test_random_blocks_are_as_many_and_others() -> None:
    """Values that are one-hot in the block, so that the output tells which blocks a row sees."""
    own, drawn = best(SELECTED), best(RANDOM)
    length, size = 640, own.block_size
    q = k = torch.zeros(1, 1, length, length // size)
    v = torch.nn.functional.one_hot(torch.arange(length) // size).float()[None, None]
    seen = []
    for kernel, training in ((own, False), (drawn, True), (drawn, True)):
        generator = torch.Generator().manual_seed(len(seen))
        rows = kernel.attend(q, k, v, training=training, generator=generator if training else None)[0, 0, 320:]
        seen.append(rows > 0)
    assert all((one.sum(-1) == KEYS // size).all() for one in seen)
    # The own block and the one before, whatever is drawn.
    assert all(one[-1, -2:].all() for one in seen)
    assert not torch.equal(seen[1], seen[2])


# --- measures


def finder() -> tuple[DecoderModel, InductionHeads]:
    task = InductionHeads(data_vocab=6)
    model = Decoder(num_layers=2, num_heads=1, d_model=16, kernel=(FIRST, Softmax()), position=NoPE()).build(0, 8)
    assert isinstance(model, DecoderModel)
    return model, task


def test_recall_of_dense_attention_is_the_models_own_and_that_of_short_sequences_is_the_same_for_all() -> None:
    model, task = finder()
    batch = task.sample(Stream(), 0, 16, 60)
    with torch.no_grad():
        logits = model.eval()(batch.tokens, scored=batch.scored).logits
    expected = float((logits.argmax(-1) == batch.targets[batch.scored]).double().mean())
    # All choices see 60 tokens.
    assert [recall(model, choice, batch, seed=0) for choice in CHOICES] == [expected] * len(CHOICES)


def test_seconds_are_those_of_each_kernel() -> None:
    threads = torch.get_num_threads()
    found = seconds((Softmax(), best(SELECTED)), (1, 1, 64, 8), seed=0)
    assert len(found) == 2
    assert all(one > 0 for one in found)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_measures_of_a_run(tmp_path: Path) -> None:
    found = measure(train(arms("smoke")[DENSE].run(0), tmp_path))
    recalls = found.filter(what="recall")
    assert recalls.select("length", "choice").rows() == [(length, choice) for length in LENGTHS for choice in CHOICES]
    assert recalls["accuracy"].is_between(0.0, 1.0).all()
    times = found.filter(what="time")
    assert times["choice"].to_list() == list(TIMED)
    assert (times["ratio"] - times["seconds"] / times["dense_seconds"]).abs().max() == pytest.approx(0.0)


# --- rules


def evidence(
    own: float = 1.0,
    *,
    dense: float = 1.0,
    farther: float | None = None,
    random: float = 0.3,
    window: float = 0.2,
    ratio: float = 0.6,
    learned: bool = True,
) -> Evidence:
    """These numbers in every seed; ``farther``: selected blocks at the longer of the compared lengths."""
    rows, measures = [], []
    for seed in SEEDS:
        of_seed = {"arm": DENSE, "seed": seed}
        rows += [of_seed | {"length": 32, "trained": True, "accuracy": 1.0, "learned": learned}]
        for length in LENGTHS:
            selected = own if farther is None or length == LENGTHS[0] else farther
            levels = {DENSE: dense, SELECTED: selected, RANDOM: random, WINDOW: window}
            measures += [
                of_seed | {"what": "recall", "choice": choice, "length": length, "accuracy": level}
                for choice, level in levels.items()
            ]
        measures += [
            of_seed
            | {"what": "time", "choice": choice, "length": TIMED_LENGTH, "seconds": ratio, "dense_seconds": 1.0}
            | {"ratio": ratio}
            for choice in TIMED
        ]
    return Evidence(pl.DataFrame(rows), pl.DataFrame(measures, infer_schema_length=None))


def verdict(name: str, found: Evidence) -> str:
    return adaptive_budget.judge(found)[name].verdict


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"own": 0.99}, "held"),
        ({"own": 1.0, "dense": 0.95}, "held"),
        ({"own": 0.97}, "did not hold"),
        # Both lengths count.
        ({"own": 1.0, "farther": 0.97}, "did not hold"),
        # There is nothing to keep.
        ({"own": 0.8, "dense": 0.8}, "did not hold"),
    ],
)
def test_recall_is_kept(numbers: dict[str, float], expected: str) -> None:
    assert verdict(KEPT, evidence(**numbers)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("other", "expected"), [(0.85, "held"), (0.95, "did not hold")])
def test_selection_is_above_what_does_not_select(other: float, expected: str) -> None:
    assert verdict(ABOVE_RANDOM, evidence(random=other)) == expected
    assert verdict("above a window", evidence(window=other)) == expected


@pytest.mark.parametrize(("ratio", "expected"), [(0.9, "held"), (1.1, "did not hold")])
def test_selection_is_faster(ratio: float, expected: str) -> None:
    assert verdict(FASTER, evidence(ratio=ratio)) == expected
    assert verdict("faster with a quarter of the pairs", evidence(ratio=ratio)) == expected


def test_seeds_that_differ_do_not_decide() -> None:
    found = evidence()
    measured = found.measured.with_columns(
        pl.when(pl.col("seed") < 3).then(pl.col("ratio") + 1).otherwise("ratio").alias("ratio")
    )
    assert verdict(FASTER, Evidence(found.rows, measured)) == "not decided"
    assert adaptive_budget.judge(evidence(learned=False))[KEPT].cannot_tell == "never learned"


def test_figure_has_three_panels() -> None:
    assert len(figure(evidence()).axes) == 3
