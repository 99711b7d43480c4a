"""A decoder that is told which tokens its attention may see."""

import pytest
import torch
from kernels.closeness import assert_close

from sparsity_lab.kernels import LSSA, Kernel, Softmax
from sparsity_lab.models import Decoder, NoPE, PositionScheme, RoPE, Sinusoidal

TOKENS = torch.randint(0, 16, (2, 12), generator=torch.Generator().manual_seed(0))
KEPT = torch.tensor([0, 3, 4, 8, 10, 11])


@pytest.mark.parametrize("scheme", [NoPE(), Sinusoidal(), RoPE()], ids=lambda scheme: scheme.kind)
def test_hidden_tokens_are_as_good_as_absent(scheme: PositionScheme) -> None:
    """The visible rows are those of a sequence of the visible tokens alone, at their own indices: in every layer, for
    information could else pass through a hidden token."""
    model = Decoder(num_layers=3, position=scheme).build(0).double().eval()
    key_mask = torch.zeros(2, 12, dtype=torch.bool)
    key_mask[:, KEPT] = True
    masked = model(TOKENS, key_mask=key_mask).logits[:, KEPT]
    alone = model(TOKENS[:, KEPT], indices=KEPT[None]).logits
    assert_close("logits", masked, alone, 1e-10)
    assert (masked - model(TOKENS).logits[:, KEPT])[:, -1].abs().max() > 1e-3


@pytest.mark.parametrize("kernel", [Softmax(), LSSA()], ids=lambda kernel: kernel.kind)
def test_a_hidden_token_changes_nothing(kernel: Kernel) -> None:
    model = Decoder(kernel=kernel).build(0).double().eval()
    key_mask = torch.ones(2, 12, dtype=torch.bool)
    key_mask[0, 5] = False
    other = TOKENS.clone()
    other[:, 5] = (TOKENS[:, 5] + 1) % 16
    scored = torch.zeros(2, 12, dtype=torch.bool)
    scored[:, -1] = True
    first, second = (model(tokens, scored=scored, key_mask=key_mask).logits for tokens in (TOKENS, other))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    everything = torch.ones_like(key_mask)
    assert_close("all", model(TOKENS, key_mask=everything).logits, model(TOKENS).logits, 1e-10)
