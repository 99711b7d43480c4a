"""Adaptive sparse attention: summaries of blocks, their scores, the selection of blocks, and the dense reference.

Block j holds the keys at positions jb .. jb + b - 1. Of its n_j keys that count it keeps the mean k̄, the variance σ²
of each coordinate and the box [k⁻, k⁺]. With s = 1 / sqrt(D), the score of row t estimates the log-mass of the block,
ℓ_tj = log Σ_{i in j} exp(s <q_t, k_i>), from these alone:

    m_tj = s <q_t, k̄_j>                                     first moment
    v_tj = ½ s² Σ_d q_td² σ²_jd                             second moment, diagonal
    x_tj = s Σ_d max(q_td k⁺_jd, q_td k⁻_jd)                the box that holds the keys
    r_tj = <W_qᵀ φ(q_t), W_kᵀ ψ_j> / sqrt(r)                a learned residual of rank r,
                                                            φ(q) = [q; max(q, 0); min(q, 0)], ψ_j = [k̄_j; k⁺_j; k⁻_j]
    g_tj = log n_j + m_tj + β₁ v_tj + β₂ (x_tj - m_tj) + r_tj
    π_tj = mean over the query heads of a group of softmax_{j in Ω_t} g_tj

Ω_t are the complete blocks before the row's own with a key that counts. Rigorously log n + m <= ℓ <= log n + x. The
rule of selection keeps S_t, from π alone, and attention is exact on it:

    P̂_ti = softmax over {i <= t, block(i) in S_t} of s <q_t, k_i>

Each row decides from its own query and earlier keys, so selection is causal. It is the same in one piece, in pieces
and token by token, because all forms call ``Selector.select``.

**Ties.** Blocks whose π agree in float32 are tied, and the lower index goes first. Scores are computed in float64:
the order in which a matrix product sums differs between shapes and devices, and moves them far below that digit.

**Padding.** Positions count from the first visible key of a sequence, so padding on the left moves no block. A row
before that key has a negative position and sees nothing.

Shapes: B batch, G heads of keys, M query heads that share one, R query rows, K keys, n blocks, D head size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import pad

from sparsity_lab.kernels.context import Keys
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.kernels.softmax import softmax_weights

REASONS = ("dropped", "sink", "local", "selected", "slack", "random", "escalated", "dense")
"""Why a block is kept, by reason code."""

_, SINK, LOCAL, SELECTED, SLACK, RANDOM, ESCALATED, DENSE = range(len(REASONS))

RAISED, EVERYTHING = 1, 2
"""Levels of escalation, above 0: a larger budget, and all blocks."""

Rows = Float[Tensor, "B G M R D"]  # rotated queries, grouped by the head of keys that they share
Positions = Int64[Tensor, "#B R"]
Scores = Float[Tensor, "B G M R n"]
Importance = Float[Tensor, "B G R n"]
Codes = UInt8[Tensor, "B G R n"]  # indices into REASONS
DenseWeights = Float[Tensor, "B G M R K"]
Level = UInt8[Tensor, "B G R"] | None  # of escalation
Draws = Float[Tensor, "B G R words"] | None  # uniform numbers
LogMass = Callable[[Codes], Float[Tensor, "B G M R"]]
"""From codes to lse^S, the log-sum-exp of a row's logits on the keys that it keeps."""


# --- summaries and scores


@dataclass(frozen=True)
class Summaries:
    """Summaries of blocks, in float64.

    Attributes:
        log_count: (B, n), log n_j; -inf for a block without keys that count.
        moments: (B, G, n, 2D), mean k̄ and variance σ² of every coordinate; zeros without keys.
        box: (B, G, n, 2D), largest k⁺ and smallest k⁻ of every coordinate; zeros without keys.
    """

    log_count: Float[Tensor, "B n"]
    moments: Float[Tensor, "B G n D2"]
    box: Float[Tensor, "B G n D2"]

    def first(self, num_blocks: int) -> "Summaries":
        """Those of the first blocks."""
        return Summaries(self.log_count[:, :num_blocks], self.moments[:, :, :num_blocks], self.box[:, :, :num_blocks])


