"""Adaptive sparse attention: the setting, its parameters, and what runs."""

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparsity_lab.kernels.adaptive.audit import Audit, audit_of, look_at, selector_loss, spread_rows
from sparsity_lab.kernels.adaptive.fast import (
    AdaptiveState,
    decoded_row,
    gathered_attention,
    moved,
    tiled_attention,
)
from sparsity_lab.kernels.adaptive.formula import BlockScore, SelectionRule, Selector, dense_weights, summarize
from sparsity_lab.kernels.adaptive.native import native_row
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import Kernel
from sparsity_lab.kernels.operator import is_watched
from sparsity_lab.kernels.parts.arguments import RowKind, check_keys, check_rows
from sparsity_lab.kernels.parts.compiler import COMPILER, check_native
from sparsity_lab.kernels.parts.masking import first_visible
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.kernels.position import KernelPosition
from sparsity_lab.settings import SettingError, Shown, check_least, register

_MOST = 2**16
"""Rows of a block, random blocks and ranks: sizes of what each call makes."""

MASKED_LENGTH = 512
"""Up to about this many keys the fused kernel under a mask is faster than gathering."""


@register
class AdaptiveSparse(SelectionRule, Kernel):
    """Exact softmax attention on blocks of keys that each row selects by their summaries.

    A row scores the complete blocks before its own: g = log n + m + β₁ v + β₂ (x - m) + r. Here m is the first
    moment, v the second moment and x the box bound of the block's log-mass, and r is a learned low-rank residual. The
    row keeps sinks, local blocks with its own, and the candidates that a budget allows. Selection is per token, from
    the row's own query and earlier keys; the query heads that share a head of keys share it. Queries are never
    pooled, so no row depends on a later one.

    ``"reference"`` computes all scores; ``"masked"`` is PyTorch's fused kernel under the same mask, in tiles of rows;
    ``"gather"`` computes kept blocks only, in memory linear in T. ``"auto"`` takes ``"masked"`` up to 512 tokens and
    ``"gather"`` above. Decoding gathers the kept blocks of one row. A state with ``implementation="native"`` computes
    single rows in C++: on a CPU, in float32, for ``mode="topk"`` without ``rho_min`` and ``rank``. Several rows at
    once, rows of ``dense_len`` and sequences with hidden tokens are computed as with ``"auto"``.

    In training with ``auxiliary`` and ``params``, the selector's loss on sampled rows goes to ``auxiliary.losses``.
    Every call with ``auxiliary`` leaves an audit of sampled rows in ``auxiliary.records``.

    Assembled from public work. Mean score: MoBA, 2502.13189. Box score: Quest, 2406.10774. Per-token blocks shared in
    a group: NSA, 2502.11089. Divergence to the dense block mass: SeerAttention, 2410.13276. Detached selector:
    DeepSeek-V3.2. ``docs/kernels.md`` derives the variance term and the interval.

    Attributes:
        block_size: b, keys in a block.
        n_sink: how many first blocks are always kept.
        n_local: how many last blocks are always kept, the own one included. A window of w tokens needs
            ceil(w / b) + 1.
        mode: ``"topk"``, the best ``k_free`` candidates; ``"topp"``, candidates until the kept share π of the past
            reaches ``p``.
        k_free: budget of ``"topk"``.
        p, k_min, k_max: of ``"topp"``: the share, and the least and the most candidates; no k_max, no limit.
        k_slack: further candidates after the rule.
        k_rand, epsilon: in training, with probability ``epsilon``, a row keeps ``k_rand`` more candidates drawn at
            random; needs a generator.
        rho_min, k_esc: a row escalates if its retained mass is estimated or proven below ``rho_min`` in some query
            head. It then gets ``k_esc`` in place of ``k_free`` or ``k_max``. If that is not enough, or is None, it
            keeps everything. Off at 0.
        dense_len: rows of the first ``dense_len`` positions keep everything. By position, not by the length of the
            sequence, so that a row is the same in every piece of a sequence.
        beta: β₁ and β₂, initial values or fixed ones. (0, 0) is MoBA's score, (0, 1) Quest's.
        learn_beta: β is trained, for each head of keys; without it and a residual, the mechanism has no parameters.
        rank: of the learned residual, which starts at zero; 0 is none.
        straight_through: in training the output sends a gradient to the score's weights, as if a kept candidate's
            weights were multiplied by 1 + π - stopgrad(π). Without it they learn from the selector's loss alone.
        lambda_sel: weight of the selector's loss.
        sampled_rows: R, rows of each sequence that the loss and the audit look at; drawn where there is a generator
            in training, else evenly spaced.
        kl_pooling: target of the loss: the blocks' mass (``"sum"``) or their largest weight (``"max"``).
        kl: whether the loss is over all past blocks or over the selected ones.
    """

    implementations = ("reference", "masked", "gather")
    decoders = ("native",) if COMPILER else ()
    positions = frozenset({"rotate"})
    grouped = True
    tells_losses = True
    benchmark_inputs = ("random", "structured")

    beta: tuple[float, float] = (1.0, 0.0)
    learn_beta: bool = True
    rank: int = 0
    straight_through: bool = False
    lambda_sel: float = 1.0
    sampled_rows: int = 16
    kl_pooling: Literal["sum", "max"] = "sum"
    kl: Literal["all", "selected"] = "all"

    def check(self) -> None:
        check_least(1, block_size=self.block_size, n_local=self.n_local, sampled_rows=self.sampled_rows)
        for name in ("n_sink", "k_free", "k_min", "k_slack", "k_rand", "dense_len", "rank", "lambda_sel"):
            check_least(0, **{name: getattr(self, name)})
        for name in ("block_size", "k_rand", "rank"):
            if getattr(self, name) > _MOST:
                raise SettingError(name, f"at most {_MOST}", getattr(self, name))
        budget, most = ("k_free", self.k_free) if self.mode == "topk" else ("k_max", self.k_max)
        larger = self.k_esc is None or (most is not None and self.k_esc > most)
        through = self.learn_beta or self.rank or not self.straight_through
        for name, fits, expected in (
            ("p", 0.0 < self.p <= 1.0, "a share in (0, 1]"),
            ("epsilon", 0.0 <= self.epsilon <= 1.0, "a probability in [0, 1]"),
            ("rho_min", 0.0 <= self.rho_min < 1.0, "a share in [0, 1)"),
            ("k_max", self.k_max is None or self.k_max >= self.k_min, f"at least k_min = {self.k_min}"),
            ("k_esc", larger, f"more than {budget} = {most}"),
            ("straight_through", through, "False: with nothing to learn it has nowhere to go"),
        ):
            if not fits:
                raise SettingError(name, expected, getattr(self, name))

    @classmethod
    def examples(cls) -> "tuple[AdaptiveSparse, ...]":
        return (
            cls(block_size=4, n_local=1, k_free=2, sampled_rows=64),
            cls(
                block_size=5, n_sink=0, mode="topp", p=0.6, k_min=1, k_max=3, k_slack=1, beta=(0.5, 0.25),
                kl_pooling="max", kl="selected", rank=3, straight_through=True,
            ),
            cls(block_size=8, n_local=1, k_free=0, rho_min=0.7, k_esc=1, dense_len=3, learn_beta=False),
        )  # fmt: skip

    @classmethod
    def benchmarked(cls) -> "tuple[AdaptiveSparse, ...]":
        # Ten blocks a row. Nothing is known of the benchmark's rows, so all but the own block are chosen.
        return (cls(block_size=64, n_sink=0, n_local=1, k_free=9),)

    def build(self, num_heads: int, head_dim: int, seed: int) -> BlockScore | None:
        if not (self.learn_beta or self.rank):
            return None
        return BlockScore(
            num_heads, self.beta, learn_beta=self.learn_beta, head_dim=head_dim, rank=self.rank, seed=seed
        )

    def check_position(self, kind: str | None, path: str = "position") -> None:
        if kind == "bias":
            expected = (
                f"a kind of position that {self.kind} supports ('rotate' or None; block summaries contain no bias)"
            )
            raise SettingError(path, expected, kind)
        super().check_position(kind, path)

    def implementation(self, q: Tensor) -> str:
        """As of every kernel; of queries of a whole sequence."""
        return self._fitting(q, q.shape[2])

    @torch.no_grad()
    def audit(
        self,
        q: Tensor,
        k: Tensor,
        *,
        rows: Tensor | None = None,
        key_mask: Tensor | None = None,
        position: KernelPosition | None = None,
        params: nn.Module | None = None,
    ) -> Audit:
        """What rows of a sequence see at inference, why, and what share of the dense mass that is.

        Args:
            q: (B, H, T, D), un-rotated.
            k: (B, G, T, D), un-rotated.
            rows: (B, R) positions; None takes ``sampled_rows`` evenly spaced ones.
            key_mask, position, params: as for ``attend``.

        Raises:
            SettingError: as ``attend``; or rows that are not positions of the sequence.
        """
        check_rows("q", q)
        check_rows("k", k)
        batch_size, _, length, _ = q.shape
        check_keys("k", k, "q", q, (k.shape[1], length, q.shape[3]))
        context = self._context(q, k, length, training=False, key_mask=key_mask, position=position, params=params)
        if rows is None:
            rows = spread_rows(length, 0, self.sampled_rows, batch_size, None, q.device)
        if rows.dtype != torch.int64 or rows.ndim != 2 or len(rows) != batch_size or not rows.shape[1]:
            raise SettingError("rows", f"int64 of shape ({batch_size}, R)", (rows.dtype, tuple(rows.shape)))
        if int(rows.min()) < 0 or int(rows.max()) >= length:
            raise SettingError("rows", f"positions 0 .. {length - 1}", (int(rows.min()), int(rows.max())))
        q, k = self._prepare(q, k, context)
        k, context, starts = _aligned(k, context)
        selector = self._selector(k, context)
        return audit_of(look_at(rows, _in_groups(q, k), k, 0, selector, starts), selector, starts)

    # --- inside

    def _check_call(self, q: Queries, k: Keys, context: Context) -> None:
        if not context.causal:
            raise SettingError("causal", f"True, since {self.kind} selects only earlier blocks", False)
        if context.document_ids is not None:
            raise SettingError("document_ids", f"not supported; a block of {self.kind} may contain several documents")
        self._score(k, context.params)

    def _check_implementation(self, implementation: str, q: Queries) -> None:
        if implementation != "native":
            return
        check_native(q)
        if q.dtype != torch.float32 or is_watched(q):
            raise SettingError("implementation", "plain rows in float32 for 'native'", q.dtype)
        if self.mode == "topp" or self.rho_min or self.rank:
            raise SettingError("implementation", "mode 'topk' without rho_min and rank for 'native'", Shown(self))

    def _prepare(self, q: Queries, k: Keys, context: Context, key_start: int = 0) -> tuple[Queries, Keys]:
        # Rotated before anything is rounded, so that all forms and dtypes select by the same keys.
        wide = torch.promote_types(q.dtype, torch.float32)
        return context.rotate(q.to(wide), context.query_start), context.rotate(k.to(wide), key_start)

    def _attend(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        if not len(q):
            return q.sum(-1, keepdim=True).expand(*q.shape[:3], v.shape[3])  # an empty batch has nothing to select
        stop = context.query_start + q.shape[2]
        if stop < k.shape[2]:  # no row sees what follows
            k, v = k[:, :, :stop], v[:, :, :stop]
            mask = None if context.key_mask is None else context.key_mask[:, :stop]
            context = replace(context, key_mask=mask)
        rotated_q, rotated_k = self._prepare(q, k, context)
        rotated_k, context, starts = _aligned(rotated_k, context)
        selector, v = self._selector(rotated_k, context), v.to(rotated_q.dtype)
        v = v if starts is None else moved(v, starts)
        out = self._on_selected(rotated_q, rotated_k, v, selector, context, starts)
        self._tell(rotated_q, rotated_k, selector, context, starts)
        out = out.to(q.dtype)
        if context.auxiliary is None and context.params is not None and torch.is_grad_enabled():
            # Without a loss nothing else may reach them, and some trainers refuse parameters outside of the graph.
            out = _WithUnused.apply(out, *context.params.parameters())  # type: ignore[no-untyped-call]
        return out

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        if context.training and self.k_rand:
            raise SettingError(
                "training", f"False, since with k_rand = {self.k_rand} training draws random blocks", True
            )
        if not len(q):
            return q.new_zeros(*q.shape[:3], k.shape[2])
        k, context, starts = _aligned(k, context)
        selector, positions = self._selector(k, context), _positions(q, context, starts)
        weights = dense_weights(_in_groups(q, k), k, positions, selector).flatten(1, 2)
        if starts is None:
            return weights
        place = torch.arange(k.shape[2], device=k.device) - starts
        index = place.clamp_min(0)[:, None, None].expand_as(weights)
        return weights.gather(3, index).masked_fill((place < 0)[:, None, None], 0.0)

    def _init_state(self, rows: RowKind, capacity: int) -> AdaptiveState:
        return AdaptiveState(rows, capacity, self.block_size)

    def _extend(self, q: Queries, k: Keys, v: Values, state: AdaptiveState, context: Context) -> Outputs:
        if not len(q):
            state.append(k, v, context.key_mask)
            return v.new_empty(*q.shape[:3], v.shape[3])
        rotated_q, rotated_k = self._prepare(q, k, context, context.query_start)
        state.extend(rotated_k, v, context.key_mask)
        chosen, form, wide = state.implementation, context.implementation, rotated_q.dtype
        if chosen in ("auto", "native"):
            form = self._fitting(q, state.length)
        context = replace(context, key_mask=state.key_mask, implementation=form)
        selector = self._selector(rotated_k, context, state)
        plain = state.key_mask is None and state.length > self.dense_len
        if chosen == "native" and q.shape[2] == 1 and plain:
            out = native_row(_in_groups(rotated_q, k), state, self, selector.score.beta).flatten(1, 2)
        elif form != "reference" and q.shape[2] == 1:
            out = decoded_row(_in_groups(rotated_q, k), state, selector).flatten(1, 2)
        else:
            rows = rotated_q, state.keys.to(wide), state.values.to(wide)
            out = self._on_selected(*rows, selector, context, state.skipped)
        if context.auxiliary is not None:
            self._tell(rotated_q, state.keys.to(wide), selector, context, state.skipped)
        return out.to(q.dtype)

    def _on_selected(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        selector: Selector,
        context: Context,
        starts: Int64[Tensor, "B 1"] | None,
    ) -> Outputs:
        """The output of all rows by ``context.implementation``.

        Args:
            k, v: from the first visible key of each sequence on.
            starts: where that is among the rows; None: at 0.
        """
        if k.shape[2] < self.block_size:
            # All rows are in one block that is not full: a block of just this length does less.
            selector = replace(selector, rule=self.replace(block_size=k.shape[2]))
        start, positions = context.query_start, _positions(q, context, starts)
        if context.implementation == "reference":
            return (dense_weights(_in_groups(q, k), k, positions, selector) @ v.unsqueeze(2)).flatten(1, 2)
        if context.implementation == "masked" or (start and starts is not None):
            return tiled_attention(_in_groups(q, k), k, v, start, positions, selector).flatten(1, 2)
        if starts is None:
            return gathered_attention(_in_groups(q, k), k, v, start, selector).flatten(1, 2)
        out = gathered_attention(_in_groups(moved(q, starts), k), k, v, 0, selector).flatten(1, 2)
        return moved(out, -starts).masked_fill((positions < 0)[:, None, :, None], 0.0)

    def _tell(
        self, q: Queries, k: Keys, selector: Selector, context: Context, starts: Int64[Tensor, "B 1"] | None
    ) -> None:
        """Loss and audit of sampled rows, to ``auxiliary`` if there is one. In a whole sequence, rows without
        a complete block before them are skipped."""
        query_start = context.query_start
        first = query_start or self.block_size
        length = query_start + q.shape[2]
        if context.auxiliary is None or first >= length:
            return
        generator = context.generator if context.training else None
        rows = spread_rows(length, first, self.sampled_rows, len(q), generator, q.device)
        sample = look_at(rows, _in_groups(q, k), k, query_start, selector, starts)
        context.auxiliary.records.append(audit_of(sample, selector, starts).record())
        if context.training and isinstance(context.params, BlockScore) and self.lambda_sel:
            loss = selector_loss(sample, selector, self.kl_pooling, self.kl)
            context.auxiliary.losses.append(self.lambda_sel * loss.to(q.dtype))

    def _fitting(self, q: Tensor, num_keys: int) -> str:
        if q.dtype == torch.float64:
            return "reference"
        # What is gathered depends on numbers, for which an accelerator would have to wait.
        waits = profile_of(q.device).asynchronous
        return "masked" if waits or num_keys <= MASKED_LENGTH else "gather"

    def _selector(self, k: Keys, context: Context, state: AdaptiveState | None = None) -> Selector:
        """What selects in a call on these rotated keys, or those of a state."""
        score = self._score(k, context.params)
        learned = torch.is_grad_enabled() and any(x.requires_grad for x in score.parameters())
        return Selector(
            rule=self,
            summaries=summarize(k, context.key_mask, self.block_size) if state is None else state.summaries,
            score=score,
            key_mask=context.key_mask,
            draws=self._draws(k, context),
            straight_through=self.straight_through and context.training and learned,
        )

    def _draws(self, k: Keys, context: Context) -> Float[Tensor, "B G K words"] | None:
        """Uniform numbers of every position, where blocks are kept at random."""
        if not (context.training and self.k_rand):
            return None
        if context.generator is None:
            raise SettingError("generator", f"missing; k_rand = {self.k_rand} draws random blocks in training")
        device = context.generator.device
        words = torch.rand(*k.shape[:3], 1 + self.k_rand, generator=context.generator, device=device)
        return words.to(k.device)

    def _score(self, k: Keys, params: nn.Module | None) -> BlockScore:
        """The module, or one with the weights that training starts from, whose residual is zero.

        Raises:
            SettingError: parameters of another kernel or for other heads.
        """
        num_heads, head_dim = k.shape[1], k.shape[3]
        if params is None:
            return BlockScore(num_heads, self.beta, learn_beta=False, device=k.device)
        expected = f"the module that build({num_heads}, ...) returns"
        if not isinstance(params, BlockScore):
            raise SettingError("params", expected, type(params).__name__)
        if len(params.beta) != num_heads:
            raise SettingError("params", f"{expected}, for the heads of keys", len(params.beta))
        residual = (0, 0) if params.query is None else tuple(params.query.shape[1:])
        wanted = (3 * head_dim, self.rank) if self.rank else (0, 0)
        if residual != wanted:
            raise SettingError("params", f"{expected}, with a residual of (3D, r) = {wanted}", residual)
        return params


def _aligned(k: Keys, context: Context) -> tuple[Keys, Context, Int64[Tensor, "B 1"] | None]:
    """Keys from the first visible one of each sequence on, with their mask, and where that is; None: at 0."""
    mask = context.key_mask
    if mask is None:
        return k, context, None
    first = first_visible(mask, 1)
    starts = first.places.masked_fill(~first.there, 0)
    place = torch.arange(mask.shape[1], device=mask.device) + starts
    there = place < mask.shape[1]
    seen = mask.gather(1, place.clamp_max(mask.shape[1] - 1)) & there
    return moved(k, starts), replace(context, key_mask=seen), starts


def _positions(q: Queries, context: Context, starts: Int64[Tensor, "B 1"] | None) -> Int64[Tensor, "#B R"]:
    """Those of all rows, counted from ``starts``."""
    first = context.query_start
    positions = torch.arange(first, first + q.shape[2], device=q.device)[None]
    return positions if starts is None else positions - starts


class _WithUnused(torch.autograd.Function):
    """The first tensor; the others get gradients of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *unused: Tensor) -> Tensor:
        ctx.save_for_backward(*unused)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(x) for x in ctx.saved_tensors)


def _in_groups(q: Queries, k: Keys) -> Float[Tensor, "B G M R D"]:
    """Queries, grouped by the head of keys that they share."""
    return torch.unflatten(q, 1, (k.shape[1], -1))
