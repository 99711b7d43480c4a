"""What a row could see, why, and how much of its attention that was.

Shapes: B batch, H query heads, G heads of keys, R audited rows, n blocks.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from sparsity_lab.kernels.adaptive.sampled_rows import SampledRows
from sparsity_lab.kernels.adaptive.scores import block_bounds, block_scores, log_importance
from sparsity_lab.kernels.adaptive.selection import RANDOM, REASONS, SELECTED
from sparsity_lab.kernels.adaptive.selector import Selector, retained

__all__ = ["Audit", "audit_of"]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The audit of some rows of one call of ``AdaptiveSparse``.

    With ρ, the share of the mass of dense attention inside the kept set, the error of a row is known exactly: total
    variation 1 - ρ, divergence KL(sparse || dense) = -log ρ, output error at most (1 - ρ) times the diameter of the
    values. ``lower`` is sound but usually vacuous for D >= 64: it is no estimate of accuracy.

    Attributes:
        rows: (B, R) positions of the audited rows.
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
        position = int(self.rows[sequence, row])
        place = sequence, head, row
        return [
            {
                "block": block,
                "tokens": range(block * self.block_size, min((block + 1) * self.block_size, position + 1)),
                "reason": REASONS[int(self.codes[place][block])],
                "probability": float(self.probability[place][block]),
                "mass": float(self.mass[place][block]),
            }
            for block in self.codes[place].nonzero().flatten().tolist()
        ]

    def budget(self) -> dict[str, float]:
        """Blocks kept in a row (mean, median, 95 % quantile), and pairs computed over pairs of dense attention."""
        kept = (self.codes > 0).sum(-1).double().flatten()
        middle, most = kept.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64, device=kept.device)).tolist()
        dense = self.dense_pairs.sum() * self.pairs.shape[1]
        return {
            "blocks_mean": float(kept.mean()),
            "blocks_p50": middle,
            "blocks_p95": most,
            "pairs_over_dense": float(self.pairs.sum() / dense.clamp_min(1)),
        }

    def over_oracle(self) -> float:
        """Mean ρ over the mean of what the oracle retains, over all sequences, heads and rows."""
        return float(self.retained.mean() / self.oracle.mean())

    def calibration(self, p: float = 0.9) -> dict[str, float]:
        """Of ρ̂ - ρ mean and quantiles; ``silent_misses``: the share of rows and heads with ρ < p <= ρ̂."""
        error = (self.estimated - self.retained).flatten()
        levels = torch.tensor([0.05, 0.5, 0.95], dtype=error.dtype, device=error.device)
        low, middle, high = error.quantile(levels).tolist()
        missed = (self.retained < p) & (self.estimated >= p)
        return {
            "mean": float(error.mean()),
            "p05": low,
            "p50": middle,
            "p95": high,
            "silent_misses": float(missed.double().mean()),
        }

    def recall(self, k: int) -> Float[Tensor, "B G R"]:
        """Share of the k past blocks with the most mass (of all, where there are fewer) that the row keeps; one for
        rows without past blocks."""
        mass, block = self.mass.topk(min(k, self.mass.shape[-1]), dim=-1)
        found = (self.codes.gather(-1, block) > 0) & (mass > 0)
        wanted = (mass > 0).sum(-1)
        return (found.sum(-1) / wanted.clamp_min(1)).masked_fill(wanted == 0, 1.0)


@torch.no_grad()
def audit_of(sample: SampledRows, selector: Selector) -> Audit:
    """The audit of the rows of a sample."""
    codes, past = sample.codes, sample.past
    kept = codes > 0
    summaries = selector.summaries.first(kept.shape[-1])
    scores = block_scores(sample.q, summaries, selector.weights)
    low, high = block_bounds(sample.q, summaries)
    importance = log_importance(scores, past).log_softmax(-1).masked_fill(~past, -math.inf)
    probability = importance.exp()
    dropped = (past & ~kept).unsqueeze(2)
    log_mass = sample.log_mass.masked_fill(~kept.unsqueeze(2), -math.inf).logsumexp(-1)
    # As many blocks, from the best on.
    ranked = sample.log_mass.sort(-1, descending=True).values
    beyond = torch.arange(kept.shape[-1], device=kept.device) >= kept.sum(-1).unsqueeze(-1)
    best = ranked.masked_fill(beyond.unsqueeze(2), -math.inf).logsumexp(-1)
    by_rank = kept & (codes != RANDOM)
    last = importance.masked_fill(~(past & by_rank & (codes >= SELECTED)), math.inf).amin(-1)
    first = importance.masked_fill(~(past & ~by_rank), -math.inf).amax(-1)
    num_past = past.sum(-1)
    entropy = -torch.xlogy(probability, probability).sum(-1) / num_past.clamp_min(2).log()
    tokens = sample.tokens
    return Audit(
        rows=sample.positions,
        codes=codes,
        probability=probability,
        mass=sample.target(past.expand_as(kept), "sum"),
        margin=last - first,
        entropy=entropy.masked_fill(num_past < 2, 0.0),
        retained=retained(sample.log_mass, dropped, log_mass).flatten(1, 2),
        oracle=retained(ranked, beyond.unsqueeze(2), best).flatten(1, 2),
        estimated=retained(scores, dropped, log_mass).flatten(1, 2),
        lower=retained(high, dropped, log_mass).flatten(1, 2),
        upper=retained(low, dropped, log_mass).flatten(1, 2),
        pairs=tokens.masked_fill(~kept, 0).sum(-1),
        dense_pairs=tokens.sum(-1).squeeze(1),
        block_size=selector.rule.block_size,
    )
