"""Adaptive sparse attention on a worked example, with numbers from an independent derivation in float64."""

import math

import pytest
import torch
from kernels.closeness import assert_close
from torch import Tensor

from sparsity_lab.kernels import AdaptiveSparse, AuxiliaryOutputs, Softmax
from sparsity_lab.kernels.adaptive import Audit
from sparsity_lab.kernels.adaptive.formula import summarize

pytestmark = pytest.mark.committed

T, H = 12, 2
KERNEL = AdaptiveSparse(block_size=2, n_sink=1, n_local=1, k_free=1)
MEAN = KERNEL.replace(beta=(0.0, 0.0))
TO_SIX = 6e-7
"""Numbers are given to six decimals."""


def example() -> tuple[Tensor, Tensor, Tensor]:
    t = torch.arange(T, dtype=torch.float64)
    angle = 0.7 * t + torch.arange(H, dtype=torch.float64)[:, None]
    q = 2 * torch.stack([angle.cos(), angle.sin()], -1)[None]
    k = 2 * torch.stack([(1.3 * t).cos(), (1.3 * t).sin()], -1)[None, None]
    v = torch.stack([t / 10, t.cos()], -1)[None, None]
    return q, k, v


def audit(kernel: AdaptiveSparse) -> Audit:
    q, k, _ = example()
    return kernel.audit(q, k, rows=torch.arange(T)[None])


def exactly(name: str, got: Tensor, expected: list[float] | list[list[float]]) -> None:
    expected = torch.tensor(expected, dtype=torch.float64)
    assert got.shape == expected.shape, name
    assert float((got - expected).abs().max()) <= TO_SIX, f"{name}: {got.tolist()}"


def kept(codes: Tensor) -> list[int]:
    return codes.nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("beta", "scores"),
    [
        (
            (0.0, 0.0),
            [
                [2.314626, 0.109091, 0.072610, 2.340665, -1.509796],
                [0.254601, 2.207441, -1.463469, 2.874813, -0.889127],
            ],
        ),
        (
            (1.0, 0.0),
            [
                [3.233852, 1.523289, 1.257159, 2.815054, -1.471202],
                [0.963404, 2.853425, -0.788339, 3.640073, -0.068559],
            ],
        ),
    ],
    ids=["mean", "variance"],
)
def test_scores(beta: tuple[float, float], scores: list[list[float]]) -> None:
    q, k, _ = example()
    params = AdaptiveSparse(beta=beta).build(1, 2, 0)
    assert params is not None
    got = params(q[:, None], summarize(k, None, 2)).detach()
    exactly("g", got[0, 0, :, 11, :5], scores)


@pytest.mark.parametrize(
    ("kernel", "probability", "estimated"),
    [
        (MEAN, [0.243221, 0.182475, 0.027482, 0.534853, 0.011969], [0.958667, 0.767869]),
        (KERNEL, [0.273780, 0.191400, 0.038696, 0.485992, 0.010131], [0.870343, 0.632188]),
    ],
    ids=["mean", "variance"],
)
def test_importance_and_estimate(kernel: AdaptiveSparse, probability: list[float], estimated: list[float]) -> None:
    found = audit(kernel)
    exactly("π", found.probability[0, 0, 11, :5], probability)
    exactly("ρ̂", found.estimated[0, :, 11], estimated)


def test_target_and_retained_mass() -> None:
    found = audit(KERNEL)
    exactly("a", found.mass[0, 0, 11, :5], [0.256247, 0.246089, 0.037085, 0.448685, 0.011894])
    exactly("ρ", found.retained[0, :, 11], [0.901010, 0.635963])
    exactly("mean ρ", found.retained.mean(), 0.898869)
    exactly("ρ_lo", found.lower[0, :, 11], [0.822694, 0.479500])
    exactly("ρ_hi", found.upper[0, :, 11], [0.958667, 0.767869])


def test_kept_blocks() -> None:
    codes = audit(KERNEL).codes[0, 0]
    assert kept(codes[11]) == [0, 3, 5]
    assert kept(codes[7]) == [0, 2, 3]
    assert kept(codes[8]) == [0, 2, 4]
    assert [step["reason"] for step in audit(KERNEL).explain(0, 0, 11)] == ["sink", "selected", "local"]


