"""Gates that a mechanism declares and a layer computes from its input."""

import pytest
import torch
from kernels.closeness import assert_close
from models.forgetting import Forgetting
from torch import Tensor
from torch.nn.functional import logsigmoid

from sparsity_lab.kernels import Softmax
from sparsity_lab.models import ALiBi, Decoder, DecoderModel, NoPE, PositionScheme, RoPE
from sparsity_lab.settings import SettingError


def tokens_of(batch: int, length: int) -> Tensor:
    return torch.randint(0, 16, (batch, length), generator=torch.Generator().manual_seed(0))


def forgetful(**options: object) -> DecoderModel:
    """Its gates are strong enough to matter."""
    model = Decoder(kernel=(Forgetting(), Softmax()), **options).build(0).double()
    model.blocks[0].gate_projection.weight.data.mul_(3.0)
    return model


def test_parameters_are_added_where_gates_are_declared() -> None:
    model, plain = Decoder(kernel=(Forgetting(), Softmax())).build(0), Decoder().build(0)
    weights = model.state_dict()
    projection = weights.pop("blocks.0.gate_projection.weight")
    assert projection.shape == (2 * 4, 64)
    assert abs(projection.std().item() - 64**-0.5) < 0.02
    assert weights.keys() == plain.state_dict().keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.state_dict().items())
    assert torch.equal(Decoder(kernel=Forgetting()).build(0).blocks[0].gate_projection.weight, projection)
    both = Decoder(kernel=Forgetting()).build(0)
    assert not torch.equal(both.blocks[1].gate_projection.weight, projection)
    assert "gate_projection" in both.config.projections
    assert "gate_projection" not in Decoder().projections


def test_gates_by_hand() -> None:
    """Logit of name g, head h and position t: row g H + h of the projection times the normed input."""
    model, tokens = forgetful(num_layers=2, position=NoPE()), tokens_of(2, 7)
    block = model.blocks[0]
    x = model.token_embedding(tokens)
    normed = block.attention_norm(x)
    q, k, v = block.qkv(normed).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
    rows = block.gate_projection.weight
    scores = q @ k.mT / 4
    for head in range(4):
        forget, strength = normed @ rows[head], (normed @ rows[4 + head]).sigmoid()
        for i in range(7):
            for j in range(i):
                scores[:, head, i, j] += strength[:, i] * logsigmoid(forget[:, j + 1 : i + 1]).sum(-1)
    weights = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf).softmax(-1)
    record, other = model.record(tokens)
    assert_close("weights", torch.cat([record.weights(0, 3), record.weights(3, 7)], dim=2), weights, 1e-12)
    assert other.gates == {}
    x = block(x, lambda *_, **gates: weights @ v)
    x = model.blocks[1](x, lambda q, k, v: Softmax().attend(q, k, v))
    assert_close("logits", model(tokens).logits, model.head(model.final_norm(x)), 1e-12)
    without = model.with_kernel(Softmax())(tokens).logits
    assert (without - model(tokens).logits).abs().max() > 1e-2, "the gates do nothing"


def test_training_reaches_the_gates() -> None:
    model = forgetful()
    model(tokens_of(2, 9)).logits.square().sum().backward()
    gradient = model.blocks[0].gate_projection.weight.grad.unflatten(0, (2, 4))
    assert (gradient.abs().sum(-1) > 1e-6).all(), "a gate of a head learns nothing"


@pytest.mark.parametrize("scheme", [NoPE(), RoPE(), ALiBi()], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_causal_and_decoded_as_run_again(scheme: PositionScheme, kv_heads: int) -> None:
    model, tokens = forgetful(position=scheme, num_kv_heads=kv_heads), tokens_of(4, 6)
    before = model(tokens).logits
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 16
    assert_close("rows before", model(changed).logits[:, :3], before[:, :3], 1e-12)
    expected = tokens
    for _ in range(9):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(tokens, 9), expected)
    assert len(expected[:, 6:].unique()) > 2, "the model repeats itself, so this shows little"


def test_other_mechanisms_on_the_same_weights() -> None:
    model, tokens = forgetful(), tokens_of(2, 8)
    plain = model.with_kernel(Softmax())
    assert torch.equal(plain(tokens).logits, Decoder().build(0).double()(tokens).logits)
    assert plain.blocks[0].gate_projection.weight is model.blocks[0].gate_projection.weight
    assert (model(tokens).logits - plain(tokens).logits).abs().max() > 1e-2
    with pytest.raises(SettingError, match="kernel: expected a kernel whose parameters this model has"):
        model.with_kernel(Forgetting())  # the second layer has none
