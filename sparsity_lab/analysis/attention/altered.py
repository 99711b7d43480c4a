"""A decoder run with something changed in one layer's attention, and what that does to the loss."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.analysis.attention.subjects import Sequences
from sparsity_lab.kernels import Kernel
from sparsity_lab.models.block import Mix

Change = Callable[..., Tensor]
"""From the layer's own attention, its un-rotated q, k and v, and its ``gates`` where it has any, to the attention
output."""


@torch.no_grad()
def losses(
    sequences: Sequences, scored: Bool[Tensor, "B T"], changes: dict[int, Change] | None = None
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Loss in nats, and whether the likeliest token is right, at each of these positions in row-major order; the
    model is in use, not training.

    Args:
        scored: where; a subset of the batch's own scored positions.
        changes: what happens in which layer.
    """
    model, device = sequences.subject.decoder(), sequences.device
    tokens = sequences.tokens
    indices = model.sequence_indices(tokens, None)
    x, layers = model.embed(tokens, sequences.ids, indices), model.layers(indices)
    rows = scored.to(device).flatten().nonzero().squeeze(1)
    last = len(layers) - 1
    for layer, (block, kernel, position) in enumerate(layers):
        mix = _at_inference(kernel, position=position, params=block.kernel_params)
        if changes and layer in changes:
            mix = partial(changes[layer], mix)
        x = block(x, mix, rows if layer == last else None)
    log_probabilities = model.head(model.final_norm(x)).double().log_softmax(-1).cpu()
    targets = sequences.known_batch().targets[scored]
    return -log_probabilities.gather(1, targets[:, None])[:, 0], log_probabilities.argmax(-1) == targets


def scaled_queries(factor: float) -> Change:
    """The layer with all queries times ``factor``: other norms, the same directions."""
    return lambda mix, q, k, v, **gates: mix(factor * q, k, v, **gates)


def each_layer(sequences: Sequences, change: Callable[..., Tensor], *arguments: object) -> dict[int, Change]:
    """A change of every layer: ``change`` also gets, before what a ``Change`` gets, the layer's mechanism at
    inference without a position, its position scheme, and ``arguments``."""
    model = sequences.subject.decoder()
    layers = zip(model.blocks, model.config.kernels, model.config.positions, strict=True)
    return {
        layer: partial(change, _at_inference(kernel, params=block.kernel_params), scheme, *arguments)
        for layer, (block, kernel, scheme) in enumerate(layers)
    }


def _at_inference(kernel: Kernel, **arguments: object) -> Mix:
    return partial(kernel.attend, training=False, **arguments)  # type: ignore[arg-type]
