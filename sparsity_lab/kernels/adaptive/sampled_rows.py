"""Some query rows looked at closely: what they keep, and where their dense attention lies.

Training the selector and the audit both need the mass of every block, which costs a dense row of logits; both do
with a few rows. Rows are looked at a few at a time, and only what belongs to blocks is kept of their logits.

Shapes: B batch, G heads of keys, M query heads that share one, T tokens, R sampled rows, n blocks, D head size.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from sparsity_lab.kernels.adaptive.dense import dense_logits, seen_tokens
from sparsity_lab.kernels.adaptive.scores import complete_past
from sparsity_lab.kernels.adaptive.selector import Selector, widened
from sparsity_lab.settings import SettingError

__all__ = ["SampledRows", "check_rows_of", "look_at", "spread_rows"]

CHUNK_LOGITS = 2**24
"""How many dense logits are held at a time."""


@dataclass(frozen=True)
class SampledRows:
    """Rows and what is known of them; without gradients.

    Attributes:
        positions: (B, R).
        q: (B, G, M, R, D), rotated.
        past: (B, 1, R, n), Ω_t, the complete blocks before the row's own, with a key that counts.
        codes: (B, G, R, n), why a block is kept; 0: dropped.
        log_mass: (B, G, M, R, n) float64, ℓ_tj = log Σ of exp of the logits on the keys i <= t of the block.
        log_peak: the same of their largest.
        tokens: (B, 1, R, n), how many keys of a block the row may see.
        real: (B, R), False for rows that are padding.
    """

    positions: Int64[Tensor, "B R"]
    q: Float[Tensor, "B G M R D"]
    past: Bool[Tensor, "B 1 R n"]
    codes: UInt8[Tensor, "B G R n"]
    log_mass: Float[Tensor, "B G M R n"]
    log_peak: Float[Tensor, "B G M R n"]
    tokens: Int64[Tensor, "B 1 R n"]
    real: Bool[Tensor, "B R"]

    def target(self, domain: Bool[Tensor, "B heads R n"], pooling: str) -> Float[Tensor, "B G R n"]:
        """a_tj, the distribution of dense attention over the blocks of ``domain``; zeros for rows without any.

        ``"sum"``: the block's mass, normalized in each query head, then the mean of the group. ``"max"``: the largest
        weight in the block, the largest of the group, normalized.
        """
        if pooling == "sum":
            shares = self.log_mass.masked_fill(~domain.unsqueeze(2), -math.inf).softmax(-1).mean(2)
        else:
            peak = (self.log_peak - self.log_mass.logsumexp(-1, keepdim=True)).amax(2)
            shares = peak.masked_fill(~domain, -math.inf).softmax(-1)
        return shares.masked_fill(~domain, 0.0)


def spread_rows(
    length: int, first: int, count: int, batch_size: int, generator: torch.Generator | None, device: torch.device
) -> Int64[Tensor, "B R"]:
    """(B, R) sorted rows from ``first`` to ``length - 1``, at most ``count`` in each sequence: drawn without
    replacement where there is a generator, else evenly spaced with the last one among them."""
    available = length - first
    count = min(count, available)
    if generator is None or count == available:
        places = (torch.arange(1, count + 1, device=device) * available) // count - 1
        return (first + places).expand(batch_size, -1)
    words = torch.rand(batch_size, available, generator=generator, device=generator.device)
    return first + words.argsort(dim=1)[:, :count].sort(dim=1).values.to(device)


def check_rows_of(rows: Tensor, batch_size: int, length: int) -> None:
    """Refuse rows that are not (B, R) integers of positions.

    Raises:
        SettingError: at ``rows``.
    """
    if rows.dtype != torch.int64 or rows.ndim != 2 or len(rows) != batch_size or not rows.shape[1]:
        raise SettingError("rows", f"int64 of shape ({batch_size}, R)", (rows.dtype, tuple(rows.shape)))
    if int(rows.min()) < 0 or int(rows.max()) >= length:
        raise SettingError("rows", f"positions 0 .. {length - 1}", (int(rows.min()), int(rows.max())))


@torch.no_grad()
def look_at(
    positions: Int64[Tensor, "B R"],
    q: Float[Tensor, "B G M T D"],
    k: Float[Tensor, "B G K D"],
    query_start: int,
    selector: Selector,
    key_mask: Bool[Tensor, "B K"] | None,
    draws: Float[Tensor, "B G T words"] | None = None,
) -> SampledRows:
    """Look at rows of a call: ``q`` holds those at ``query_start`` and on."""
    batch_size, num_heads, group, _, head_dim = q.shape
    num_keys, block_size = k.shape[2], selector.rule.block_size
    num_blocks = -(-num_keys // block_size)
    index = (positions - query_start)[:, None, None, :, None]
    q = q.detach().gather(3, index.expand(-1, num_heads, group, -1, head_dim))
    if draws is not None:
        words = index[:, :, 0].expand(-1, num_heads, -1, draws.shape[-1])
        draws = draws.gather(2, words)
    size = max(CHUNK_LOGITS // (batch_size * num_heads * group * num_keys), 1)
    parts = []
    for first in range(0, positions.shape[1], size):
        chunk = slice(first, first + size)
        rows = positions[:, chunk]
        seen = seen_tokens(rows, num_keys, key_mask, batch_size)
        logits = dense_logits(q[:, :, :, chunk], k.detach(), seen)
        rest = num_blocks * block_size - num_keys
        blocks = pad(logits, (0, rest), value=-math.inf)
        blocks = torch.unflatten(blocks, -1, (num_blocks, block_size))
        log_mass, log_peak = blocks.logsumexp(-1).double(), blocks.amax(-1).double()
        tokens = torch.unflatten(pad(seen, (0, rest)), -1, (num_blocks, block_size)).sum(-1)

        def kept_mass(codes: Tensor, log_mass: Tensor = log_mass) -> Tensor:
            dropped = (widened(codes, num_blocks) == 0).unsqueeze(2)
            return log_mass.masked_fill(dropped, -math.inf).logsumexp(-1)

        drawn = None if draws is None else draws[:, :, chunk]
        codes = selector.select(q[:, :, :, chunk], rows, kept_mass, drawn)
        parts.append((widened(codes, num_blocks), log_mass, log_peak, tokens))
    codes, log_mass, log_peak, tokens = (torch.cat(part, dim=-2) for part in zip(*parts, strict=True))
    real = torch.ones_like(positions, dtype=torch.bool) if key_mask is None else key_mask.gather(1, positions)
    past = complete_past(selector.summaries.first(num_blocks), positions, block_size)
    return SampledRows(positions, q, past, codes, log_mass, log_peak, tokens, real)