@pytest.mark.parametrize("implementation", AdaptiveSparse.implementations)
def test_outputs(implementation: str) -> None:
    q, k, v = example()
    out = KERNEL.attend(q, k, v, implementation=implementation)
    exactly("o", out[0, :, 11], [[0.603673, 0.425268], [0.729347, 0.544416]])
    dense = [[0.580212, 0.371093], [0.549647, 0.185623]]
    exactly("dense", Softmax().attend(q, k, v)[0, :, 11], dense)
    everything = KERNEL.replace(k_free=T).attend(q, k, v, implementation=implementation)
    exactly("all blocks", everything[0, :, 11], dense)


@pytest.mark.parametrize(
    ("kernel", "at_last", "mean"),
    [(MEAN, 0.019187, 0.011736), (KERNEL, 0.009383, 0.010084)],
    ids=["mean", "variance"],
)
def test_divergence(kernel: AdaptiveSparse, at_last: float, mean: float) -> None:
    q, k, v = example()
    params = kernel.build(1, 2, 0)
    for sampled, expected in ((T - 2, mean), (1, at_last)):  # one evenly spaced row is the last
        auxiliary = AuxiliaryOutputs()
        kernel.replace(sampled_rows=sampled).attend(q, k, v, params=params, auxiliary=auxiliary)
        assert len(auxiliary.losses) == 1
        exactly("KL", auxiliary.losses[0].detach(), expected)
    auxiliary = AuxiliaryOutputs()
    kernel.replace(sampled_rows=1, lambda_sel=3.0).attend(q, k, v, params=params, auxiliary=auxiliary)
    assert float(auxiliary.losses[0].detach()) == pytest.approx(3 * at_last, abs=3 * TO_SIX)


@pytest.mark.parametrize(
    ("beta", "means"),
    [((0.0, 0.0), (2.416667, 2.666667, 3.0)), ((1.0, 0.0), (2.416667, 2.75, 3.0))],
    ids=["mean", "variance"],
)
def test_share_of_the_past(beta: tuple[float, float], means: tuple[float, ...]) -> None:
    for p, blocks, mean in zip((0.5, 0.8, 0.95), ([0, 3, 5], [0, 1, 3, 5], [0, 1, 3, 5]), means, strict=True):
        found = audit(KERNEL.replace(mode="topp", p=p, k_min=0, k_max=8, beta=beta))
        assert kept(found.codes[0, 0, 11]) == blocks, p
        exactly(f"mean at {p}", (found.codes > 0).sum(-1).double().mean(), mean)
        assert found.budget()["blocks_mean"] == pytest.approx(mean, abs=TO_SIX)


def test_margin_and_entropy() -> None:
    """By the definition, from the pinned π: block 3 is the last kept by rank, block 1 the first dropped."""
    found, pi = audit(KERNEL), [0.273780, 0.191400, 0.038696, 0.485992, 0.010131]
    assert float(found.margin[0, 0, 11]) == pytest.approx(math.log(pi[3] / pi[1]), abs=1e-5)
    assert float(found.entropy[0, 0, 11]) == pytest.approx(-sum(x * math.log(x) for x in pi) / math.log(5), abs=1e-5)
    assert float(found.margin[0, 0, 1]) == math.inf
    assert float(found.entropy[0, 0, 3]) == 0.0


def test_error_is_the_lost_mass() -> None:
    """o_full - o = (1 - ρ)(μ_drop - μ_keep), and total variation and divergence from ρ alone."""
    q, k, v = example()
    sparse, dense = KERNEL.weights(q, k)[0], Softmax().weights(q, k.expand(-1, H, -1, -1))[0]
    rho = audit(KERNEL).retained[0]
    inside = sparse > 0
    assert_close("ρ", (dense * inside).sum(-1), rho, 1e-12)
    assert_close("total variation", (dense - sparse).abs().sum(-1) / 2, 1 - rho, 1e-9)
    assert_close("divergence", torch.xlogy(sparse, sparse / dense.clamp_min(1e-300)).sum(-1), -rho.log(), 1e-9)
    drop, keep = (dense * ~inside) @ v[0], (dense * inside) @ v[0]
    lost = (1 - rho).unsqueeze(-1)
    difference = drop - keep * lost / rho.unsqueeze(-1)
    assert_close("output error", (dense - sparse) @ v[0], difference, 1e-9)
