"""The setting of re-weighting after any kernel."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsity_lab.kernels.cache import KeyValueCache
from sparsity_lab.kernels.cached import CachedKernel
from sparsity_lab.kernels.context import Context
from sparsity_lab.kernels.counts import visible_counts
from sparsity_lab.kernels.kernel import Kernel
from sparsity_lab.kernels.reweighted.by_rows import weighted_rows
from sparsity_lab.kernels.reweighted.powers import amplification, check_power
from sparsity_lab.kernels.reweighted.reference import reweight
from sparsity_lab.kernels.reweighted.tiled import tiled_rows
from sparsity_lab.kernels.shifted_sparse import ShiftedSparse
from sparsity_lab.kernels.sliding_window import SlidingWindow
from sparsity_lab.kernels.sliding_window.reference import window_sees
from sparsity_lab.kernels.softmax import Softmax
from sparsity_lab.settings import SettingError, Shown, register

__all__ = ["Reweighted"]


@register
class Reweighted(Kernel):
    """The second stage of ``LSSAR`` after any kernel whose rows are weights of keys.

        w_ij = x_ij / Σ_j' x_ij'        x_ij = relu(n_i a_ij - o_i)^p

    where a are the base's weights, divided by their sum if that is not one, n_i is the number of keys that row i sees
    and o_i = 0 where n_i <= 3, else 1. A row whose a are all equal, but for
    rounding of weights of order one, keeps them. ``Reweighted(base=LSSA(), p=15)`` is
    ``LSSAR(p=15)``. Gao, Spratling, Gionfrida, arXiv 2501.13428, eq. 5; there after softmax and after sigmoid.

    ``"tiled"`` has a closed backward pass after softmax without a bias. After all others it asks the base for its
    reference weights in tiles of query rows: memory is linear in T, but time is that of a dense form, also after a
    window. The decoding state keeps all keys, un-rotated, since the base rotates them.

    Attributes:
        base: a kernel whose rows see all keys before them and weigh each of them, or ``SlidingWindow``.
        p: a number of at least 1, whole numbers up to 65 being fastest.
    """

    base: Kernel = Softmax()
    p: float = 15.0

    implementations = ("reference", "tiled")

    @classmethod
    def examples(cls) -> "tuple[Reweighted, ...]":
        return cls(), cls(base=SlidingWindow(width=6, sinks=2), p=3)

    def check(self) -> None:
        check_power("p", self.p)
        if isinstance(self.base, ShiftedSparse) or not isinstance(self.base, CachedKernel | SlidingWindow):
            expected = "a kernel whose rows weigh all keys before them, or SlidingWindow"
            raise SettingError("base", expected, Shown(self.base.kind))

    @property
    def positions(self) -> frozenset[str]:  # type: ignore[override]
        return self.base.positions

    @property
    def leaks(self) -> bool:
        return self.base.leaks

    @property
    def rounding(self) -> float:
        return amplification(self.p) * self.base.rounding

    def build(self, num_heads: int, head_dim: int, seed: int) -> nn.Module | None:
        """Those of the base."""
        return self.base.build(num_heads, head_dim, seed)

    def _init_state(
        self,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> KeyValueCache:
        return KeyValueCache(batch_size, num_heads, head_dim, capacity, dtype=dtype, device=device)

    def _attend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"], context: Context
    ) -> Float[Tensor, "B H T D"]:
        return self._rows(q, k, v, 0, context)

    def _weights(
        self, q_rows: Float[Tensor, "B H R D"], k: Float[Tensor, "B H T D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R T"]:
        return self._wide_weights(q_rows, k, query_start, context).to(q_rows.dtype)

    def _extend(
        self,
        q: Float[Tensor, "B H R D"],
        k: Float[Tensor, "B H R D"],
        v: Float[Tensor, "B H R D"],
        state: KeyValueCache,
        context: Context,
    ) -> Float[Tensor, "B H R D"]:
        start = state.length
        state.append(k, v, context.key_mask)
        return self._rows(q, state.keys, state.values, start, replace(context, key_mask=state.key_mask))

    def _rows(
        self,
        q: Float[Tensor, "B H R D"],
        k: Float[Tensor, "B H K D"],
        v: Float[Tensor, "B H K D"],
        query_start: int,
        context: Context,
    ) -> Float[Tensor, "B H R D"]:
        """The output of rows ``query_start`` and on; un-rotated rows come in."""
        if context.implementation == "reference":
            weights = self._wide_weights(q, k, query_start, context)
            return (weights @ v.to(weights.dtype)).to(q.dtype)
        if isinstance(self.base, Softmax) and not context.has_bias:
            wide = torch.promote_types(q.dtype, torch.float32)
            scaled = context.rotate(q.to(wide), query_start) / math.sqrt(q.shape[-1])
            keys = context.rotate(k.to(wide))
            out = tiled_rows(scaled, keys, v.to(wide), query_start, context, phi="exp", p=self.p, bound=math.inf)
            return out.to(q.dtype)

        def weights_of(q_rows: Tensor, keys: Tensor, start: int) -> Tensor:
            return self._wide_weights(q_rows, keys, start, context)

        return weighted_rows(q, k, v, query_start, context.causal, weights_of)

    def _wide_weights(
        self, q: Float[Tensor, "B H R D"], k: Float[Tensor, "B H K D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R K"]:
        """The reference weights, in float32 at least."""
        wide = torch.promote_types(q.dtype, torch.float32)
        mask = None if context.key_mask is None else context.key_mask[:, : k.shape[2]]
        context = replace(context, key_mask=mask)
        weights = self.base.weights(
            q.to(wide),
            k.to(wide),
            query_start=query_start,
            causal=context.causal,
            training=context.training,
            key_mask=mask,
            position=context.position,
            params=context.params,
        )
        total = weights.sum(-1, keepdim=True)
        counts = self._counts(q.shape[2], k.shape[2], query_start, context, q.device).to(wide)
        return reweight(weights / total.masked_fill(total == 0, 1.0), counts, self.p)

    def _counts(
        self, num_rows: int, num_keys: int, query_start: int, context: Context, device: torch.device
    ) -> Tensor:
        """(B or 1, 1, R, 1): n_i, at least 1."""
        if not isinstance(self.base, SlidingWindow):
            return visible_counts(query_start, num_rows, num_keys, context, device).unsqueeze(-1)
        rows = torch.arange(query_start, query_start + num_rows, device=device)
        keys = torch.arange(num_keys, device=device)
        sees = window_sees(rows, keys, width=self.base.width, sinks=self.base.sinks, causal=context.causal)[
            None, None
        ]
        if context.key_mask is not None:
            sees = sees & context.key_mask[:, None, None, :]
        return sees.sum(-1, keepdim=True).clamp_min(1)
