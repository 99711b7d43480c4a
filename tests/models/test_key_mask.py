"""A decoder that is told which tokens its attention may see."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close

from sparsity_lab.kernels import LSSA, Kernel, SlidingWindow, Softmax
from sparsity_lab.models import Decoder, NoPE, PositionScheme, RoPE, Sinusoidal
from sparsity_lab.settings import SettingError

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


@pytest.mark.parametrize(
    "kernel", [Softmax(), LSSA(), SlidingWindow(width=4, sinks=2)], ids=lambda kernel: kernel.kind
)
@pytest.mark.parametrize("end", [None, 3])
def test_generation_with_padding_is_rerunning_the_prefix(kernel: Kernel, end: int | None) -> None:
    """Prompts of two lengths in one batch, padding on the left."""
    model = Decoder(kernel=kernel).build(1).double().eval()
    prompt = TOKENS[:, :5]
    key_mask = torch.ones(2, 5, dtype=torch.bool)
    key_mask[0, :3] = False
    tokens, seen = prompt, key_mask
    for _ in range(6):
        following = model(tokens, key_mask=seen).logits[:, -1].argmax(-1)
        if end is not None:
            ended = (tokens[:, 5:] == end).any(1)
            following = following.masked_fill(ended, end)
        tokens, seen = torch.cat([tokens, following[:, None]], 1), torch.cat([seen, seen.new_ones(2, 1)], 1)
    assert torch.equal(model.generate(prompt, 6, key_mask=key_mask, end=end), tokens)
    if end is None:
        assert not torch.equal(model.generate(prompt, 6), tokens)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), r"tokens: expected shape \(B, T\), got \(5,\)"),
        (torch.tensor([[3, 16]]), r"tokens: expected tokens 0 .. 15, got 3 .. 16"),
        (torch.tensor([[-1, 2]]), r"tokens: expected tokens 0 .. 15, got -1 .. 2"),
        (torch.zeros(1, 5), r"tokens: expected whole numbers, int64, got torch.float32"),
        ([[1, 2]], r"tokens: expected a tensor \(B, T\) of int64, got \[\[1, 2\]\], of type list"),
    ],
    ids=["1-D", "large", "negative", "float", "list"],
)
def test_what_are_no_tokens_is_refused_in_one_line(tokens: Any, message: str) -> None:
    model = Decoder().build(0)
    calls: list[Callable[[Any], Any]] = [model, model.predict, model.record, lambda tokens: model.generate(tokens, 2)]
    for call in calls:
        with pytest.raises(SettingError, match=message) as caught:
            call(tokens)
        assert "\n" not in str(caught.value)
