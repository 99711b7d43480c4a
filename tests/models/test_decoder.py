"""The decoder: scored rows, seeds, generation, records, other kernels, refusals."""

import json

import pytest
import torch
from kernels.closeness import assert_close
from torch import Tensor, nn

from sparsity_lab.kernels import AuxiliaryOutputs, Context, Kernel, Softmax
from sparsity_lab.models import (
    ALiBi,
    Decoder,
    Learned,
    NoPE,
    Oracle,
    PoSE,
    PositionScheme,
    RandomOffset,
    RoPE,
    Sinusoidal,
)
from sparsity_lab.settings import SettingError, canonical_json, from_data

SCHEMES = [NoPE(), Sinusoidal(), Learned(size=64), RoPE(), ALiBi()]


def tokens_of(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 16, (batch, length), generator=torch.Generator().manual_seed(seed))


class Uniform(Softmax):
    """The mean of all values up to the row, times a trained factor; not registered, made for these tests."""

    kind = "UniformForTests"
    positions = frozenset({"rotate"})

    def build(self, num_heads: int, head_dim: int, seed: int) -> nn.Module:
        module = nn.Module()
        module.factor = nn.Parameter(torch.full((num_heads, 1, 1), 1.0 + seed % 7))
        return module

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        if context.auxiliary is not None:
            context.auxiliary.losses.append(context.params.factor.square().mean())
            context.auxiliary.records.append({"training": context.training, "generator": context.generator})
        return v.cumsum(2) / torch.arange(1, v.shape[2] + 1)[:, None] * context.params.factor


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.kind)
@pytest.mark.parametrize("share", [0.3, 1.0], ids=["some", "all"])
def test_scored_is_indexing(scheme: PositionScheme, gate: bool, share: float) -> None:
    """In values and in gradients of every weight."""
    tokens = tokens_of(3, 10)
    scored = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) < share
    config = Decoder(position=scheme, output_gate=gate)
    one, other = config.build(0).double(), config.build(0).double()
    some, whole = one(tokens, scored=scored).logits, other(tokens).logits[scored]
    assert_close("logits", some, whole, 1e-12)
    some.square().sum().backward()
    whole.square().sum().backward()
    for (name, x), y in zip(one.named_parameters(), other.parameters(), strict=True):
        assert_close(f"gradient of {name}", x.grad, y.grad, 1e-10)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.kind)
def test_causal(scheme: PositionScheme) -> None:
    """No logit before t sees token t; the one at t does."""
    model, tokens = Decoder(position=scheme).build(0), tokens_of(2, 7)
    before = model(tokens).logits
    for t in range(7):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % 16
        after = model(changed).logits
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t] != before[:, t]).any()


def test_one_layer_by_hand() -> None:
    """The whole block written out."""
    model = Decoder(num_layers=1, num_heads=1, d_model=8, position=NoPE(), output_gate=True).build(3).double()
    block, tokens = model.blocks[0], tokens_of(1, 4)

    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    x = model.token_embedding.weight[tokens[0]]
    q, k, v = (norm(x) @ block.qkv.weight.T).split(8, dim=-1)
    scores = (q @ k.T / 8**0.5).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    gate = norm(x) @ block.gate.weight.T
    x = x + (scores.softmax(-1) @ v * gate * gate.sigmoid()) @ block.output.weight.T
    hidden = norm(x) @ block.up.weight.T
    x = x + (hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))) @ block.down.weight.T
    assert_close("logits", model(tokens).logits[0], norm(x) @ model.head.weight.T, 1e-12)


def test_seeds() -> None:
    """Same seed, same bytes; another seed, other bytes; the global generator untouched."""
    state = torch.random.get_rng_state()
    config = Decoder(position=Learned(), coupling=Oracle(max_id=5), output_gate=True)
    one, same, other = config.build(7), config.build(7), config.build(8)
    one(tokens_of(2, 5), torch.ones(2, 1, 5, dtype=torch.int64)).logits.sum().backward()
    one.generate(tokens_of(2, 5), 2, torch.ones(2, 1, 7, dtype=torch.int64))
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, x), y, z in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y), name
        assert "norm" in name or not torch.equal(x, z), name
    plain = Decoder().build(7).state_dict()
    assert all(torch.equal(x, one.state_dict()[name]) for name, x in plain.items()), "arms do not share weights"


