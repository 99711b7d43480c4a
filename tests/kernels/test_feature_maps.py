"""Feature maps of linear attention: pinned values, their gradients in closed form, and what the maps promise.

The pinned features of the cosine map are published with the angle π/4 tanh(α d); the map here shifts it by π/4.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.closeness import assert_close
from torch import Tensor

from sparsity_lab.kernels.linear import Elementwise, FeatureMap, differentiate
from sparsity_lab.kernels.norm_aware import NormAware

COSINE = NormAware("cosine", 3.0, 0.5, 20.0, False)
POLARITY = replace(COSINE, angle="polarity")
RAW = replace(COSINE, angle="raw")
MAPS: list[FeatureMap] = [
    *(
        replace(angle, power=power, max_division=divided)
        for angle in (COSINE, POLARITY, RAW)
        for power in (3.0, 2.5, 1.0)  # with 1 the exponent of short queries is below one
        for divided in (False, True)
    ),
    replace(COSINE, norm_scale=0.25),
    Elementwise("elu"),
    Elementwise("relu"),
]
every_map = pytest.mark.parametrize("feature_map", MAPS, ids=str)

Q = torch.tensor([[0.3, 0.4], [1.2, -0.5], [-0.6, 0.8], [0.1, 0.02]], dtype=torch.float64)
K = torch.tensor([[0.5, 1.0], [1.0, -0.8], [-0.9, 0.6], [0.7, 0.03]], dtype=torch.float64)


def shifted_back(features: Tensor) -> Tensor:
    """[s cos(θ - π/4) ; s sin(θ - π/4)] of [s sin θ ; s cos θ]."""
    sine, cosine = features.chunk(2, dim=-1)
    return torch.cat([sine + cosine, sine - cosine], dim=-1) / math.sqrt(2)


def test_exponent() -> None:
    r = torch.tensor([0.5, 1.3, 1.0, 0.101980390272], dtype=torch.float64)
    expected = [2.886351471780, 4.085169477940, 3.784782467867, 1.804884968342]
    assert COSINE.exponent(r[:, None]).squeeze(-1).tolist() == pytest.approx(expected, abs=2e-12)
    longer = COSINE.exponent(torch.tensor([[0.0], [3.0], [4.0]])).squeeze(-1)
    assert longer.tolist() == pytest.approx([1.5, 4.485, 4.498], abs=1e-3)
    # Four times the norm, a quarter of the scale.
    scaled = replace(COSINE, norm_scale=0.25).exponent(4 * r[:, None])
    assert scaled.squeeze(-1).tolist() == pytest.approx(expected, abs=2e-12)


def test_cosine_features() -> None:
    phi_q = [
        [0.161864472855, 0.371337358285, 0.161864472836, 0.371337358285],
        [0.509889309713, 0.014264241694, 0.509889309713, -0.014264232363],
        [0.102290604262, 0.303879696496, -0.102290604250, 0.303879696496],
        [0.682516874225, 0.037395554874, 0.682516874225, 0.037349566672],
    ]
    phi_k = [
        [0.08838835001216, 0.7071067811865, 0.08838834528447, 0.7071067811865],
        [0.7071067811866, 0.3620386719755, 0.7071067811865, -0.3620386719595],
        [0.5154808434850, 0.1527350647917, -0.5154808434850, 0.1527350646808],
        [0.2425376259470, 2.308337538580e-5, 0.2425376259470, 1.400563389490e-5],
    ]
    # The printed digits end at 1e-12 and 1e-13.
    assert_close("queries", shifted_back(COSINE.query(Q)), torch.tensor(phi_q, dtype=torch.float64), 2e-12)
    assert_close("keys", shifted_back(COSINE.key(K)), torch.tensor(phi_k, dtype=torch.float64), 2e-12)


def test_polarity_features() -> None:
    phi_q = [
        [0.228910932764, 0.525150328303, 0, 0],
        [0.721092377105, 0, 0, 0.020172677462],
        [0, 0.429750788114, 0.144660759842, 0],
        [0.965224620078, 0.052852792310, 0, 0],
    ]
    phi_k = [[0.125, 1, 0, 0], [1, 0, 0, 0.512], [0, 0.216, 0.729, 0], [0.343, 2.7e-5, 0, 0]]
    assert_close("queries", POLARITY.query(Q), torch.tensor(phi_q, dtype=torch.float64), 2e-12)
    assert_close("keys", POLARITY.key(K), torch.tensor(phi_k, dtype=torch.float64), 1e-14)


def test_elementwise_features() -> None:
    x = torch.tensor([[-1.0, 0.0, 2.0]], dtype=torch.float64)
    assert Elementwise("elu").key(x).tolist()[0] == pytest.approx([math.exp(-1), 1.0, 3.0])
    assert Elementwise("relu").query(x).tolist()[0] == [0.0, 0.0, 2.0]


def test_polarity_is_the_limit_of_cosine() -> None:
    q, k = torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sharp = replace(COSINE, alpha=1e4)
    # Coordinates next to zero are of either sign at any alpha, but they weigh nothing.
    weights, limit = sharp.query(q) @ sharp.key(k).mT, POLARITY.query(q) @ POLARITY.key(k).mT
    assert_close("weights", weights, limit, 1e-11)
    soft = COSINE.query(q) @ COSINE.key(k).mT
    assert not torch.allclose(soft, limit, rtol=1e-4)


def test_raw_can_be_negative() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    assert float(RAW.query(one) @ RAW.key(-one).mT) == pytest.approx(math.cos(2), abs=1e-14)
    assert float(COSINE.query(one) @ COSINE.key(-one).mT) >= 0


@every_map
@pytest.mark.parametrize("side", ["query", "key"])
def test_closed_form_is_autograd(feature_map: FeatureMap, side: str) -> None:
    """Features and pullbacks, on ordinary rows and on rows that are zero, tiny, long, of one coordinate, or of equal
    largest ones."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 6, generator=generator, dtype=torch.float64)
    x[0, 0, 0] = 0
    x[0, 0, 1] *= 1e-13
    x[0, 0, 2] *= 50
    x[0, 0, 3, 1:] = 0
    x[0, 0, 4] = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.2, -0.9])
    x[0, 0, 5] *= 1e-5
    features, pullback = getattr(feature_map, f"differentiated_{side}")(x.clone())
    expected, reference = differentiate(getattr(feature_map, side), x)
    assert_close("features", features, expected, 1e-13)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    got, wanted = pullback(gradient.clone()), reference(gradient.clone())
    assert wanted.isfinite().all(), "the formula's gradient"
    # A direction turns as 1 / r, so each row has its own size.
    for row, other in zip(got.flatten(0, 2), wanted.flatten(0, 2), strict=True):
        assert_close("gradient", row, other, 1e-10)


