"""The study ``adaptive_budget``: what its choices keep, and its rules on made-up evidence."""

import polars as pl
import pytest
import torch
from adaptive_budget.arms import MIDDLE, NATIVE, TASKS, TEXT, dense, selector
from adaptive_budget.choices import by_chance, by_kernel, by_mass, performance, trained_scores
from adaptive_budget.measure import (
    DENSE,
    ORACLE,
    OWN,
    RANDOM,
    TOP_K,
    TOP_P,
    UNTRAINED,
    WINDOW,
    window,
)
from adaptive_budget.study import study as adaptive_budget
from made_up_evidence import JITTER, TORN, claim_of, shifted

from sparsity_lab.generators import Stream
from sparsity_lab.kernels import AdaptiveSparse, Softmax
from sparsity_lab.models import Decoder, DecoderModel, RoPE
from sparsity_lab.studies import Evidence

SEEDS = range(3)
CASES = [(shifted(0.3), "held"), (shifted(-0.3), "did not hold"), (TORN, "not decided")]

# Each claim about two choices: the better one and the other.
CHOICES = {
    "window": (TOP_K, WINDOW),
    "random": (TOP_K, RANDOM),
    "training": (TOP_K, UNTRAINED),
    "oracle": (ORACLE, TOP_K),
}


# --- choices


