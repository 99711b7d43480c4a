"""Greedy free-running decoding with caches: each predicted token is fed back, and with it its position IDs where the
model predicts them.

Shapes: B batch, T positions of the prompt, C kinds of position ID, n generated tokens.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sparsity_lab.kernels import Kernel, KernelState
from sparsity_lab.settings import SettingError, check_least

_LOOKS_EVERY = 16
"""Tokens between two looks at whether all sequences have ended, which an accelerator has to stop for."""


@torch.no_grad()
def free_run(
    model: Any,
    tokens: Int64[Tensor, "B T"],
    num_tokens: int,
    position_ids: Int64[Tensor, "B C ids"] | None = None,
    *,
    end: int | None = None,
    key_mask: Bool[Tensor, "B T"] | None = None,
    implementation: str | Sequence[str] = "auto",
) -> tuple[Int64[Tensor, "B all"], Int64[Tensor, "B C all"] | None]:
    """The prompt and its continuation, (B, T + n), and all position IDs, (B, C, T + n), None without a coupling.

    Args:
        model: a ``DecoderModel``, whose file imports this one.
        position_ids: (B, C, T) of the prompt for a model that predicts IDs, else (B, C, T + n) of the whole.
        end: the token that ends a sequence: only itself follows it, without predicted IDs, and decoding stops when
            all sequences have come to it. None: there is none.
        key_mask: of the prompt, False for tokens that are never seen.
        implementation: what decodes, as in ``Kernel.init_state``; one for all layers, or one for each.

    Raises:
        SettingError: no prompt, nothing to generate, missing IDs, or IDs of another length; an implementation that
            the mechanism of a layer does not have, or that cannot run.
    """
    model.sequence_indices(tokens, None)  # refuses what are no tokens
    size, total = tokens.shape[1], tokens.shape[1] + num_tokens
    if size < 1:
        raise SettingError("tokens", "a prompt of at least one token", size)
    check_least(1, num_tokens=num_tokens)
    predicts = model.id_heads is not None
    given = size if predicts else total
    if position_ids is not None and position_ids.shape[2] != given:
        part = "the prompt's" if predicts else "all"
        raise SettingError("position_ids", f"IDs of {part} {given} positions", position_ids.shape[2])
    after_end = 0 if end is None else end
    sequence = torch.cat([tokens, tokens.new_full((len(tokens), num_tokens), after_end)], dim=1)
    ids = position_ids
    if predicts and ids is not None:
        ids = torch.cat([ids, ids.new_zeros(*ids.shape[:2], num_tokens)], dim=2)
    # The last token is never fed back, so it needs no place.
    indices = model.sequence_indices(sequence[:, :-1], None)
    layers = model.layers(indices)
    forms = (implementation,) * len(layers) if isinstance(implementation, str) else tuple(implementation)
    if len(forms) != len(layers):
        raise SettingError("implementation", f"one implementation, or num_layers = {len(layers)}", len(forms))
    states: list[KernelState] = []
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    looks_every = 1 if tokens.device.type == "cpu" else _LOOKS_EVERY
    for stop in range(size, total):
        # The prompt in one piece, then one token at a time.
        start = 0 if stop == size else stop - 1
        now = slice(start, stop)
        x = model.embed(sequence[:, now], None if ids is None else ids[:, :, now], indices[:, now])
        for number, (block, kernel, position) in enumerate(layers):
            if start == 0:
                made = partial(kernel.init_state, capacity=total - 1, implementation=forms[number])
                mix: partial[Tensor] = partial(_prefill, states=states, made=made, kernel=kernel, key_mask=key_mask)
            else:
                mix = partial(kernel.decode, state=states[number])
            x = block(x, partial(mix, position=position, params=block.kernel_params))
        hidden = model.final_norm(x[:, -1])
        sequence[:, stop] = model.head(hidden).argmax(-1)
        if model.id_heads is not None and ids is not None:
            ids[:, :, stop] = model.id_heads(hidden).argmax(-1)
        if end is not None:
            sequence[:, stop].masked_fill_(ended, end)
            if predicts and ids is not None:
                ids[:, :, stop].masked_fill_(ended[:, None], 0)
            ended |= sequence[:, stop] == end
            if (stop - size) % looks_every == 0 and ended.all():
                break
    return sequence, ids


def _prefill(
    q: Tensor, k: Tensor, v: Tensor, *, states: list[KernelState], made: Any, kernel: Kernel, **context: Any
) -> Tensor:
    """Attention of the prompt, through a new state at the end of ``states``."""
    B, H, _, D = q.shape
    states.append(made(B, kernel.own_heads(H, k.shape[1]), D, dtype=q.dtype, device=q.device))
    return kernel.prefill(q, k, v, state=states[-1], **context)
