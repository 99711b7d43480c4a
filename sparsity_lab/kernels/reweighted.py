"""The second stage of LSSAR after any kernel that can be asked for its weights.

After softmax there is a closed form, that of LSSAR. After all others the rows go in tiles, in memory linear in T: a
tile's weights are the base's formula, made again in the backward pass instead of being kept.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import CachedKernel, Kernel
from sparsity_lab.kernels.lssar.kernel import amplification, check_power, reweight, tiled_rows
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.kernels.sliding_window import SlidingWindow
from sparsity_lab.kernels.softmax import Softmax
from sparsity_lab.settings import SettingError, Shown, register


def weighted_rows(
    q: Queries, k: Keys, v: Values, context: Context, weights: Callable[[Queries, Keys, Context], Weights]
) -> Outputs:
    """(B, H, R, E): weights times values, in the dtype of q.

    Args:
        weights: of query rows, and the keys up to their last, all without ``causal``; the context says where the rows
            begin.
    """

    def output(q_rows: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        w = weights(q_rows, keys, context.at(start))
        return (w @ values.to(w.dtype)).to(q_rows.dtype)

    tiles, profile = [], profile_of(q.device)
    size = profile.rows(profile.weighted_rows, math.prod(q.shape[:2]) * k.shape[2] * 4)
    for first in range(0, q.shape[2], size):
        q_rows = q[:, :, first : first + size]
        start = context.query_start + first
        seen = start + q_rows.shape[2] if context.causal else k.shape[2]
        # Nothing random runs inside, so the global generator is left alone.
        tiles.append(
            checkpoint(
                output, q_rows, k[:, :, :seen], v[:, :, :seen], start, use_reentrant=False, preserve_rng_state=False
            )
        )
    return torch.cat(tiles, dim=2)


@register
class Reweighted(CachedKernel):
    """The second stage of ``LSSAR`` after any kernel whose rows are weights of keys.

        w_ij = x_ij / Σ_j' x_ij'        x_ij = relu(n_i a_ij - o_i)^p

    where a are the base's weights, divided by their sum if that is not one. n_i is the number of keys that row i
    sees. o_i = 0 where n_i <= 3, else 1. A row whose a are all equal, but for rounding of weights of order one, keeps
    them. ``Reweighted(base=LSSA(), p=15)`` is ``LSSAR(p=15)``. Gao, Spratling, Gionfrida, arXiv 2501.13428, eq. 5;
    there after softmax and after sigmoid.

    ``"tiled"`` has a closed backward pass after softmax without a bias. For all other bases it uses the base's
    reference weights in tiles of query rows. Memory is linear in T, but time is that of a dense form. This also holds
    for a window, whose decoding state keeps all keys here.

    Attributes:
        base: a kernel whose rows weigh keys that are known beforehand: all before them, or those of a
            ``SlidingWindow``.
        p: a number of at least 1, whole numbers up to 65 being fastest.
    """

    version = 2

    base: Kernel = Softmax()
    p: float = 15.0

    implementations = ("reference", "tiled")
    reweightable = False

    @classmethod
    def examples(cls) -> "tuple[Reweighted, ...]":
        return cls(), cls(base=SlidingWindow(width=6, sinks=2), p=3)

    def check(self) -> None:
        check_power("p", self.p)
        if not self.base.reweightable or self.base.gates:
            expected = "a kernel whose queries attend to all earlier keys, or SlidingWindow"
            raise SettingError("base", expected, Shown(self.base.kind))

    @property
    def positions(self) -> frozenset[str]:
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

    def _check_call(self, q: Queries, k: Keys, context: Context) -> None:
        self.base._check_call(q, k, replace(context, implementation=self.base.implementations[0]))

    def _prepare(self, q: Queries, k: Keys, context: Context, key_start: int = 0) -> tuple[Queries, Keys]:
        return self.base._prepare(q, k, context, key_start)

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        weights = self.base._weights(q, k, context)
        total = weights.sum(-1, keepdim=True)
        counts = self.base._key_counts(q, k, context).unsqueeze(-1).to(weights.dtype)
        return reweight(weights / total.masked_fill(total == 0, 1.0), counts, self.p)

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        if not isinstance(self.base, Softmax) or context.has_bias:
            return weighted_rows(q, k, v, context, self._weights)
        wide = torch.promote_types(q.dtype, torch.float32)
        rows = q.to(wide) / math.sqrt(q.shape[-1]), k.to(wide), v.to(wide)
        return tiled_rows(*rows, context, phi="exp", p=self.p, bound=math.inf).to(q.dtype)
