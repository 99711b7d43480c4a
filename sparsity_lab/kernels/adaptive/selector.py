"""The two stages before exact attention: importances of blocks from their summaries, then the rule.

Shapes: B batch, G heads of keys, M query heads that share one, R query rows, n blocks, D head size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from sparsity_lab.kernels.adaptive.scores import (
    ScoreWeights,
    block_bounds,
    block_scores,
    complete_past,
    log_importance,
)
from sparsity_lab.kernels.adaptive.selection import EVERYTHING, RAISED, SelectionRule
from sparsity_lab.kernels.adaptive.summaries import Summaries

__all__ = ["Selector", "retained", "widened"]

LogMass = Callable[[UInt8[Tensor, "B G R n"]], Float[Tensor, "B G M R"]]
"""From reason codes to lse^S, the log-sum-exp of a row's logits on the keys it keeps."""


@dataclass(frozen=True, kw_only=True)
class Selector:
    """Selects blocks for any rows of one call.

    Attributes:
        rule: the rule of selection.
        rho_min: rows that would keep less of the mass, by estimate, get a larger budget; 0 is off.
        summaries: of all blocks of keys.
        weights: of the score.
        straight_through: whether the output sends a gradient to the weights.
    """

    rule: SelectionRule
    rho_min: float
    summaries: Summaries
    weights: ScoreWeights
    straight_through: bool = False

    @torch.no_grad()
    def select(
        self,
        q: Float[Tensor, "B G M R D"],
        positions: Int64[Tensor, "#B R"],
        log_mass: LogMass,
        draws: Float[Tensor, "B G R words"] | None = None,
    ) -> UInt8[Tensor, "B G R n"]:
        """Reason codes of the blocks up to the last row's own; 0 where dropped.

        A row of which less than ``rho_min`` is retained, by estimate or by proof, in any query head of the group,
        gets the larger budget, and if that does not do, everything.
        """
        summaries = self.summaries.first(int(positions.max()) // self.rule.block_size + 1)
        past = complete_past(summaries, positions, self.rule.block_size)
        scores = block_scores(q, summaries, self.weights)
        importance = log_importance(scores, past)
        codes = self.rule.select(importance, positions, draws=draws)
        if not self.rho_min:
            return codes
        low, _ = block_bounds(q, summaries)
        level = torch.zeros(codes.shape[:-1], dtype=torch.uint8, device=codes.device)
        for higher in (RAISED, EVERYTHING) if self.rule.k_esc is not None else (EVERYTHING,):
            # The larger of score and lower bound: the smaller of the estimate and what the mass is at most.
            dropped = (past & (codes == 0)).unsqueeze(2)
            mass = retained(torch.maximum(scores, low), dropped, log_mass(codes))
            level = level.masked_fill((mass < self.rho_min).any(2), higher)
            codes = self.rule.select(importance, positions, level, draws)
        return codes


def retained(
    scores: Float[Tensor, "B G M R n"], dropped: Tensor, log_mass: Float[Tensor, "B G M R"]
) -> Float[Tensor, "B G M R"]:
    """ρ = 1 / (1 + exp(LSE_{j dropped} score_tj - lse^S_t)), the share of the mass that is kept, if the scores are
    block log-masses. Scores that are never too small, or never too large, bound it."""
    lost = scores.masked_fill(~dropped, -math.inf).logsumexp(-1)
    # Nothing lost is everything kept, also where there is no key at all.
    return (
        (log_mass.double() - lost.masked_fill(lost == -math.inf, 0.0)).sigmoid().masked_fill(lost == -math.inf, 1.0)
    )


def widened(codes: UInt8[Tensor, "B G R n"], num_blocks: int) -> UInt8[Tensor, "B G R m"]:
    """Codes of more blocks, later than all rows: dropped."""
    return pad(codes, (0, num_blocks - codes.shape[-1]))