@torch.no_grad()
def summarize(k: Keys, key_mask: Bool[Tensor, "B K"] | None, block_size: int) -> Summaries:
    """Summaries of all blocks of keys; without a mask the last one means nothing unless it is complete."""
    rest = -k.shape[2] % block_size
    blocks = torch.unflatten(pad(k.double(), (0, 0, 0, rest)), 2, (-1, block_size))
    if key_mask is None:
        count = blocks.new_full((len(k), blocks.shape[2]), block_size)
        total, squares, largest, smallest = blocks.sum(3), blocks.square().sum(3), blocks.amax(3), blocks.amin(3)
    else:
        valid = torch.unflatten(pad(key_mask, (0, rest)), 1, (-1, block_size))
        count, hidden = valid.sum(2).double(), ~valid[:, None, :, :, None]
        total, squares = (x.masked_fill(hidden, 0.0).sum(3) for x in (blocks, blocks.square()))
        largest, smallest = (s * (s * blocks).masked_fill(hidden, -math.inf).amax(3) for s in (1.0, -1.0))
    some = count[:, None, :, None]
    mean, square = total / some.clamp_min(1.0), squares / some.clamp_min(1.0)
    moments = torch.cat([mean, (square - mean.square()).clamp_min(0.0)], dim=-1)
    box = torch.cat([largest, smallest], dim=-1).masked_fill_(some == 0, 0.0)
    return Summaries(count.log(), moments, box)


