"""The study ``norm_aware``: its arms differ in what they say, its rules decide by hand what they decide."""

from pathlib import Path

import polars as pl
import pytest
from made_up_evidence import JITTER, TORN, claim_of, shifted
from norm_aware.arms import HYBRID, MAPS, NAMES, TRAINED, gated
from norm_aware.measure import LONG, TIMED, measure
from norm_aware.study import study as norm_aware

from sparsity_lab.kernels import NormAwareLinear, Softmax
from sparsity_lab.models import Decoder
from sparsity_lab.studies import Evidence
from sparsity_lab.training import train

SEEDS = range(3)
Numbers = dict[str, tuple[float, ...]]
"""By arm, a number for each seed."""

LOSSES = {
    "better than elu": ("cosine", "elu"),
    "better than relu": ("cosine", "relu"),
    "better than elu, gated": (gated("cosine"), gated("elu")),
    "cosine or polarity": ("cosine", "polarity"),
    "hybrid": (HYBRID, "cosine"),
    "gate": (gated("cosine"), "cosine"),
}
CASES = [(shifted(0.3), "held"), (shifted(-0.3), "did not hold"), (TORN, "not decided")]


def of_losses(losses: Numbers, chance: float = 3.0) -> Evidence:
    rows = [
        {"arm": arm, "seed": seed, "length": TRAINED, "trained": True, "loss": found[seed], "chance_loss": chance}
        for arm, found in losses.items()
        for seed in SEEDS
    ]
    return Evidence(pl.DataFrame(rows))


def of_measures(column: str, values: Numbers, **more: object) -> Evidence:
    """Of two heads, one above its seed's value and one below."""
    rows = [
        {"arm": arm, "seed": seed, "head": head, column: found[seed] + (0.1 if head else -0.1), **more}
        for arm, found in values.items()
        for seed in SEEDS
        for head in (0, 1)
    ]
    return Evidence(pl.DataFrame(), pl.DataFrame(rows))


def verdict(name: str, evidence: Evidence) -> str:
    return claim_of(norm_aware, name).decide(evidence).verdict


def plus(base: float, by: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(base + one for one in by)


def test_arms_of_one_gate_have_equal_size_and_differ_in_their_kernels_alone() -> None:
    found = norm_aware.arms("small")
    assert set(found) == {*NAMES, *map(gated, NAMES)}
    for gate, names in ((False, NAMES), (True, [gated(name) for name in NAMES])):
        runs = [found[name][0] for name in names]
        sizes = {sum(one.numel() for one in run.model.build(0, 256).parameters()) for run in runs}
        assert len(sizes) == 1
        assert all(run.model.output_gate is gate for run in runs)
        assert len({run.replace(model=run.model.replace(kernel=Softmax())).id for run in runs}) == 1
    hybrid = found[HYBRID][0].model
    assert isinstance(hybrid, Decoder)
    assert hybrid.kernels == (NormAwareLinear(), Softmax())


def test_every_claim_is_shown_here() -> None:
    others = {"spikier", "entropy gap", "follows the norm", "norm range", "gate, beyond softmax", "faster"}
    assert {claim.name for claim in norm_aware.claims} == {*LOSSES, *others}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("by", "expected"), CASES)
def test_losses(name: str, by: tuple[float, ...], expected: str) -> None:
    less, more = LOSSES[name]
    low = (2.0, 2.1, 2.2)
    losses = {less: low, more: tuple(low[seed] + by[seed] for seed in SEEDS)}
    assert verdict(name, of_losses(losses)) == expected


def test_what_has_not_learned_decides_nothing() -> None:
    found = of_losses({"cosine": (2.0, 2.0, 2.0), "elu": (3.5, 3.6, 3.5)})
    assert verdict("better than elu", found) == "not decided"
    assert verdict("better than elu", of_losses({"cosine": (2.0, 2.0, 2.0), "elu": (2.5, 2.6, 2.5)})) == "held"


@pytest.mark.parametrize(("by", "expected"), CASES)
def test_entropies_and_slopes(by: tuple[float, ...], expected: str) -> None:
    values = {"cosine": (2.0, 2.0, 2.0), "elu": plus(2.0, by)}
    assert verdict("spikier", of_measures("entropy", values, what="attention")) == expected
    assert verdict("follows the norm", of_measures("query_slope", values, what="attention")) == expected


@pytest.mark.parametrize(
    ("cosine", "expected"),
    [(2.2, "held"), (2.8, "did not hold"), (2.5, "not decided")],
)
def test_gap(cosine: float, expected: str) -> None:
    """Linear attention at 3, softmax at 2; the gap is 1."""
    values = {"elu": (3.0, 3.0, 3.0), "softmax": (2.0, 2.0, 2.0), "cosine": plus(cosine, JITTER)}
    assert verdict("entropy gap", of_measures("entropy", values, what="attention")) == expected
    without = values | {"softmax": (2.0, 2.0, 3.1)}
    assert verdict("entropy gap", of_measures("entropy", without, what="attention")) == "not decided"


@pytest.mark.parametrize(("by", "expected"), CASES)
def test_gate_is_compared_with_the_gate_of_softmax(by: tuple[float, ...], expected: str) -> None:
    losses = {"cosine": (2.5, 2.5, 2.5), "softmax": (2.2, 2.2, 2.2), gated("softmax"): (2.1, 2.0, 2.05)}
    gain = tuple(0.1 + 0.1 * (seed == 1) + 0.05 * (seed == 2) for seed in SEEDS)
    losses[gated("cosine")] = tuple(2.5 - gain[seed] - by[seed] for seed in SEEDS)
    assert verdict("gate, beyond softmax", of_losses(losses)) == expected


@pytest.mark.parametrize(
    ("by", "expected"), [(shifted(0.3), "held"), (shifted(-0.3), "did not hold"), (TORN, "not decided")]
)
def test_levels(by: tuple[float, ...], expected: str) -> None:
    shares = of_measures("aware", {"cosine": plus(0.5, by)}, stage="trained")
    assert verdict("norm range", shares) == expected
    # The initial norms do not count.
    assert verdict("norm range", of_measures("aware", {"cosine": plus(0.5, by)}, stage="initial")) == "not decided"
    assert verdict("faster", of_measures("speed", {"cosine": plus(1.0, by)}, length=LONG)) == expected
    assert verdict("faster", of_measures("speed", {"cosine": plus(1.0, by)}, length=min(TIMED))) == "not decided"


def test_measures_of_a_run(tmp_path: Path) -> None:
    """Norms are those of the layers' queries, before and after training, and every kernel but softmax has a time."""
    run = train(norm_aware.arms("smoke")["cosine"][0], tmp_path)
    found = measure(run)
    norms = found.filter(pl.col("what") == "norms")
    assert norms.select("layer", "stage").rows() == [(0, "initial"), (1, "initial"), (0, "trained"), (1, "trained")]
    assert (norms["r_5"] < norms["r_50"]).all()
    assert (norms["r_50"] < norms["r_95"]).all()
    plain = found.filter(what="attention").select("layer", "head", "entropy")
    assert found.filter(what="rescaled", factor=1.0).select("layer", "head", "entropy").equals(plain)
    mean = found.filter(what="attention").group_by("layer").agg(pl.col("query_norm").mean()).sort("layer")
    # The mean leaves out the first row of each sequence, which has no choice.
    for norm, of_layer in zip(mean["query_norm"], norms.filter(stage="trained").rows(named=True), strict=True):
        assert of_layer["r_5"] < norm < of_layer["r_95"]
    assert (found.filter(what="time")["speed"] > 0).all()
    assert set(MAPS) < set(NAMES)
