"""Dropout: its law, where it acts, and that it draws from the generator alone."""

import pytest
import torch
from scipy.stats import binomtest

from sparsity_lab.models import Decoder
from sparsity_lab.models.block import dropout
from sparsity_lab.settings import SettingError

TOKENS = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(0))


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_number_is_dropped_with_its_probability_or_divided() -> None:
    x = torch.arange(1.0, 40_001.0, dtype=torch.float64)
    dropped = dropout(x, 0.3, draws(0))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.7)
    assert binomtest(int((~kept).sum()), len(x), 0.3).pvalue > 1e-6
    assert dropout(x, 0.0, None) is x


def test_one_layer_by_hand() -> None:
    """Of the embedding, of what attention adds and of what the MLP adds, in this order, and of nothing else."""
    config = Decoder(num_layers=1, dropout=0.25)
    model, plain = config.build(0), config.replace(dropout=0.0).build(0)
    block, (layer,), source = plain.blocks[0], plain.layers(torch.arange(9)[None]), draws(3)
    x = dropout(plain.token_embedding(TOKENS), 0.25, source)
    added: list[torch.Tensor] = []
    block.output.register_forward_hook(lambda _module, _inputs, output: added.append(output))
    block(x, lambda q, k, v: layer.kernel.attend(q, k, v, position=layer.position))
    x = x + dropout(added[0], 0.25, source)
    x = x + dropout(block.down(torch.nn.functional.gelu(block.up(block.mlp_norm(x)))), 0.25, source)
    expected = plain.head(plain.final_norm(x))
    torch.testing.assert_close(model.train()(TOKENS, generator=draws(3)).logits, expected)


def test_only_in_training_and_from_the_generator_alone() -> None:
    config = Decoder(dropout=0.5)
    model, plain = config.build(0), config.replace(dropout=0.0).build(0)
    assert torch.equal(model.eval()(TOKENS).logits, plain.eval()(TOKENS).logits)
    assert torch.equal(model.generate(TOKENS, 5), plain.generate(TOKENS, 5))
    model.train()
    before = torch.get_rng_state()
    first, again, other = (model(TOKENS, generator=draws(seed)).logits for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_refusals(share: float) -> None:
    with pytest.raises(SettingError, match="dropout: expected a share of at least 0, below 1, got"):
        Decoder(dropout=share)
