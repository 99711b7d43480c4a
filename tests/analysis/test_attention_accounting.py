"""The accounting of extrapolation loss, beside dense formulas."""

import polars as pl
import pytest
import torch
from torch.nn.functional import cross_entropy

from sparsity_lab.analysis import extrapolation_accounting
from sparsity_lab.generators import Batch, Planted, SparseMarkov, Stream
from sparsity_lab.kernels import LSSAR, Kernel, SlidingWindow, Softmax
from sparsity_lab.models import ALiBi, Decoder, DecoderModel, NoPE, PositionScheme, RoPE, Sinusoidal
from sparsity_lab.models.block import Block
from sparsity_lab.settings import SettingError

TASK = SparseMarkov(vocab_size=4)
L, LONG = 8, 24
ROPE, ALIBI, NOPE, SOFTMAX = RoPE(base=100.0), ALiBi(), NoPE(), Softmax()


def model(position: PositionScheme = ROPE, kernel: Kernel = SOFTMAX, num_layers: int = 2) -> DecoderModel:
    """With queries and keys so large that attention is far from uniform."""
    setting = Decoder(d_model=16, num_heads=2, num_layers=num_layers, position=position, kernel=kernel)
    built = setting.build(1, TASK.vocabulary.size)
    with torch.no_grad():
        for block in built.blocks:
            block.qkv.weight.mul_(20)
    return built.double()


def accounts(built: DecoderModel) -> dict[str, float]:
    return extrapolation_accounting(built, TASK, (LONG,), trained_length=L, sequences=4).row(0, named=True)


def batch() -> Batch:
    return TASK.sample(Stream(seed=0, name="analysis"), 0, 4, LONG)


def loss_of(logits: torch.Tensor) -> float:
    targets = batch().targets
    return float(cross_entropy(logits.detach().flatten(0, 1), targets.flatten()))


@pytest.mark.parametrize("position", [ROPE, ALIBI, NOPE])
def test_windowed_is_a_sliding_window_and_full_the_model(position: PositionScheme) -> None:
    built = model(position)
    found = accounts(built)
    tokens = batch().tokens
    windowed = built.with_kernel(SlidingWindow(width=L, sinks=0))
    assert found["full"] == pytest.approx(loss_of(built(tokens).logits), rel=1e-9)
    assert found["windowed"] == pytest.approx(loss_of(windowed(tokens).logits), rel=1e-9)
    assert found["windowed"] != pytest.approx(found["full"], rel=1e-4)
    cut = built(tokens.reshape(-1, L)).logits
    assert found["trained"] == pytest.approx(loss_of(cut), rel=1e-9)


def clamped_attention(block: Block, normed: torch.Tensor) -> torch.Tensor:
    """softmax of q R(min(i - j, L - 1)) k / sqrt(D), one pair of positions after the other."""
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in block.qkv(normed).split([16, 16, 16], dim=-1))
    scores = torch.full((len(q), 2, LONG, LONG), -torch.inf, dtype=torch.float64)
    for i in range(LONG):
        for j in range(i + 1):
            indices = torch.tensor([[0, min(i - j, L - 1)]])
            turn = ROPE.kernel_position(indices, 2, 8, torch.float64)
            pair = turn.rotate(torch.stack([k[:, :, j], q[:, :, i]], dim=2))
            scores[:, :, i, j] = (pair[:, :, 0] * pair[:, :, 1]).sum(-1) / 8**0.5
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_clamped_takes_no_distance_beyond_the_trained_ones() -> None:
    built = model(num_layers=1)
    (block,) = built.blocks
    with torch.no_grad():
        x = built.token_embedding(batch().tokens)
        x = x + block.output(clamped_attention(block, block.attention_norm(x)))
        x = x + block.down(torch.nn.functional.gelu(block.up(block.mlp_norm(x))))
        expected = loss_of(built.head(built.final_norm(x)))
    found = accounts(built)
    assert found["clamped"] == pytest.approx(expected, rel=1e-9)
    assert found["clamped"] != pytest.approx(found["full"], rel=1e-4)


def test_without_positions_no_distance_is_new() -> None:
    found = accounts(model(NOPE, LSSAR(p=3)))
    assert found["clamped"] == pytest.approx(found["full"], rel=1e-9)


def test_shares_are_of_the_growth_and_sum_to_one() -> None:
    found = accounts(model())
    assert found["growth"] == pytest.approx(found["full"] - found["trained"])
    if found["growth"] > 0:
        assert found["positional"] == pytest.approx((found["full"] - found["clamped"]) / found["growth"])
        assert found["positional"] + found["keys"] + found["rest"] == pytest.approx(1.0)


def test_a_loss_that_does_not_grow_has_no_shares() -> None:
    built = model(NOPE)
    with torch.no_grad():
        built.head.weight.zero_()  # every prediction is uniform
    found = extrapolation_accounting(built, TASK, (LONG,), trained_length=L, sequences=4)
    assert found["full"].to_list() == pytest.approx(found["trained"].to_list())
    assert found.select("positional", "keys", "rest").row(0) == (None, None, None)
    assert found.schema["positional"] == pl.Float64


@pytest.mark.parametrize(
    ("position", "task", "lengths", "trained", "message"),
    [
        (ROPE, TASK, (20,), L, r"lengths: expected multiples of 8, above it, got 20"),
        (ROPE, TASK, (8,), L, r"lengths: expected multiples of 8"),
        (ROPE, TASK, (LONG,), None, r"trained_length: missing; a decoder on its own needs"),
        (Sinusoidal(), TASK, (LONG,), L, r"models: expected a relative position scheme, such as RoPE"),
        (NOPE, Planted(k=1), (LONG,), L, r"data: expected a task that scores every position"),
    ],
)
def test_what_it_cannot_account_for(
    position: PositionScheme,
    task: SparseMarkov | Planted,
    lengths: tuple[int, ...],
    trained: int | None,
    message: str,
) -> None:
    built = Decoder(d_model=16, num_heads=2, position=position).build(0, task.vocabulary.size)
    with pytest.raises(SettingError, match=message):
        extrapolation_accounting(built, task, lengths, trained_length=trained, sequences=4)