class BlockScore(nn.Module):
    """The weights of variance, box and residual in the score, for each head of keys.

    >>> BlockScore(2, (1.0, 0.5)).beta.shape
    torch.Size([2, 2])

    Attributes:
        beta: (G, 2), β₁ and β₂; a buffer where it is not learned.
        query, key: (G, 3D, r), W_q, normal with variance 1 / (3D), and W_k, zero, so that training starts from the
            score without a residual; None without one.
    """

    beta: Tensor

    def __init__(
        self,
        num_heads: int,
        beta: tuple[float, float],
        *,
        learn_beta: bool = True,
        head_dim: int = 0,
        rank: int = 0,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        # Filled where it lies: a copy would wait for the device.
        initial = torch.stack([torch.full((num_heads,), value, device=device) for value in beta], dim=1)
        self._fixed_box = None if learn_beta else beta[1] != 0
        if learn_beta:
            self.beta = nn.Parameter(initial)
        else:
            self.register_buffer("beta", initial, persistent=False)
        self.query: nn.Parameter | None = None
        self.key: nn.Parameter | None = None
        if rank:
            size, generator = (num_heads, 3 * head_dim, rank), torch.Generator().manual_seed(seed)
            self.query = nn.Parameter(torch.randn(size, generator=generator) / size[1] ** 0.5)
            self.key = nn.Parameter(torch.zeros(size))

    def extra_repr(self) -> str:
        return f"num_heads={len(self.beta)}, rank={0 if self.query is None else self.query.shape[-1]}"

    def forward(self, q: Rows, summaries: Summaries) -> Scores:
        """g_tj in float64; -inf for a block without keys. A gradient reaches the weights alone.

        A score is a dot product of functions of the query with the summary: the residual too, since it is
        <W_k W_qᵀ φ(q_t), ψ_j> / sqrt(r).
        """
        q, scale = q.detach().double(), 1.0 / math.sqrt(q.shape[-1])
        variance, box = self.beta.double()[None, :, None, None, :, None].unbind(-2)
        learned = torch.is_grad_enabled() and self.beta.requires_grad
        of_mean, of_box = scale * (1.0 - box) * q, None
        # Where β₂ is zero and stays it, the box would add zeros.
        if self.key is not None or learned or self._has_box():
            of_box = scale * box * _corners(q)
        if self.query is not None and self.key is not None and of_box is not None:
            # The low rank lies between the two products; a (3D, 3D) table would cost more.
            narrow = torch.cat([q, _corners(q)], dim=-1) @ self.query.double().unsqueeze(1)
            residual = narrow @ self.key.double().mT.unsqueeze(1) / math.sqrt(self.key.shape[-1])
            of_mean, of_box = of_mean + residual[..., : q.shape[-1]], of_box + residual[..., q.shape[-1] :]
        of_moments = torch.cat([of_mean, (0.5 * scale**2) * variance * q.square()], dim=-1)
        scores = _products(of_moments, summaries.moments) + summaries.log_count[:, None, None, None]
        return scores if of_box is None else scores + _products(of_box, summaries.box)

    def _has_box(self) -> bool:
        """Whether β₂ may be other than zero."""
        if self._fixed_box is not None:
            return self._fixed_box
        return profile_of(self.beta.device).asynchronous or bool(self.beta[:, 1].any())


@torch.no_grad()
def score_bounds(q: Rows, summaries: Summaries) -> tuple[Scores, Scores]:
    """log n_j + m_tj and log n_j + x_tj: the block log-mass lies between them (Jensen; the box)."""
    log_count, head_dim = summaries.log_count[:, None, None, None], q.shape[-1]
    q = q.double() / math.sqrt(head_dim)
    lower = _products(q, summaries.moments[..., :head_dim]) + log_count
    return lower, _products(_corners(q), summaries.box) + log_count


def _corners(q: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D2"]:
    """[max(q, 0); min(q, 0)]: its product with [k⁺; k⁻] is the largest product with a point of the box."""
    return torch.cat([q.clamp_min(0.0), q.clamp_max(0.0)], dim=-1)


def _products(features: Float[Tensor, "B G M R F"], table: Float[Tensor, "B G n F"]) -> Scores:
    rows = features.flatten(2, 3)
    # For a few rows the table goes first: its product with a vector reads memory once, at full speed.
    products = (table @ rows.mT).mT if rows.shape[2] <= 8 else rows @ table.mT
    return torch.unflatten(products, 2, features.shape[2:4])


def log_importance(scores: Scores, past: Bool[Tensor, "B 1 R n"]) -> Importance:
    """log π_tj up to a constant of the row; -inf outside Ω_t. For one query head it is g itself.

    Kept as a logarithm, so that an order among small π survives.
    """
    past = past.unsqueeze(2)
    if scores.shape[2] == 1:
        return scores.masked_fill(~past, -math.inf).squeeze(2)
    # Only what has a finite logarithm goes through one, or its gradient would be NaN.
    scores = scores.masked_fill(~past, 0.0)
    total = scores.masked_fill(~past & past.any(-1, keepdim=True), -math.inf).logsumexp(-1, keepdim=True)
    return (scores - total).logsumexp(2).masked_fill(~past.squeeze(2), -math.inf)


# --- selection


@dataclass(frozen=True, kw_only=True)
class SelectionRule:
    """Which blocks a row keeps, given the importance of all blocks. ``AdaptiveSparse`` documents the fields."""

    block_size: int = 16
    n_sink: int = 1
    n_local: int = 2
    mode: Literal["topk", "topp"] = "topk"
    k_free: int = 4
    p: float = 0.9
    k_min: int = 2
    k_max: int | None = None
    k_slack: int = 0
    k_rand: int = 0
    epsilon: float = 0.1
    rho_min: float = 0.0
    k_esc: int | None = None
    dense_len: int = 0

    def most_kept(self, num_blocks: int) -> int:
        """A row keeps at most so many of the first blocks at inference."""
        free = self.k_free if self.mode == "topk" else self.k_max
        if free is None or self.rho_min or self.dense_len:
            return num_blocks
        return min(self.n_sink + self.n_local + free + self.k_slack, num_blocks)

    def forced(self, positions: Positions, num_blocks: int) -> UInt8[Tensor, "#B 1 R n"]:
        """Codes of sinks and of local blocks; blocks after the row's own are among the latter."""
        block = torch.arange(num_blocks, device=positions.device)
        local = block > (positions // self.block_size - self.n_local)[:, None, :, None]
        return (local * LOCAL).to(torch.uint8).masked_fill_(block < self.n_sink, SINK)

    def select(self, importance: Importance, positions: Positions, level: Level = None, draws: Draws = None) -> Codes:
        """Codes of all blocks. The own block of each row is kept.

        Args:
            importance: log π up to a constant of the row, -inf where a block takes no part.
            level: of escalation; None is 0 everywhere.
            draws: 1 + k_rand uniform numbers of each row, where blocks are kept at random.
        """
        num_blocks, past = importance.shape[-1], importance > -math.inf
        forced = self.forced(positions, num_blocks)
        own = (positions // self.block_size).clamp_min(0)[:, None, :, None]
        codes = forced.expand_as(past).masked_fill(~past, 0).scatter_(-1, own.expand(*past.shape[:3], 1), LOCAL)
        free = past & (forced == 0)

        most = self.k_free if self.mode == "topk" else num_blocks if self.k_max is None else self.k_max
        limit: Tensor | int = most
        raised: Tensor | int = most
        if level is not None and self.k_esc is not None:
            raised, most = torch.where((level == RAISED).unsqueeze(-1), self.k_esc, most), self.k_esc
        count = num_blocks if self.mode == "topp" else min(most + self.k_slack, num_blocks)
        order = _ranked(importance.masked_fill(~free, -math.inf), count)
        if self.mode == "topp":
            mass = importance.softmax(-1).masked_fill(~past, 0.0)  # a row without past is NaN before
            ranked = mass.masked_fill(~free, 0.0).gather(-1, order)
            before = mass.masked_fill(free, 0.0).sum(-1, keepdim=True) + ranked.cumsum(-1) - ranked
            # The mass before a rank never falls, so what the rule keeps is a number of first ranks.
            wanted = (before < self.p).sum(-1, keepdim=True).clamp_min(self.k_min)
            limit, raised = wanted.clamp_max(limit), wanted.minimum(torch.as_tensor(raised, device=wanted.device))
        rank = torch.arange(count, device=order.device)
        reason = torch.where(rank < limit, SELECTED, torch.where(rank < raised, ESCALATED, SLACK))
        taken = (rank < raised + self.k_slack) & free.gather(-1, order)
        codes = codes.scatter_add_(-1, order, (reason * taken).to(torch.uint8))

        left = free & (codes == 0)
        if draws is not None:  # with probability ε some more, each uniform among what is left
            for word in torch.split(draws[..., 1:], 1, dim=-1):
                number = left.sum(-1, keepdim=True)
                place = (word * number).long().minimum(number - 1)
                found = left & (left.cumsum(-1) == place + 1)
                codes, left = codes.masked_fill(found & (draws[..., :1] < self.epsilon), RANDOM), left & ~found
            left = free & (codes == 0)
        if level is not None:
            codes = codes.masked_fill(left & (level == EVERYTHING).unsqueeze(-1), ESCALATED)
        early = (positions < self.dense_len)[:, None, :, None]
        return codes.masked_fill(early & free & (codes == 0), DENSE) if self.dense_len else codes


def _ranked(importance: Float[Tensor, "*rows n"], count: int) -> Int64[Tensor, "*rows count"]:
    """The ``count`` largest in order, the lower block first among those that agree in float32."""
    # A float64 has room for the index below the last digit of a float32, also of one that is nothing.
    rounded = importance.float().double()
    step = torch.arange(1, rounded.shape[-1] + 1, dtype=torch.float64, device=rounded.device) * 2.0**-50
    return torch.addcmul(rounded, rounded.abs().add_(1e-30), step, value=-1.0).topk(count, dim=-1).indices


@dataclass(frozen=True, kw_only=True)
class Selector:
    """Selects blocks for any rows of one call.

    Attributes:
        rule: the rule of selection.
        summaries: of all blocks of keys.
        score: of blocks.
        key_mask: which keys count; None: all.
        draws: 1 + k_rand uniform numbers of each position, where blocks are kept at random.
        straight_through: whether the output sends a gradient to the weights.
    """

    rule: SelectionRule
    summaries: Summaries
    score: BlockScore
    key_mask: Bool[Tensor, "B K"] | None = None
    draws: Draws = None
    straight_through: bool = False

    def scores(self, q: Rows, positions: Positions, num_blocks: int) -> tuple[Scores, Bool[Tensor, "B 1 R n"]]:
        """g_tj of the first blocks, and which of them take part in scoring, Ω_t."""
        summaries, block = self.summaries.first(num_blocks), torch.arange(num_blocks, device=q.device)
        complete = block < (positions // self.rule.block_size).unsqueeze(-1)
        return self.score(q, summaries), (complete & (summaries.log_count > -math.inf).unsqueeze(1)).unsqueeze(1)

    @torch.no_grad()
    def select(self, q: Rows, positions: Positions, num_blocks: int, log_mass: LogMass) -> Codes:
        """Codes of the first blocks, among them the own ones of all rows.

        A row gets the larger budget if any query head of the group retains less than ``rho_min``, by estimate or by
        proof. If that is still not enough, it gets everything.
        """
        scores, past = self.scores(q, positions, num_blocks)
        importance, draws = log_importance(scores, past), None
        if self.draws is not None:
            at = positions.clamp(0, self.draws.shape[2] - 1)[:, None, :, None]
            draws = self.draws.gather(2, at.expand(*importance.shape[:3], self.draws.shape[3]))
        codes = self.rule.select(importance, positions, draws=draws)
        if not self.rule.rho_min:
            return codes
        # The larger of score and lower bound: the smaller of the estimate and what the mass is at most.
        scores = scores.maximum(score_bounds(q, self.summaries.first(num_blocks))[0])
        level = torch.zeros_like(codes[..., 0])
        for higher in (RAISED, EVERYTHING) if self.rule.k_esc is not None else (EVERYTHING,):
            mass = retained(scores, (past & (codes == 0)).unsqueeze(2), log_mass(codes))
            level = level.masked_fill((mass < self.rule.rho_min).any(2), higher)
            codes = self.rule.select(importance, positions, level, draws)
        return codes

    def fixed_blocks(self, q: Rows, row: int) -> Int64[Tensor, "B G kept"] | None:
        """The blocks that ``select`` keeps for one row, its own last, where the rule alone says how many; else None.

        So decoding needs no codes of all blocks, which would cost as much as everything else in it.
        """
        rule, own = self.rule, row // self.rule.block_size
        local, count = own - rule.n_local + 1, rule.k_free + rule.k_slack
        if rule.mode == "topp" or rule.rho_min or row < rule.dense_len or self.key_mask is not None:
            return None
        if local < rule.n_sink + count:
            return None
        past = torch.ones(len(q), 1, 1, own, dtype=torch.bool, device=q.device)
        importance = log_importance(self.score(q, self.summaries.first(own)), past)
        best = _ranked(importance[:, :, 0, rule.n_sink : local], count) + rule.n_sink
        forced = torch.cat([torch.arange(*ends, device=q.device) for ends in ((0, rule.n_sink), (local, own + 1))])
        return torch.cat([best, forced.expand(*best.shape[:2], -1)], dim=-1)

    def seen_tokens(self, positions: Positions, num_keys: int) -> Bool[Tensor, "B 1 R K"]:
        """Which tokens rows may see: i <= t, not masked."""
        seen = torch.arange(num_keys, device=positions.device) <= positions.unsqueeze(-1)
        if self.key_mask is not None:
            seen = seen & self.key_mask[:, None, :num_keys]
        return seen.expand(len(self.summaries.log_count), -1, -1).unsqueeze(1)

    def kept_tokens(self, codes: Codes, positions: Positions, num_keys: int) -> Bool[Tensor, "B G R K"]:
        """Which tokens a row attends to: those that it may see, in blocks that it keeps."""
        kept = (codes > 0).repeat_interleave(self.rule.block_size, dim=-1)
        return self.seen_tokens(positions, num_keys) & kept[..., :num_keys]

    def gates(self, q: Rows, positions: Positions, num_blocks: int) -> Importance:
        """log w, w = 1 + π_tj - stopgrad(π_tj), for blocks that are not always kept: zeros, whose gradient goes to
        the weights of the score.

        Unnormalized weights are multiplied by w, which leaves the forward pass unchanged to the last bit. Backward,
        ∂L/∂π_tj = Σ_h Σ_{i in j} P̂_ti <∂L/∂o_t, v_i - o_t> over the query heads that share the selection.
        """
        scores, past = self.scores(q, positions, num_blocks)
        # A row without past gets harmless numbers before its logarithms, so that no NaN enters the gradient.
        importance = log_importance(scores, past).masked_fill(~past.any(-1, keepdim=True), 0.0)
        free = past & (self.rule.forced(positions, num_blocks) == 0)
        shares = importance.softmax(-1).masked_fill(~free, 0.0)
        return (shares - shares.detach()).log1p()


def retained(
    scores: Scores, dropped: Bool[Tensor, "B heads #M R n"], log_mass: Float[Tensor, "B G M R"]
) -> Float[Tensor, "B G M R"]:
    """ρ = 1 / (1 + exp(LSE_{j dropped} score_tj - lse^S_t)), the share of the mass that is kept, if the scores are
    block log-masses. Scores that are never too small, or never too large, bound it."""
    lost = scores.masked_fill(~dropped, -math.inf).logsumexp(-1)
    # Nothing lost is everything kept, also where there is no key at all.
    whole = lost == -math.inf
    return (log_mass.double() - lost.masked_fill(whole, 0.0)).sigmoid().masked_fill(whole, 1.0)


# --- attention with all scores computed


@torch.no_grad()
def dense_logits(q: Rows, k: Keys, seen: Bool[Tensor, "B heads R K"]) -> DenseWeights:
    """<q_t, k_i> / sqrt(D), -inf where a token may not be seen."""
    logits = torch.unflatten(q.flatten(2, 3) @ k.mT, 2, q.shape[2:4]) / math.sqrt(q.shape[-1])
    return logits.masked_fill(~seen.unsqueeze(2), -math.inf)


def select_densely(q: Rows, k: Keys, positions: Positions, selector: Selector) -> Codes:
    """Codes of all blocks. Where escalation asks for the mass of the kept keys, all logits are computed."""

    def log_mass(codes: Tensor) -> Tensor:
        return dense_logits(q, k, selector.kept_tokens(codes, positions, k.shape[2])).logsumexp(-1)

    return selector.select(q, positions, -(-k.shape[2] // selector.rule.block_size), log_mass)


def weights_on(q: Rows, k: Keys, positions: Positions, codes: Codes, selector: Selector) -> DenseWeights:
    """Weights of rows on the blocks that they keep, in training with the straight-through gradient."""
    mask, gates = selector.kept_tokens(codes, positions, k.shape[2]).flatten(0, 1).unsqueeze(1), None
    if selector.straight_through:
        gates = selector.gates(q, positions, codes.shape[-1]).to(q.dtype).flatten(0, 1).unsqueeze(1)
        gates = gates.repeat_interleave(selector.rule.block_size, dim=-1)[..., : k.shape[2]]
    # Each head of keys is a sequence of its own with M heads.
    keys = k.flatten(0, 1).unsqueeze(1).expand(-1, q.shape[2], -1, -1)
    return torch.unflatten(softmax_weights(q.flatten(0, 1), keys, mask, gates), 0, q.shape[:2])


def dense_weights(q: Rows, k: Keys, positions: Positions, selector: Selector) -> DenseWeights:
    """The reference: weights of rows at these positions."""
    return weights_on(q, k, positions, select_densely(q, k, positions, selector), selector)
