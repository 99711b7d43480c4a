"""Adaptive sparse attention on some rows looked at closely: what they keep, why, how much of dense attention that is,
and the loss that trains the score on it.

Both need the mass of every block, which costs a dense row of logits, so both do with a few rows. Rows are looked at a
few at a time, and only what belongs to blocks is kept of their logits.

Shapes: B batch, H query heads, G heads of keys, M query heads that share one, T positions, R rows, n blocks, D head
size.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from sparsity_lab.kernels.adaptive.formula import (
    RANDOM,
    REASONS,
    SELECTED,
    Codes,
    Importance,
    Rows,
    Scores,
    Selector,
    dense_logits,
    log_importance,
    retained,
    score_bounds,
)
from sparsity_lab.kernels.context import Keys

CHUNK_LOGITS = 2**24
"""How many dense logits are held at a time."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The audit of some rows of one call of ``AdaptiveSparse``.

    Let ρ be the share of dense attention's mass inside the kept set. Then the error of a row is known exactly: the
    total variation is 1 - ρ, and the divergence KL(sparse || dense) is -log ρ. The output error is at most (1 - ρ)
    times the diameter of the values. ``lower`` is sound but usually vacuous for D >= 64: it is no estimate of
    accuracy.

    >>> q, k, v = torch.randn(3, 1, 2, 64, 8, generator=torch.Generator().manual_seed(0))
    >>> outputs = AuxiliaryOutputs()
    >>> kernel = AdaptiveSparse(block_size=8, n_local=1, k_free=2, sampled_rows=4)
    >>> out = kernel.attend(q, k, v, auxiliary=outputs)
    >>> outputs.records[0]["retained"].shape
    torch.Size([1, 2, 4])

    Attributes:
        rows: (B, R) positions of the audited rows.
        starts: (B, 1) position of the first visible key, where block 0 begins.
        codes: (B, G, R, n) why a block is kept, indices into ``REASONS``; 0: dropped.
        probability: (B, G, R, n) π, importance of the complete past blocks; zeros where there are none.
        mass: (B, G, R, n) a, what dense attention gives to these blocks, of the mass on all of them, group mean.
        margin: (B, G, R) log π of the last block kept by rank less log π of the first one not; inf without either.
        entropy: (B, G, R) of π over the logarithm of the number of past blocks; 0 for fewer than two.
        retained: (B, H, R) ρ, from dense logits.
        oracle: (B, H, R) what ρ would be with as many blocks, those of the most dense mass in the query head. Any
            blocks: neither sinks and local blocks nor the own one are given, and heads of a group need not agree.
        estimated: (B, H, R) ρ̂, what ρ would be if the scores were the block log-masses.
        lower, upper: (B, H, R), lower <= ρ <= upper always.
        pairs: (B, G, R) keys attended to.
        dense_pairs: (B, R) keys that dense attention would attend to.
        block_size: b.
    """

    rows: Int64[Tensor, "B R"]
    starts: Int64[Tensor, "B 1"]
    codes: UInt8[Tensor, "B G R n"]
    probability: Float[Tensor, "B G R n"]
    mass: Float[Tensor, "B G R n"]
    margin: Float[Tensor, "B G R"]
    entropy: Float[Tensor, "B G R"]
    retained: Float[Tensor, "B H R"]
    oracle: Float[Tensor, "B H R"]
    estimated: Float[Tensor, "B H R"]
    lower: Float[Tensor, "B H R"]
    upper: Float[Tensor, "B H R"]
    pairs: Int64[Tensor, "B G R"]
    dense_pairs: Int64[Tensor, "B R"]
    block_size: int

    def record(self) -> dict[str, Any]:
        """The fields by name, for ``AuxiliaryOutputs``."""
        return {"kind": "AdaptiveSparse", **{field.name: getattr(self, field.name) for field in fields(self)}}

    def explain(self, sequence: int, head: int, row: int) -> list[dict[str, Any]]:
        """The blocks that one audited row saw, in order: which tokens, why, and what was expected of them.

        Args:
            sequence, head, row: indices into the batch, the heads of keys, and the audited rows.
        """
        place, size, stop = (sequence, head, row), self.block_size, int(self.rows[sequence, row]) + 1
        start = int(self.starts[sequence, 0])
        return [
            {
                "block": block,
                "tokens": range(start + block * size, min(start + (block + 1) * size, stop)),
                "reason": REASONS[int(self.codes[place][block])],
                "probability": float(self.probability[place][block]),
                "mass": float(self.mass[place][block]),
            }
            for block in self.codes[place].nonzero().flatten().tolist()
        ]

    def budget(self) -> dict[str, float]:
        """Blocks kept in a row (mean, median, 95 % quantile), and pairs computed over pairs of dense attention."""
        kept = (self.codes > 0).sum(-1).double().flatten()
        dense = self.dense_pairs.sum() * self.pairs.shape[1]
        measures = kept.mean(), kept.quantile(0.5), kept.quantile(0.95), self.pairs.sum() / dense.clamp_min(1)
        names = "blocks_mean", "blocks_p50", "blocks_p95", "pairs_over_dense"
        return {name: float(x) for name, x in zip(names, measures, strict=True)}

    def over_oracle(self) -> float:
        """Mean ρ over the mean of what the oracle retains, over all sequences, heads and rows."""
        return float(self.retained.mean() / self.oracle.mean())

    def calibration(self, p: float = 0.9) -> dict[str, float]:
        """Of ρ̂ - ρ mean and quantiles; ``silent_misses``: the share of rows and heads with ρ < p <= ρ̂."""
        error = (self.estimated - self.retained).flatten()
        missed = (self.retained < p) & (self.estimated >= p)
        measures = error.mean(), *(error.quantile(q) for q in (0.05, 0.5, 0.95)), missed.double().mean()
        names = "mean", "p05", "p50", "p95", "silent_misses"
        return {name: float(x) for name, x in zip(names, measures, strict=True)}

    def recall(self, k: int) -> Float[Tensor, "B G R"]:
        """Share of the k past blocks with the most mass (of all, where there are fewer) that the row keeps; one for
        rows without past blocks."""
        mass, block = self.mass.topk(min(k, self.mass.shape[-1]), dim=-1)
        found = (self.codes.gather(-1, block) > 0) & (mass > 0)
        wanted = (mass > 0).sum(-1)
        return (found.sum(-1) / wanted.clamp_min(1)).masked_fill(wanted == 0, 1.0)


# --- looking at rows


def spread_rows(
    length: int, first: int, count: int, batch_size: int, generator: torch.Generator | None, device: torch.device
) -> Int64[Tensor, "B R"]:
    """(B, R) sorted rows from ``first`` to ``length - 1``, at most ``count`` per sequence. A generator draws them
    without replacement. Without one, they are evenly spaced and include the last row."""
    available = length - first
    count = min(count, available)
    if generator is None or count == available:
        places = (torch.arange(1, count + 1, device=device) * available) // count - 1
        return (first + places).expand(batch_size, -1)
    words = torch.rand(batch_size, available, generator=generator, device=generator.device)
    return first + words.argsort(dim=1)[:, :count].sort(dim=1).values.to(device)


@dataclass(frozen=True, kw_only=True)
class SampledRows:
    """Rows and what is known of them; without gradients.

    Attributes:
        q: (B, G, M, R, D), rotated.
        rows: (B, R), their positions.
        real: (B, R), False for rows that are padding.
        codes: (B, G, R, n), why a block is kept; 0: dropped.
        log_mass: (B, G, M, R, n) float64, ℓ_tj = log Σ of exp of the logits on the keys i <= t of the block.
        log_peak: the same of their largest.
        tokens: (B, 1, R, n), how many keys of a block the row may see.
    """

    q: Rows
    rows: Int64[Tensor, "B R"]
    real: Bool[Tensor, "B R"]
    codes: Codes
    log_mass: Scores
    log_peak: Scores
    tokens: Int64[Tensor, "B 1 R n"]

    def target(self, domain: Bool[Tensor, "B G R n"], pooling: str) -> Importance:
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


@torch.no_grad()
def look_at(
    rows: Int64[Tensor, "B R"],
    q: Float[Tensor, "B G M T D"],
    k: Keys,
    query_start: int,
    selector: Selector,
    starts: Int64[Tensor, "B 1"] | None = None,
) -> SampledRows:
    """Look at rows of a call: ``q`` holds those at ``query_start`` and on.

    Args:
        starts: where sequences begin in ``rows`` and ``q``; None: at 0.
    """
    num_keys, block_size, key_mask = k.shape[2], selector.rule.block_size, selector.key_mask
    index = (rows - query_start)[:, None, None, :, None]
    q = q.gather(3, index.expand(-1, *q.shape[1:3], -1, q.shape[4]))

    def in_blocks(x: Tensor, filling: float) -> Tensor:
        return torch.unflatten(pad(x, (0, -num_keys % block_size), value=filling), -1, (-1, block_size))

    def look(positions: Tensor, of_rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        seen = selector.seen_tokens(positions, num_keys)
        logits = in_blocks(dense_logits(of_rows, k, seen), -math.inf)
        log_mass = logits.logsumexp(-1).double()

        def kept_mass(codes: Tensor) -> Tensor:
            return log_mass.masked_fill((codes == 0).unsqueeze(2), -math.inf).logsumexp(-1)

        codes = selector.select(of_rows, positions, log_mass.shape[-1], kept_mass)
        return codes, log_mass, logits.amax(-1).double(), in_blocks(seen, False).sum(-1)

    size = max(CHUNK_LOGITS // (math.prod(q.shape[:3]) * num_keys), 1)
    if starts is not None:
        rows = rows - starts
    parts = map(look, torch.split(rows, size, 1), torch.split(q, size, 3))
    codes, log_mass, log_peak, tokens = (torch.cat(part, dim=-2) for part in zip(*parts, strict=True))
    real = rows >= 0 if key_mask is None else key_mask.gather(1, rows.clamp_min(0)) & (rows >= 0)
    return SampledRows(q=q, rows=rows, real=real, codes=codes, log_mass=log_mass, log_peak=log_peak, tokens=tokens)


def selector_loss(
    sample: SampledRows, selector: Selector, pooling: Literal["sum", "max"], over: Literal["all", "selected"]
) -> Float[Tensor, ""]:
    """L_sel = mean over sampled rows and heads of keys of Σ_{j in Ω_t} a_tj (log a_tj - log π_tj), in nats.

    The target a is the block mass of dense attention over complete past blocks. Queries, keys and target are
    detached: a gradient reaches the score's weights alone. Rows without such blocks, and padding, do not count.

    Args:
        over: ``"selected"`` restricts target and prediction to the blocks that the row keeps. A block that is never
            selected then never gets a signal.
    """
    kept = sample.codes > 0
    scores, past = selector.scores(sample.q, sample.rows, kept.shape[-1])
    domain = past & kept if over == "selected" else past.expand_as(kept)
    target = sample.target(domain, pooling)
    counts = domain.any(-1) & sample.real.unsqueeze(1)
    # A row that does not count gets harmless numbers before its logarithms, so that no NaN enters the gradient.
    importance = log_importance(scores, past).masked_fill(~domain, -math.inf).masked_fill(~counts.unsqueeze(-1), 0.0)
    log_share = importance.log_softmax(-1).masked_fill(~domain, 0.0)
    divergence = (torch.xlogy(target, target) - target * log_share).sum(-1)
    return divergence.masked_fill(~counts, 0.0).sum() / counts.sum().clamp_min(1)


@torch.no_grad()
def audit_of(sample: SampledRows, selector: Selector, starts: Int64[Tensor, "B 1"] | None = None) -> Audit:
    """The audit of the rows of a sample.

    Args:
        starts: where sequences begin; None: at 0.
    """
    if starts is None:
        starts = torch.zeros_like(sample.rows[:, :1])
    codes, kept, num_blocks = sample.codes, sample.codes > 0, sample.codes.shape[-1]
    scores, past = selector.scores(sample.q, sample.rows, num_blocks)
    low, high = score_bounds(sample.q, selector.summaries.first(num_blocks))
    importance = log_importance(scores, past).log_softmax(-1).masked_fill(~past, -math.inf)
    probability, num_past = importance.exp(), past.sum(-1)
    entropy = -torch.xlogy(probability, probability).sum(-1) / num_past.clamp_min(2).log()
    by_rank = kept & (codes != RANDOM)
    last = importance.masked_fill(~(past & by_rank & (codes >= SELECTED)), math.inf).amin(-1)
    first = importance.masked_fill(~(past & ~by_rank), -math.inf).amax(-1)
    # As many blocks, from the best on.
    ranked = sample.log_mass.sort(-1, descending=True).values
    best = (torch.arange(num_blocks, device=kept.device) < kept.sum(-1, keepdim=True)).unsqueeze(2)

    def share(scores: Tensor, dropped: Tensor, inside: Tensor, log_mass: Tensor = sample.log_mass) -> Tensor:
        return retained(scores, dropped, log_mass.masked_fill(~inside, -math.inf).logsumexp(-1)).flatten(1, 2)

    chosen = (past & ~kept).unsqueeze(2), kept.unsqueeze(2)
    return Audit(
        rows=sample.rows + starts,
        starts=starts,
        codes=codes,
        probability=probability,
        mass=sample.target(past.expand_as(kept), "sum"),
        margin=last - first,
        entropy=entropy.masked_fill(num_past < 2, 0.0),
        retained=share(sample.log_mass, *chosen),
        oracle=share(ranked, ~best, best, ranked),
        estimated=share(scores, *chosen),
        lower=share(high, *chosen),
        upper=share(low, *chosen),
        pairs=sample.tokens.masked_fill(~kept, 0).sum(-1),
        dense_pairs=sample.tokens.sum(-1).squeeze(1),
        block_size=selector.rule.block_size,
    )
