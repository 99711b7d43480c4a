"""Layers and decoders whose attention can be worked out by hand."""

import math

import torch
from torch import Tensor

from sparsity_lab.generators import IGNORE, Batch, Planted
from sparsity_lab.kernels import Kernel, KernelPosition, Softmax
from sparsity_lab.models import Decoder, DecoderModel, NoPE, PositionScheme
from sparsity_lab.models.record import LayerRecord

TASK = Planted(k=3)


def record_of(
    q: Tensor, k: Tensor, kernel: Kernel | None = None, position: KernelPosition | None = None
) -> LayerRecord:
    """What a layer with these un-rotated queries and keys would have left."""
    rotated = (q, k) if position is None else (position.rotate(q), position.rotate(k))
    return LayerRecord(
        q=q,
        k=k,
        rotated_q=rotated[0],
        rotated_k=rotated[1],
        kernel=kernel or Softmax(),
        position=position,
        params=None,
    )


def record_of_scores(scores: Tensor) -> LayerRecord:
    """A softmax layer with one head whose row i scores ``scores[b, i, j]`` on key j; (B, T, T)."""
    T = scores.shape[1]
    q = scores.double() * math.sqrt(T)
    return record_of(q[:, None], torch.eye(T, dtype=torch.float64).expand(len(q), 1, T, T))


def batch_of(sources: dict[tuple[int, int], list[int]], count: int, T: int) -> Batch:
    """A batch with a scored target at each (sequence, row), and its sources."""
    most = max(len(own) for own in sources.values())
    targets = torch.full((count, T), IGNORE)
    padded = torch.full((count, T, most), -1)
    for (sequence, row), own in sources.items():
        targets[sequence, row] = 0
        padded[sequence, row, : len(own)] = torch.tensor(own)
    return Batch(torch.zeros(count, T, dtype=torch.int64), targets, None, padded)


def random_record(*shape: int, seed: int = 0, **options: object) -> LayerRecord:
    """Random float64 queries and keys, (B, H, T, D)."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return record_of(q, k, **options)  # type: ignore[arg-type]


def decoder_with_gap(
    gap: float, task: Planted = TASK, kernel: Kernel | None = None, position: PositionScheme | None = None
) -> DecoderModel:
    """One layer, one head of eight coordinates: at the query token ``=``, planted tokens score ``gap`` and all others
    0.

    A token's embedding is one coordinate: 0 for planted tokens, 1 for the query, 2 for the rest. After the norm that
    is sqrt(8) times a unit vector, and a score is <q, k> / sqrt(8). Coordinate 3 is left to positions: a key with all
    of it scores 2 ``gap``.
    """
    config = Decoder(num_layers=1, num_heads=1, d_model=8, kernel=kernel or Softmax(), position=position or NoPE())
    model = config.build(0, vocab_size=task.vocab_size)
    with torch.no_grad():
        embedding = model.token_embedding.weight.zero_()
        embedding[: task.planted_vocab, 0] = 1.0
        embedding[task.planted_vocab :, 2] = 1.0
        embedding[task.query] = torch.eye(8)[1]
        qkv = model.blocks[0].qkv.weight  # (24, 8): from coordinates to q, k, v
        qkv[:16].zero_()
        qkv[0, 1] = gap / math.sqrt(8)  # q_0 = sqrt(8) gap / sqrt(8) = gap at the query token
        qkv[8, 0] = 1.0  # k_0 = sqrt(8) at planted tokens, so that the score is gap
        qkv[9, 2] = 1.0  # keys of the rest have the same norm and another direction
        qkv[8, 3] = 2.0
    return model.eval()
