"""The study ``norm_aware``: its arms differ in their kernels alone, its measures are known on layers made by hand,
and its rules say each verdict."""

import math
from pathlib import Path

import polars as pl
import pytest
import torch
from made_up_evidence import JITTER, TORN, claim_of
from norm_aware.arms import AWARE, NAMES, PLAIN, PUBLISHED
from norm_aware.measure import FACTORS, LIMIT, entropies, measure, norms_and_slope
from norm_aware.study import study as norm_aware

from sparsity_lab.kernels import Kernel, Linear, NormAwareLinear, Softmax
from sparsity_lab.models import LayerRecord
from sparsity_lab.studies import Evidence
from sparsity_lab.training import train

SEEDS = range(12)
FALLS, MORE, INSIDE = norm_aware.primary


def evidence(**numbers: dict[str, tuple[float, ...]]) -> Evidence:
    """Of two layers, one above the arm's number and one below. By column and arm the numbers of the seeds, over and
    over."""
    rows = [
        {"arm": arm, "seed": seed, "what": "norms", "layer": layer, column: found[seed % len(found)] + apart}
        for column, of in numbers.items()
        for arm, found in of.items()
        for seed in SEEDS
        for layer, apart in ((0, -0.01), (1, 0.01))
    ]
    columns = [pl.col(column).max() for column in numbers]
    measured = pl.DataFrame(rows, infer_schema_length=None).group_by("arm", "seed", "what", "layer").agg(columns)
    begun = pl.DataFrame({"arm": NAMES}, schema_overrides={"learned": pl.Boolean()})
    return Evidence(begun.with_columns(seed=0, learned=pl.lit(None, pl.Boolean())), measured.sort("seed", "layer"))


def about(number: float) -> tuple[float, ...]:
    return tuple(number * (1 + one) for one in JITTER)


def verdict(name: str, found: Evidence) -> str:
    return norm_aware.judge(found)[name].verdict


def slopes(aware: tuple[float, ...], elu: tuple[float, ...], relu: tuple[float, ...] = (0.0,)) -> Evidence:
    arms = (AWARE, *PLAIN)
    return evidence(
        slope=dict(zip(arms, (aware, elu, relu), strict=True)),
        inside={AWARE: (0.9,), PUBLISHED: (0.0,)},
        rank=dict.fromkeys(arms, (0.0,)),
    )


