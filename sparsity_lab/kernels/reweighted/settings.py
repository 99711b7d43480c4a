"""The setting of re-weighting after any kernel."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsity_lab.kernels.cached import CachedKernel
from sparsity_lab.kernels.context import Context
from sparsity_lab.kernels.kernel import Kernel
from sparsity_lab.kernels.reweighted.by_rows import weighted_rows
from sparsity_lab.kernels.reweighted.powers import amplification, check_power
from sparsity_lab.kernels.reweighted.reference import reweight
from sparsity_lab.kernels.reweighted.tiled import tiled_rows
from sparsity_lab.kernels.sliding_window import SlidingWindow
from sparsity_lab.kernels.softmax import Softmax
from sparsity_lab.kernels.weighing import WeighingKernel
from sparsity_lab.settings import SettingError, Shown, register

__all__ = ["Reweighted"]


@register
class Reweighted(CachedKernel):
    """The second stage of ``LSSAR`` after any kernel whose rows are weights of keys.

        w_ij = x_ij / Σ_j' x_ij'        x_ij = relu(n_i a_ij - o_i)^p

    where a are the base's weights, divided by their sum if that is not one, n_i is the number of keys that row i sees
    and o_i = 0 where n_i <= 3, else 1. A row whose a are all equal, but for rounding of weights of order one, keeps
    them. ``Reweighted(base=LSSA(), p=15)`` is ``LSSAR(p=15)``. Gao, Spratling, Gionfrida, arXiv 2501.13428, eq. 5;
    there after softmax and after sigmoid.

    ``"tiled"`` has a closed backward pass after softmax without a bias. After all others it asks the base for its
    reference weights in tiles of query rows: memory is linear in T, but time is that of a dense form, also after a
    window, whose decoding state keeps all keys here.

    Attributes:
        base: a kernel whose rows weigh keys that are known beforehand: all before them, or those of a
            ``SlidingWindow``.
        p: a number of at least 1, whole numbers up to 65 being fastest.
    """

    base: Kernel = Softmax()
    p: float = 15.0

    implementations = ("reference", "tiled")
    reweightable = False

    @classmethod
    def examples(cls) -> "tuple[Reweighted, ...]":
        return cls(), cls(base=SlidingWindow(width=6, sinks=2), p=3)

    def check(self) -> None:
        check_power("p", self.p)
        if not isinstance(self.base, WeighingKernel) or not self.base.reweightable:
            expected = "a kernel whose rows weigh all keys before them, or SlidingWindow"
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

    def _check_call(self, q: Float[Tensor, "B H R D"], k: Float[Tensor, "B H T D"], context: Context) -> None:
        self.base._check_call(q, k, context)

    def _rows(
        self,
        q: Float[Tensor, "B H R D"],
        k: Float[Tensor, "B H K D"],
        v: Float[Tensor, "B H K D"],
        query_start: int,
        context: Context,
    ) -> Float[Tensor, "B H R D"]:
        if context.implementation == "reference":
            weights = self._row_weights(q, k, query_start, context)
            return (weights @ v.to(weights.dtype)).to(q.dtype)
        if isinstance(self.base, Softmax) and not context.has_bias:
            wide = torch.promote_types(q.dtype, torch.float32)
            scaled = q.to(wide) / math.sqrt(q.shape[-1])
            rows = scaled, k.to(wide), v.to(wide)
            out = tiled_rows(*rows, query_start, context, phi="exp", p=self.p, bound=math.inf)
            return out.to(q.dtype)

        def weights_of(q_rows: Tensor, keys: Tensor, start: int) -> Tensor:
            return self._row_weights(q_rows, keys, start, context)

        return weighted_rows(q, k, v, query_start, context.causal, weights_of)

    def _row_weights(
        self, q: Float[Tensor, "B H R D"], k: Float[Tensor, "B H K D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R K"]:
        assert isinstance(self.base, WeighingKernel)
        weights = self.base._row_weights(q, k, query_start, context)
        total = weights.sum(-1, keepdim=True)
        counts = self.base._key_counts(query_start, q.shape[2], k.shape[2], context, q.device)
        wide = counts.unsqueeze(-1).to(weights.dtype)
        return reweight(weights / total.masked_fill(total == 0, 1.0), wide, self.p)