def rows(length: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k (2, 2, T, 8), and the dense weights."""
    q, k = torch.randn(2, 2, 2, length, 8, generator=torch.Generator().manual_seed(0))
    return q, k, Softmax().weights(q, k)


def test_selection_is_that_of_the_mechanism() -> None:
    """Dense weights, the kept keys and a division give what the kernel itself gives."""
    kernel = selector(4)
    q, k, weights = rows()
    v = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    kept = by_kernel(kernel)(0, q, k, None, weights)
    own = weights * kept
    found = own / own.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(found, kernel.attend(q, k, v, training=False))
    assert not kept.all()


def test_all_choices_of_blocks_keep_as_many_keys_and_the_oracle_the_most_mass() -> None:
    kernel = selector(4)
    q, k, weights = rows()
    by_name = {
        "scores": by_kernel(kernel),
        "mass": by_mass(kernel),
        "chance": by_chance(kernel, seed=0),
    }
    kept = {name: choose(0, q, k, None, weights) for name, choose in by_name.items()}
    masses = {name: (weights * one).sum(-1) for name, one in kept.items()}
    for name, one in kept.items():
        assert torch.equal(one.sum(-1), kept["scores"].sum(-1)), name
        assert not one.triu(1).any(), name
        # The first block, the own one and the one before, whoever chooses.
        assert all(one[:, :, 29, place].all() for place in (0, 3, 24, 29)), name
    assert (masses["mass"] >= masses["scores"] - 1e-6).all()
    assert masses["mass"].mean() > masses["scores"].mean() > masses["chance"].mean()


def test_oracle_takes_the_blocks_with_most_mass() -> None:
    """A row at 23 with blocks of 4: sinks 0 - 3, local 16 - 23; of blocks 1 to 3 the heaviest two are 1 and 3."""
    weights = torch.zeros(1, 1, 24, 24)
    weights[..., 23, [5, 9, 13, 14]] = torch.tensor([0.3, 0.2, 0.15, 0.35])
    kept = by_mass(selector(4))(0, weights, weights, None, weights)[0, 0, 23]
    assert kept.nonzero().flatten().tolist() == [*range(8), *range(12, 24)]


def test_window_has_the_same_budget() -> None:
    """In the mean over rows that have all their blocks, up to half a key."""
    q, k, weights = rows(64)
    for size, budget in ((4, 1), (4, 4), (8, 2)):
        by_window, by_scores = (
            by_kernel(kernel)(0, q, k, None, weights)[..., (3 + budget) * size :, :].sum(-1).double().mean()
            for kernel in (window(size, budget), selector(size, budget))
        )
        assert abs(float(by_window - by_scores)) <= 0.5


def decoder() -> tuple[DecoderModel, torch.Tensor]:
    config = adaptive_budget.arms("smoke")[dense("recall")][0]
    model = Decoder(num_layers=2, num_heads=2, d_model=16, position=RoPE()).build(0, 16).eval()
    return model, config.task.sample(Stream(), 0, 8, 40)


def test_performance_of_dense_choices_is_the_models_own() -> None:
    model, batch = decoder()
    found = performance(model, batch, [None, None])
    with torch.no_grad():
        logits = model(batch.tokens, scored=batch.scored).logits
    expected = torch.nn.functional.cross_entropy(logits, batch.targets[batch.scored])
    assert found.loss == pytest.approx(float(expected), abs=1e-5)
    assert (found.budget, found.mass) == (1.0, pytest.approx(1.0, abs=1e-6))
    one = performance(model, batch, [by_kernel(selector(4)), None])
    both = performance(model, batch, [by_kernel(selector(4))] * 2)
    assert both.budget < one.budget < 1.0
    assert both.budget == pytest.approx(2 * one.budget - 1.0)


def test_selector_is_trained_alone() -> None:
    model, _ = decoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = adaptive_budget.arms("smoke")[dense("recall")][0]
    scores, losses = trained_scores(model, config, selector(4), steps=25)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(not torch.equal(score.beta, torch.tensor([[1.0, 0.0]] * 2)) for score in scores)
    assert sum(losses[-5:]) < sum(losses[:5])


def test_arms_from_the_start_differ_from_dense_text_in_their_kernel_alone() -> None:
    found = adaptive_budget.arms("small")
    assert set(found) == {*map(dense, TASKS), *NATIVE}
    plain = found[dense(TEXT)][0]
    for arm in NATIVE:
        model = found[arm][0].model
        assert isinstance(model.kernel, AdaptiveSparse)
        assert found[arm][0].replace(model=model.replace(kernel=Softmax())) == plain


# --- rules

Numbers = dict[tuple[str, str], tuple[float, ...]]
"""By arm and choice, a number for each seed."""


def evidence(numbers: Numbers, column: str = "quality", *, learned: bool = True, **more: object) -> Evidence:
    """These numbers at the middle budget, of runs that learned or did not."""
    arms = {arm for arm, _ in numbers}
    runs = [
        {
            "arm": arm,
            "seed": seed,
            "learned": None if arm.startswith(TEXT) else learned,
            "loss": 2.0 if learned else 4.0,
            "chance_loss": 3.0,
        }
        for arm in sorted(arms)
        for seed in SEEDS
    ]
    measures = [
        {"arm": arm, "seed": seed, "what": "budget", "choice": choice, "k": MIDDLE, column: found[seed]} | more
        for (arm, choice), found in numbers.items()
        for seed in SEEDS
    ]
    schema = {
        "arm": pl.String,
        "seed": pl.Int64,
        "learned": pl.Boolean,
        "loss": pl.Float64,
        "chance_loss": pl.Float64,
    }
    return Evidence(pl.DataFrame(runs, schema=schema), pl.DataFrame(measures))


def verdict(name: str, found: Evidence) -> str:
    return claim_of(adaptive_budget, name).decide(found).verdict


def plus(base: float, by: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(base + one for one in by)


def test_every_claim_is_shown_here() -> None:
    of_tasks = {f"{task}: {name}" for task in TASKS for name in (*CHOICES, "retrofit")}
    others = {"way to the oracle", "top-p", "first layer", "from the start", "from the start, beside dense"}
    assert {claim.name for claim in adaptive_budget.claims} == of_tasks | others


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(("by", "expected"), CASES)
def test_choices(task: str, name: str, by: tuple[float, ...], expected: str) -> None:
    better, other = CHOICES[name]
    numbers = {(dense(task), other): (0.5, 0.5, 0.5), (dense(task), better): plus(0.5, by)}
    assert verdict(f"{task}: {name}", evidence(numbers)) == expected
    assert verdict(f"{task}: {name}", evidence(numbers, learned=False)) == "not decided"


@pytest.mark.parametrize(
    ("lost", "expected"),
    [((0.0, 0.01, 0.0), "held"), ((0.2, 0.21, 0.2), "did not hold"), ((0.0, 0.1, 0.05), "not decided")],
)
def test_what_may_be_lost(lost: tuple[float, ...], expected: str) -> None:
    less = tuple(0.9 - one for one in lost)
    for task in TASKS:
        numbers = {(dense(task), DENSE): (0.9, 0.9, 0.9), (dense(task), TOP_K): less}
        assert verdict(f"{task}: retrofit", evidence(numbers)) == expected
    native = {(dense(TEXT), DENSE): (0.9, 0.9, 0.9), (NATIVE[0], OWN): less}
    assert verdict("from the start, beside dense", evidence(native)) == expected


@pytest.mark.parametrize(("by", "expected"), CASES)
def test_from_the_start(by: tuple[float, ...], expected: str) -> None:
    numbers = {(dense(TEXT), TOP_K): (-2.0, -2.0, -2.0), (NATIVE[0], OWN): plus(-2.0, by)}
    assert verdict("from the start", evidence(numbers)) == expected


@pytest.mark.parametrize(("own", "expected"), [(0.9, "held"), (0.6, "did not hold"), (0.75, "not decided")])
def test_way_to_the_oracle(own: float, expected: str) -> None:
    """From 0.5 by chance to 1 of the oracle."""
    masses = {RANDOM: (0.5, 0.5, 0.5), ORACLE: (1.0, 1.0, 1.0), TOP_K: plus(own, JITTER)}
    numbers = {(dense(TEXT), choice): one for choice, one in masses.items()}
    assert verdict("way to the oracle", evidence(numbers, "mass")) == expected


@pytest.mark.parametrize(("by", "expected"), CASES)
def test_shares_are_compared_at_equal_budget(by: tuple[float, ...], expected: str) -> None:
    """Top-k gives the quality of its budget, 0.4 to 0.8; one share is inside, at 0.5, and one outside."""
    found = evidence({(dense(TEXT), DENSE): (1.0, 1.0, 1.0)})
    more = [
        {"arm": dense(TEXT), "seed": seed, "what": "budget", "choice": choice, "budget": budget, "quality": quality}
        for seed in SEEDS
        for choice, budget, quality in (
            (TOP_K, 0.4, 0.4),
            (TOP_K, 0.8, 0.8),
            (TOP_P, 0.5, 0.5 + by[seed]),
            (TOP_P, 0.9, 9.0),
        )
    ]
    measures = pl.concat([found.measured, pl.DataFrame(more)], how="diagonal")
    assert verdict("top-p", Evidence(found.rows, measures)) == expected


@pytest.mark.parametrize(("by", "expected"), CASES)
def test_layers_alone(by: tuple[float, ...], expected: str) -> None:
    """Of three layers; the first two together do not count."""
    found = evidence({(dense(TEXT), DENSE): (1.0, 1.0, 1.0)})
    more = [
        {"arm": dense(TEXT), "seed": seed, "what": "layers", "layers": layers, "quality": quality}
        for seed in SEEDS
        for layers, quality in (("1", 0.5), ("2", 9.0), ("3", 0.5 + by[seed]), ("1, 2", -9.0))
    ]
    measures = pl.concat([found.measured, pl.DataFrame(more)], how="diagonal")
    assert verdict("first layer", Evidence(found.rows, measures)) == expected
