"""Position schemes: relative rotations, interpolation, slopes, waves, limits; what they do inside a decoder."""

import math

import pytest
import torch
from kernels.closeness import assert_close, random_rows

from sparsity_lab.models import ALiBi, Decoder, Learned, NoPE, PositionScheme, RoPE, Sinusoidal
from sparsity_lab.models.initial import EMBEDDING_STD
from sparsity_lab.models.positions import alibi_slopes
from sparsity_lab.settings import SettingError

D = 8


def rotate(scheme: RoPE, indices: list[int], x: torch.Tensor) -> torch.Tensor:
    position = scheme.kernel_position(torch.tensor([indices]), 1, D, x.dtype)
    return position.rotate(x.expand(1, 1, len(indices), D))


def test_rope_by_hand() -> None:
    """Each pair of coordinates turns by m base^(-2j / D) / scale."""
    x = random_rows(D, count=1)[0].detach()
    for scale in (1.0, 4.0):
        got = rotate(RoPE(base=100.0, scale=scale), [3], x)[0, 0, 0]
        for j in range(D // 2):
            angle = 3 / scale * 100.0 ** (-2 * j / D)
            pair = torch.complex(x[2 * j], x[2 * j + 1]) * complex(math.cos(angle), math.sin(angle))
            assert_close(f"pair {j}", got[2 * j : 2 * j + 2], torch.stack([pair.real, pair.imag]), 1e-12)


def test_rope_sees_differences_only() -> None:
    q, k = (x.detach() for x in random_rows(D, count=2))
    scores = {
        (i, j): (rotate(RoPE(), [i], q) * rotate(RoPE(), [j], k)).sum().item() for i in (0, 5, 90) for j in (0, 2, 7)
    }
    for (i, j), score in scores.items():
        shifted = (rotate(RoPE(), [i + 1000], q) * rotate(RoPE(), [j + 1000], k)).sum().item()
        assert score == pytest.approx(shifted, abs=1e-9)
    assert scores[0, 0] != pytest.approx(scores[5, 0], abs=1e-3), "a different distance, the same score"


def test_rope_interpolates() -> None:
    """Scale s at index s m is scale 1 at index m, and norms are kept."""
    x = random_rows(D, count=1)[0].detach()
    assert_close("angles", rotate(RoPE(scale=4.0), [0, 12, 400], x), rotate(RoPE(), [0, 3, 100], x), 1e-12)
    norms = rotate(RoPE(), [1, 77], x).norm(dim=-1)
    assert_close("norms", norms, x.norm().expand_as(norms), 1e-12)


def test_rope_is_exact_far_away() -> None:
    """In float32 an index of a million keeps its angle."""
    x = random_rows(D, count=1)[0].detach()
    assert_close("far", rotate(RoPE(), [10**6], x.float()), rotate(RoPE(), [10**6], x), 1e-6)


def test_alibi_slopes() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(4).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    # As published for twelve heads: those of eight, then every other one of sixteen.
    of_sixteen = torch.tensor([2 ** (-h / 2) for h in range(1, 17)])
    assert torch.equal(alibi_slopes(16).float(), of_sixteen)
    assert torch.equal(alibi_slopes(12).float(), torch.cat([alibi_slopes(8).float(), of_sixteen[0:8:2]]))


def test_alibi_bias_follows_indices() -> None:
    indices = torch.tensor([[0, 1, 5], [2, 3, 4]])
    position = ALiBi().kernel_position(indices, 2, D, torch.float32)
    bias = position.bias(slice(1, 3), slice(0, 2))
    distance = torch.tensor([[[1, 0], [5, 4]], [[1, 0], [2, 1]]])
    slopes = torch.tensor([2.0**-4, 2.0**-8])
    assert_close("bias", bias, -slopes[None, :, None, None] * distance[:, None], 1e-7)


def test_sinusoidal_by_hand() -> None:
    got = Sinusoidal(base=100.0).build(4)(torch.tensor([[0, 7]]))[0, 1]
    waves = torch.tensor([math.sin(7), math.cos(7), math.sin(0.7), math.cos(0.7)], dtype=torch.float64)
    assert_close("waves", got, math.sqrt(2) * EMBEDDING_STD * waves, 1e-12)


def test_learned_ends() -> None:
    config = Decoder(position=Learned(size=8))
    model = config.build(0)
    tokens = torch.zeros(1, 9, dtype=torch.int64)
    model(tokens[:, :8])
    for refused in (lambda: model(tokens), lambda: config.check_length(9), lambda: model.generate(tokens[:, :8], 2)):
        with pytest.raises(
            SettingError, match=r"Learned\(size=8\) supports indices up to 7, but the run needs index 8"
        ):
            refused()
    with pytest.raises(SettingError, match="needs index 8"):
        model(tokens[:, :2], indices=torch.tensor([[0, 8]]))
    config.check_length(8)


@pytest.mark.parametrize("scheme", [NoPE(), RoPE(), Sinusoidal(), Learned(), ALiBi()], ids=lambda s: s.kind)
def test_only_nope_ignores_order(scheme: PositionScheme) -> None:
    """In one layer, the last row is a function of the set of earlier tokens without a scheme, of their order with."""
    model = Decoder(position=scheme, num_layers=1).build(0).double()
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    shuffled = tokens[:, [5, 2, 0, 6, 4, 1, 3, 7]]
    difference = (model(tokens).logits[0, -1] - model(shuffled).logits[0, -1]).abs().max().item()
    if scheme == NoPE():
        assert difference < 1e-12
    else:
        assert difference > 1e-4


@pytest.mark.parametrize("scheme", [RoPE(), ALiBi()], ids=lambda s: s.kind)
def test_relative_schemes_ignore_offsets(scheme: PositionScheme) -> None:
    model = Decoder(position=scheme).build(0).double()
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])
    moved = torch.stack([torch.arange(8) + 40, torch.arange(8) + 300])
    assert_close("logits", model(tokens, indices=moved).logits, model(tokens).logits, 1e-10)
    stretched = 2 * torch.arange(8)[None]
    assert (model(tokens, indices=stretched).logits - model(tokens).logits).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Learned(size=0), "size: expected at least 1, got 0"),
        (lambda: RoPE(scale=0.0), "scale: expected more than 0, got 0.0"),
        (lambda: Sinusoidal(base=1.0), "base: expected more than 1, got 1.0"),
    ],
)
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
