"""A position scheme for each layer."""

import json
from pathlib import Path

import pytest
import torch
from kernels.closeness import assert_close
from torch import Tensor

from sparsity_lab.generators import Planted
from sparsity_lab.kernels import Softmax
from sparsity_lab.models import ALiBi, Decoder, Learned, NoPE, PoSE, PositionScheme, RoPE, Sinusoidal
from sparsity_lab.settings import SettingError, canonical_json, from_data, from_text
from sparsity_lab.sweeps.config_file import read_data
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training, extended

SCHEMES = [(RoPE(), NoPE()), (NoPE(), ALiBi()), (ALiBi(), RoPE(base=100.0)), (RoPE(), RoPE(scale=2.0))]


def tokens_of(batch: int, length: int) -> Tensor:
    return torch.randint(0, 16, (batch, length), generator=torch.Generator().manual_seed(0))


def test_rotated_in_one_layer_and_not_in_the_other() -> None:
    """Two layers written out: queries and keys of the first are turned, those of the second are not."""
    model = Decoder(position=(RoPE(), NoPE())).build(0).double()
    tokens, indices = tokens_of(3, 7), torch.tensor([[0, 2, 3, 9, 10, 11, 20]])
    model.requires_grad_(False)
    x = model.token_embedding(tokens)
    for layer, block in enumerate(model.blocks):
        q, k, v = block.qkv(block.attention_norm(x)).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        if layer == 0:
            angles = indices[0][:, None] * 10000.0 ** -(torch.arange(8, dtype=torch.float64) / 8)
            cos, sin = angles.cos(), angles.sin()
            for y in (q, k):
                even, odd = y[..., ::2].clone(), y[..., 1::2].clone()
                y[..., ::2], y[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        scores = (q @ k.mT / 4).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        x = block(x, lambda *_, scores=scores, v=v: scores.softmax(-1) @ v)
    expected = model.head(model.final_norm(x))
    assert_close("logits", model(tokens, indices=indices).logits, expected, 1e-12)
    for other in (RoPE(), NoPE(), (NoPE(), RoPE())):
        logits = Decoder(position=other).build(0).double()(tokens, indices=indices).logits
        assert (logits - expected).abs().max() > 1e-4, other


def test_one_for_each_layer_is_one_for_all() -> None:
    tokens = tokens_of(2, 9)
    for scheme in (RoPE(), ALiBi(), NoPE()):
        each, one = Decoder(position=(scheme, scheme)), Decoder(position=scheme)
        assert torch.equal(each.build(0)(tokens).logits, one.build(0)(tokens).logits)


@pytest.mark.parametrize("schemes", SCHEMES, ids=str)
def test_causal_and_decoded_as_run_again(schemes: tuple[PositionScheme, ...]) -> None:
    model, tokens = Decoder(position=schemes).build(1).double(), tokens_of(5, 6)
    before = model(tokens).logits
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 16
    after = model(changed).logits
    assert torch.equal(after[:, :4], before[:, :4])
    assert (after[:, 4] != before[:, 4]).any()
    expected = tokens
    for _ in range(10):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(tokens, 10), expected)
    assert len(expected[:, 6:].unique()) > 2, "the model repeats itself, so this shows little"


def test_records_hold_the_position_of_their_layer() -> None:
    model, tokens = Decoder(position=(RoPE(), ALiBi())).build(0).double(), tokens_of(2, 6)
    first, second = model.record(tokens)
    turned = RoPE().kernel_position(torch.arange(6)[None], 4, 16, torch.float64).rotate(first.q)
    assert_close("rotated q", first.rotated_q, turned, 1e-12)
    assert torch.equal(second.rotated_q, second.q)
    bias = ALiBi().kernel_position(torch.arange(6)[None], 4, 16, torch.float64).bias(slice(0, 6), slice(0, 6))
    scores = (second.q @ second.k.mT / 4 + bias).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    assert_close("weights", second.weights(0, 6), scores.softmax(-1), 1e-12)


class Short(NoPE):
    """Serves indices 0 .. 3; not registered, made for these tests."""

    kind = "ShortForTests"

    def limit(self) -> int:
        return 3


class NoBias(Softmax):
    kind = "NoBiasForTests"
    positions = frozenset({"rotate"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position": (RoPE(),)}, "position: expected one scheme, or num_layers = 2, got 1"),
        (
            {"position": (RoPE(), Learned(size=8))},
            r"position\[1\]: expected a per-layer scheme, since .*Learned",
        ),
        (
            {"position": (Sinusoidal(), NoPE())},
            r"position\[0\]: expected a per-layer scheme, since .*Sinus",
        ),
        ({"position": (NoPE(), RoPE()), "d_model": 12}, "num_heads: expected an even head size .* for RoPE, got 3"),
        (
            {"position": (RoPE(), ALiBi()), "kernel": NoBias()},
            r"position\[1\]: .*NoBiasForTests supports.*'bias'",
        ),
        ({"position": (RoPE(), Short()), "index_sampling": PoSE(target=9)}, r"position\[1\]: .*needs index 8"),
    ],
)
def test_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Decoder(**fields)


def test_each_kernel_meets_its_own_scheme() -> None:
    """A mechanism that takes no bias goes with a layer that has none."""
    Decoder(position=(RoPE(), ALiBi()), kernel=(NoBias(), Softmax()))
    with pytest.raises(SettingError, match=r"position\[1\]"):
        Decoder(position=(RoPE(), Short())).check_length(5)
    model = Decoder(position=(RoPE(), Short())).build(0)
    model(tokens_of(1, 4))
    with pytest.raises(SettingError, match=r"position\[1\]: .* supports indices up to .*, but the run needs index 4"):
        model(tokens_of(1, 5))
    with pytest.raises(SettingError, match=r"position\[1\]: .* supports indices up to .*, but the run needs index 7"):
        model(tokens_of(1, 2), indices=torch.tensor([[0, 7]]))


def test_round_trips(tmp_path: Path) -> None:
    config = Decoder(position=(RoPE(scale=2.0), NoPE()))
    assert from_data(Decoder, json.loads(canonical_json(config))) == config
    assert from_text(Decoder, str(config)) == config
    assert "position=(RoPE(scale=2.0), NoPE())" in str(config)
    (tmp_path / "run.toml").write_text(
        """
task = "Planted(k=1)"
training = "Training(steps=1)"
evaluation = "Evaluation(lengths=(8,))"
[model]
kind = "Decoder"
position = ["RoPE(scale=2.0)", "NoPE()"]
"""
    )
    assert from_data(RunConfig, read_data(tmp_path / "run.toml")).model == config


def test_a_longer_context_widens_the_layers_that_rotate() -> None:
    short = RunConfig(
        task=Planted(k=1),
        model=Decoder(position=(RoPE(scale=3.0), NoPE())),
        training=Training(steps=1, curriculum=FixedLength(length=14)),
        evaluation=Evaluation(lengths=(14,)),
    )
    assert extended(short, 30).model.position == (RoPE(scale=6.0), NoPE())
    biased = short.replace(model=Decoder(position=(RoPE(), ALiBi())))
    with pytest.raises(SettingError, match="parent.model.position: expected RoPE, or interpolate=False, got .*ALiBi"):
        extended(biased, 30)