def test_arms_differ_in_their_kernels_alone() -> None:
    found = {name: arm.run(3) for name, arm in norm_aware.arms("small").items()}
    assert tuple(found) == NAMES
    assert len({run.replace(model=run.model.replace(kernel=Softmax())).id for run in found.values()}) == 1
    model = found[AWARE].model
    assert model.kernel == NormAwareLinear(norm_scale=0.5 / math.sqrt(model.d_model // model.num_heads))
    assert found[PUBLISHED].model.kernel == NormAwareLinear()


@pytest.mark.parametrize(
    ("aware", "elu", "falls", "more"),
    [
        (-0.2, -0.05, "held", "held"),
        (-0.2, -0.3, "held", "did not hold"),
        (0.1, -0.05, "did not hold", "did not hold"),
        (-0.002, 0.0, "smaller than matters", "smaller than matters"),
    ],
)
def test_slopes(aware: float, elu: float, falls: str, more: str) -> None:
    found = slopes(about(aware), about(elu))
    assert verdict(FALLS, found) == falls
    assert verdict(MORE, found) == more


def test_the_steeper_of_the_plain_maps_counts() -> None:
    numbers = claim_of(norm_aware, MORE).numbers(slopes((-0.2,), (0.0,), (-0.3,))).numbers
    assert all(number > 0 for number in numbers.values())
    assert numbers[0] == pytest.approx(0.1)


def test_slopes_of_both_signs_decide_nothing() -> None:
    found = slopes(TORN, (0.0,))
    assert [verdict(name, found) for name in (FALLS, MORE, INSIDE)] == ["not decided", "not decided", "held"]


@pytest.mark.parametrize(
    ("scaled", "published", "inside", "leave"),
    [(0.9, 0.1, "held", "held"), (0.1, 0.9, "did not hold", "did not hold")],
)
def test_norms(scaled: float, published: float, inside: str, leave: str) -> None:
    every = dict.fromkeys((AWARE, *PLAIN), (0.0,))
    found = evidence(inside={AWARE: (scaled,), PUBLISHED: (published,)}, slope=every, rank=every)
    assert verdict(INSIDE, found) == inside
    assert verdict("published norms leave the range", found) == leave


@pytest.mark.parametrize(("rank", "expected"), [(-0.3, "held"), (0.3, "did not hold")])
def test_ranks(rank: float, expected: str) -> None:
    every = dict.fromkeys((AWARE, *PLAIN), about(rank))
    found = evidence(rank=every, slope=every, inside={AWARE: (1.0,), PUBLISHED: (0.0,)})
    assert verdict("longer queries are sharper", found) == expected


def record(kernel: Kernel, size: float) -> LayerRecord:
    """Random directions; every query has the norm ``size``."""
    q, k = torch.randn(2, 2, 2, 40, 8, generator=torch.Generator().manual_seed(0))
    q = size * q / q.norm(dim=-1, keepdim=True)
    return LayerRecord(q=q, k=k, rotated_q=q, rotated_k=k, kernel=kernel, position=None, params=None)


def test_entropy_of_even_weights_is_the_logarithm_of_the_keys() -> None:
    even = record(Softmax(), 0.0)
    assert entropies(even, 1.0)[0, 0].tolist() == pytest.approx([math.log(n) for n in range(1, 41)])


def test_slopes_of_known_maps() -> None:
    """Relu's weights do not know the norm. Softmax's slope is - r Var_p(a) r, the law for each row."""
    assert norms_and_slope(record(Linear(feature="relu", eps=0.0), 2.0))["slope"] == pytest.approx(0.0, abs=1e-5)
    softmax = record(Softmax(), 2.0)
    scores = softmax.q @ softmax.k.mT / math.sqrt(8)
    shares = softmax.weights(0, 40)
    mean = (shares * scores).sum(-1, keepdim=True)
    law = -(shares * (scores - mean) ** 2).sum(-1)[:, :, 1:].mean()
    assert norms_and_slope(softmax)["slope"] == pytest.approx(float(law), rel=0.01)
    assert norms_and_slope(record(NormAwareLinear(), 0.8))["slope"] < -0.05


@pytest.mark.parametrize(("size", "inside"), [(2.9, 1.0), (3.1, 0.0)])
def test_only_queries_inside_count(size: float, inside: float) -> None:
    """The limit is on the norm times the scale, and no other map has one."""
    found = norms_and_slope(record(NormAwareLinear(norm_scale=0.25), 4 * size))
    assert (found["inside"], found["slope"] is None) == (inside, inside == 0.0)
    assert found["r_5"] == pytest.approx(size, rel=1e-5)
    assert norms_and_slope(record(Linear(), 4 * size))["inside"] == 1.0
    assert 2.9 < LIMIT < 3.1


def test_measures_of_a_run(tmp_path: Path) -> None:
    run = train(norm_aware.arms("smoke")[AWARE].run(0), tmp_path)
    found = measure(run)
    norms = found.filter(pl.col("what") == "norms")
    assert norms["layer"].to_list() == list(range(run.config.model.num_layers))
    assert (norms["r_5"] < norms["r_50"]).all()
    assert (norms["r_50"] < norms["r_95"]).all()
    rescaled = found.filter(pl.col("what") == "rescaled").sort("factor")
    assert rescaled["factor"].to_list() == list(FACTORS)
    assert rescaled["entropy"].is_sorted(descending=True)