def test_weights_are_drawn_apart() -> None:
    """No two weights of a model are related: neither layers nor the maps of one layer."""
    model = Decoder(position=Learned(size=16), output_gate=True).build(0)
    matrices = [weight.flatten()[:1024] for weight in model.parameters() if weight.ndim == 2]
    correlation = torch.corrcoef(torch.stack(matrices)).fill_diagonal_(0.0)
    assert correlation.abs().max() < 6 / 1024**0.5


def test_initial_sizes() -> None:
    model = Decoder(d_model=256, num_layers=1).build(0, vocab_size=1000)
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert (weight == 1).all()
        else:
            expected = 0.02 if "embedding" in name else weight.shape[1] ** -0.5
            assert weight.std().item() == pytest.approx(expected, rel=0.02), name
            assert abs(weight.mean().item()) < expected / 50, name


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.kind)
@pytest.mark.parametrize("prompt", [1, 6])
def test_generate_is_rerunning_the_prefix(scheme: PositionScheme, prompt: int) -> None:
    model, tokens = Decoder(position=scheme).build(1).double(), tokens_of(5, prompt)
    expected = tokens
    for _ in range(12):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(tokens, 12), expected)
    assert len(expected[:, prompt:].unique()) > 2, "the model repeats itself, so this shows little"


def test_generate_with_ids() -> None:
    model = Decoder(position=NoPE(), coupling=Oracle(max_id=9)).build(1).double()
    tokens = tokens_of(3, 4)
    ids = torch.randint(0, 10, (3, 1, 10), generator=torch.Generator().manual_seed(2))
    expected = tokens
    for stop in range(4, 10):
        expected = torch.cat([expected, model(expected, ids[:, :, :stop]).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(tokens, 6, ids), expected)
    with pytest.raises(SettingError, match="position_ids: expected IDs of all 10 positions, got 9"):
        model.generate(tokens, 6, ids[:, :, :9])


def test_record() -> None:
    """Records give the very weights that the model's output follows from."""
    model = Decoder(num_layers=2).build(0).double()
    tokens, indices = tokens_of(2, 6), torch.tensor([[0, 1, 2, 10, 11, 12]])
    first, second = model.record(tokens, indices=indices)
    x = model.token_embedding(tokens)
    for record, block in zip((first, second), model.blocks, strict=True):
        q, k, v = block.qkv(block.attention_norm(x)).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        position = RoPE().kernel_position(indices, 4, 16, torch.float64)
        assert_close("q", record.q, q, 1e-12)
        assert_close("rotated k", record.rotated_k, position.rotate(k), 1e-12)
        assert (record.rotated_q - record.q).abs().max() > 1e-2
        weights = torch.cat([record.weights(0, 4), record.weights(4, 6)], dim=2)
        scores = record.rotated_q @ record.rotated_k.mT / 4
        expected = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1)
        assert_close("weights", weights, expected, 1e-12)
        x = block(x, lambda *_, weights=weights, v=v: weights @ v)
    assert_close("logits", model.head(model.final_norm(x)), model(tokens, indices=indices).logits, 1e-12)


def test_what_a_kernel_gets_and_what_comes_back_from_it() -> None:
    """The training flag and the generator reach the kernel; its records come back where they are collected, its loss
    in the output of every call in training mode."""
    model = Decoder(kernel=(Softmax(), Uniform())).build(0)
    auxiliary, generator = AuxiliaryOutputs(), torch.Generator().manual_seed(0)
    losses = model(tokens_of(1, 4), auxiliary=auxiliary, generator=generator).auxiliary_losses
    assert not model.eval()(tokens_of(1, 4), auxiliary=auxiliary).auxiliary_losses
    assert [record["training"] for record in auxiliary.records] == [True, False]
    assert [record["generator"] for record in auxiliary.records] == [generator, None]
    assert not auxiliary.losses, "a loss that would be counted twice"
    assert list(losses) == ["blocks.1.kernel"]
    factor = model.blocks[1].kernel_params.factor
    assert losses["blocks.1.kernel"] == factor.square().mean()
    (again,) = model.train()(tokens_of(1, 4)).auxiliary_losses.values()
    again.backward()
    assert_close("gradient", factor.grad, 2 * factor / factor.numel(), 1e-7)


