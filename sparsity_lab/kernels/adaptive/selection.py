"""Which blocks a query row keeps.

A row decides alone, from its own importances of complete past blocks (they depend on its query and on keys before
its block), so selection is causal, and the same in one piece, in pieces and token by token.

**Ties.** Blocks whose importances agree in float32 are tied, and the lower index goes first. Importances come in
float64: the order in which a matrix product sums, which differs between shapes and devices, moves them far below the
last digit of float32, so it does not decide either.

Shapes: B batch, G heads of keys, R query rows, n blocks (the last is the own block of the latest row).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

__all__ = [
    "DENSE",
    "ESCALATED",
    "EVERYTHING",
    "LOCAL",
    "RAISED",
    "RANDOM",
    "REASONS",
    "SELECTED",
    "SINK",
    "SLACK",
    "SelectionRule",
]

REASONS = ("dropped", "sink", "local", "selected", "slack", "random", "escalated", "dense")
"""Why a block is kept, by reason code."""

_, SINK, LOCAL, SELECTED, SLACK, RANDOM, ESCALATED, DENSE = range(len(REASONS))

RAISED, EVERYTHING = 1, 2
"""Levels of escalation, above 0: a larger budget, and all blocks."""


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """The rule of selection; the attributes are fields of ``AdaptiveSparse``."""

    block_size: int
    n_sink: int
    n_local: int
    mode: Literal["topk", "topp"]
    k_free: int
    p: float
    k_min: int
    k_max: int | None
    k_slack: int
    k_rand: int
    epsilon: float
    k_esc: int | None
    dense_len: int

    def select(
        self,
        importance: Float[Tensor, "B G R n"],
        positions: Int64[Tensor, "#B R"],
        level: UInt8[Tensor, "B G R"] | None = None,
        draws: Float[Tensor, "B G R words"] | None = None,
    ) -> UInt8[Tensor, "B G R n"]:
        """Reason codes, 0 where a block is dropped. The own block of each row is kept.

        Args:
            importance: log π up to a constant of the row, -inf where a block takes no part.
            level: of escalation; None is 0 everywhere.
            draws: 1 + k_rand uniform numbers of each row, where blocks are kept at random.
        """
        num_blocks = importance.shape[-1]
        block = torch.arange(num_blocks, device=importance.device)
        own = (positions // self.block_size)[:, None, :, None]
        past = importance > -math.inf
        codes = ((block > own - self.n_local) & past | (block == own)).to(torch.uint8).mul_(LOCAL)
        codes = codes.masked_fill_((block < self.n_sink) & past, SINK)
        candidates = past & (codes == 0)
        limit, raised = self._budget(importance, past, candidates, level)
        most = min(int(raised.max()) + self.k_slack, num_blocks)
        if most:
            codes = self._take(codes, self._order(importance, candidates, most), candidates, limit, raised)
        if draws is not None:
            codes = self._at_random(codes, candidates, draws)
        if level is not None:
            codes = torch.where((level == EVERYTHING).unsqueeze(-1) & candidates & (codes == 0), ESCALATED, codes)
        if self.dense_len:
            early = (positions < self.dense_len)[:, None, :, None]
            codes = torch.where(early & candidates & (codes == 0), DENSE, codes)
        return codes.to(torch.uint8)

    def _budget(
        self,
        importance: Float[Tensor, "B G R n"],
        past: Bool[Tensor, "B G R n"],
        candidates: Bool[Tensor, "B G R n"],
        level: UInt8[Tensor, "B G R"] | None,
    ) -> tuple[Int64[Tensor, "#B #G #R 1"], Int64[Tensor, "#B #G #R 1"]]:
        """How many candidates a row takes by the rule, and how many at its level of escalation."""
        most = self.k_free if self.mode == "topk" else self.k_max
        at_most = torch.full((1, 1, 1, 1), importance.shape[-1] if most is None else most, device=importance.device)
        raised = at_most
        if level is not None and self.k_esc is not None:
            raised = torch.where((level == RAISED).unsqueeze(-1), self.k_esc, at_most)
        if self.mode == "topk":
            return at_most, raised
        mass = importance.softmax(-1).masked_fill(~past, 0.0)  # a row without past is NaN before
        kept = mass.masked_fill(candidates, 0.0).sum(-1, keepdim=True)
        order = self._order(importance, candidates, importance.shape[-1])
        ranked = mass.masked_fill(~candidates, 0.0).gather(-1, order)
        before = kept + ranked.cumsum(-1) - ranked
        # The mass before a rank never falls, so what the rule keeps is a number of first ranks.
        wanted = (before < self.p).sum(-1, keepdim=True).clamp_min(self.k_min)
        return torch.minimum(wanted, at_most), torch.minimum(wanted, raised)

    def _order(
        self, importance: Float[Tensor, "B G R n"], candidates: Bool[Tensor, "B G R n"], count: int
    ) -> Int64[Tensor, "B G R count"]:
        """The ``count`` most important candidates, the lower block first among ties; others come last."""
        ranked = importance.masked_fill(~candidates, -math.inf).float() + 0.0  # no minus zero
        bits = ranked.view(torch.int32)
        # As integers that order as the floats do, above the index that parts the ties: no two keys are alike.
        ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
        block = torch.arange(importance.shape[-1], device=importance.device)
        return ((ordered << 32) | (0x7FFFFFFF - block)).topk(count, dim=-1).indices

    def _take(
        self,
        codes: UInt8[Tensor, "B G R n"],
        order: Int64[Tensor, "B G R count"],
        candidates: Bool[Tensor, "B G R n"],
        limit: Int64[Tensor, "#B #G #R 1"],
        raised: Int64[Tensor, "#B #G #R 1"],
    ) -> UInt8[Tensor, "B G R n"]:
        """Codes with the first candidates entered: those of the rule, of a raised budget, and the slack."""
        rank = torch.arange(order.shape[-1], device=order.device)
        reason = torch.where(rank < raised, torch.where(rank < limit, SELECTED, ESCALATED), SLACK)
        taken = (rank < raised + self.k_slack) & candidates.gather(-1, order)
        return codes.scatter(-1, order, torch.where(taken, reason, codes.gather(-1, order)).to(torch.uint8))

    def _at_random(
        self,
        codes: UInt8[Tensor, "B G R n"],
        candidates: Bool[Tensor, "B G R n"],
        draws: Float[Tensor, "B G R words"],
    ) -> UInt8[Tensor, "B G R n"]:
        """With probability ``epsilon`` a row keeps ``k_rand`` more candidates, each uniform among what is left."""
        lucky = draws[..., :1] < self.epsilon
        left = candidates & (codes == 0)
        for word in draws[..., 1:].unbind(-1):
            count = left.sum(-1)
            place = (word * count).long().clamp_max(count - 1)
            found = left & (left.cumsum(-1) == (place + 1).unsqueeze(-1))
            codes = torch.where(found & lucky, RANDOM, codes)
            left = left & ~found
        return codes.to(torch.uint8)