@every_map
def test_gradient_by_differences(feature_map: FeatureMap) -> None:
    """The formula itself, so that two equal mistakes do not agree."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(feature_map.query, x)
    assert torch.autograd.gradcheck(feature_map.key, x)


@every_map
def test_float32_keeps_small_features(feature_map: FeatureMap) -> None:
    """Each feature to within a few rounding errors of itself, however small, so that small sums keep their digits."""
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(3))
    for side in ("differentiated_query", "differentiated_key"):
        got, _ = getattr(feature_map, side)(x)
        expected, _ = getattr(feature_map, side)(x.double())
        error = ((got.double() - expected).abs() / expected.abs().clamp_min(1e-20)).max()
        assert error < 2e-5, side


@pytest.mark.parametrize("feature_map", [COSINE, POLARITY, Elementwise("elu"), Elementwise("relu")], ids=str)
@settings(max_examples=40)
@given(
    rows=st.lists(
        st.lists(st.floats(-8, 8, width=32) | st.sampled_from([0.0, -0.0, 1e-30, 5e-8]), min_size=3, max_size=3),
        min_size=2,
        max_size=5,
    )
)
def test_features_are_never_negative(feature_map: FeatureMap, rows: list[list[float]]) -> None:
    x = torch.tensor(rows)
    for side in ("query", "key", "differentiated_query", "differentiated_key"):
        made = getattr(feature_map, side)(x)
        features = made if isinstance(made, Tensor) else made[0]
        assert (features >= 0).all(), side


@pytest.mark.parametrize("power", [3.0, 1.0, 0.5])
@pytest.mark.parametrize("feature_map", [COSINE, POLARITY, RAW], ids=str)
def test_zeros_have_finite_gradients(feature_map: NormAware, power: float) -> None:
    """Zero rows and zero components: finite gradients in float32, and none for a zero row, also where the exponent is
    below one and the slope at zero infinite."""
    feature_map = replace(feature_map, power=power)
    x = torch.zeros(4, 4)
    x[2:] = torch.tensor([[0.0, 1.0, 0.0, -2.0], [1e-20, 1.0, -1e-30, 0.0]])
    for side in ("query", "key"):
        made = getattr(feature_map, f"differentiated_{side}")(x), differentiate(getattr(feature_map, side), x)
        for features, pullback in made:
            gradient = pullback(torch.ones_like(features))
            assert features.isfinite().all()
            assert gradient.isfinite().all()
            assert not gradient[:2].any()