def test_with_kernel() -> None:
    model = Decoder(kernel=Uniform()).build(0)
    tokens = tokens_of(2, 8)
    other = model.with_kernel(Softmax())
    assert other.config == model.config.replace(kernel=Softmax())
    assert torch.equal(other(tokens).logits, Decoder().build(0)(tokens).logits)
    assert (other(tokens).logits - model(tokens).logits).abs().max() > 1e-3
    other.head.weight.data.zero_()
    assert not model(tokens).logits.any(), "the weights are not the same"
    assert torch.equal(other.with_kernel((Softmax(), Softmax()))(tokens).logits, other(tokens).logits)
    with pytest.raises(SettingError, match="kernel: expected a kernel whose parameters this model has"):
        other.with_kernel(Uniform())


def test_bfloat16_and_autocast() -> None:
    model, tokens = Decoder().build(0), tokens_of(2, 9)
    expected = model(tokens).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert_close("autocast", model(tokens).logits, expected, 5e-2)
    assert_close("bfloat16", model.bfloat16()(tokens).logits, expected, 8e-2)


def test_vocabulary() -> None:
    assert Decoder().build(0).vocab_size == 16
    assert Decoder().build(0, vocab_size=5)(tokens_of(1, 3) % 5).logits.shape == (1, 3, 5)
    assert Decoder(vocab_size=7).build(0, vocab_size=7).vocab_size == 7
    with pytest.raises(SettingError, match="vocab_size: expected None or the task's 5, got 7"):
        Decoder(vocab_size=7).build(0, vocab_size=5)


def test_lengths() -> None:
    Decoder(index_sampling=PoSE(target=32)).check_length(500, trained=32)
    with pytest.raises(SettingError, match=r"index_sampling.target: expected at least 33, .*got 32"):
        Decoder(index_sampling=PoSE(target=32)).check_length(500, trained=33)
    with pytest.raises(SettingError, match=r"position: .*supports indices up to 31, but the run needs index 63"):
        Decoder(index_sampling=RandomOffset(size=64), position=Learned(size=32))


def test_config_round_trip() -> None:
    config = Decoder(kernel=(Softmax(), Softmax()), position=ALiBi(), coupling=Oracle(max_id=4), d_ff=100)
    assert from_data(Decoder, json.loads(canonical_json(config))) == config
    assert Decoder.kind == "Decoder"


class NoBias(Softmax):
    kind = "NoBiasForTests"
    positions = frozenset({"rotate"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 66}, "d_model: expected a multiple of num_heads = 4, got 66"),
        ({"d_model": 12}, "num_heads: expected an even head size .* for RoPE, got 3"),
        ({"kernel": (Softmax(),)}, "kernel: expected one kernel, or num_layers = 2, got 1"),
        (
            {"kernel": (Softmax(), NoBias()), "position": ALiBi()},
            "position: .*NoBiasForTests supports .*'bias'",
        ),
        ({"num_layers": 0}, "num_layers: expected at least 1, got 0"),
        ({"num_heads": -1}, "num_heads: expected at least 1, got -1"),
        ({"d_ff": 0}, "d_ff: expected at least 1, got 0"),
        ({"vocab_size": 0}, "vocab_size: expected at least 1, got 0"),
    ],
)
def test_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Decoder(**fields)


def test_kernels_are_settings_of_their_family() -> None:
    assert isinstance(Softmax(), Kernel)
    with pytest.raises(SettingError, match="kernel: expected a kernel"):
        Decoder(kernel=RoPE())


def test_shared_heads_of_keys_and_values() -> None:
    """Two heads of keys and values for four of queries: fewer weights, decoding as running the prefix again."""
    config = Decoder(num_kv_heads=2)
    model, full = config.build(0).double(), Decoder().build(0)
    assert full.blocks[0].qkv.weight.shape == (192, 64)
    assert model.blocks[0].qkv.weight.shape == (128, 64)
    prompt = torch.arange(10).reshape(2, 5)
    sequence = model.generate(prompt, 6)
    for stop in range(5, 11):
        assert torch.equal(model(sequence[:, :stop]).logits[:, -1].argmax(-1), sequence[:, stop])
    with pytest.raises(SettingError, match="num_kv_heads: expected a divisor of num_heads = 4, got 3"):
        Decoder(num_kv_heads=3)


def test_a_copy_in_float64_is_the_same_model() -> None:
    """But for rounding of float32: also the norms', whose eps is large beside a small embedding."""
    model, tokens = Decoder().build(0).eval(), tokens_of(4, 30)
    with torch.no_grad():
        logits = model(tokens).logits
        assert_close("logits", logits, model.double()(tokens).logits, 1e-5)
