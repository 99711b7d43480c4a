"""Softmax attention with a scale for each row: w_ij = softmax_j(c_i <q_i, k_j> / sqrt(D) + bias_ij).

The scale c_i multiplies only the product of query and key; a bias is added unscaled. Folded into the query, q'_i =
c_i q_i, it leaves plain softmax attention, so that any form of softmax runs it.

n_i is the number of keys that row i sees, including its own: i + 1 in a causal row without padding, never the length
of the sequence. So a row does not depend on later tokens.
"""

import math
from abc import abstractmethod

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import CachedKernel
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.kernels.parts.unit_rows import unit_rows
from sparsity_lab.kernels.softmax import fused_attention, is_one_call, softmax_weights
from sparsity_lab.settings import SettingError, Shown, check_least, register


def scaled_rows(q: Queries, scale: Float[Tensor, "#B #H R"]) -> Queries:
    """c_i q_i, in float32 at least."""
    return q.to(torch.promote_types(q.dtype, torch.float32)) * scale.unsqueeze(-1)


class ScaledSoftmax(CachedKernel):
    """Base: w_ij = softmax_j(c_i <q_i, k_j> / sqrt(D) + bias_ij), where a subclass says what c_i is.

    ``"fused"`` is PyTorch's fused kernel on queries that carry the scale; a position rotates queries and keys, or
    adds its bias, which is not scaled.
    """

    implementations = ("reference", "fused")

    @abstractmethod
    def _scale(self, counts: Int64[Tensor, "#B 1 R"], q: Queries, context: Context) -> Float[Tensor, "#B #H R"]:
        """c_i of each row, where ``counts`` is n_i; in float32 at least."""

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        scale = self._scale(context.counts(q, k), q, context)
        return softmax_weights(scaled_rows(q, scale), k, *context.visible_and_bias(q, k))

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        scale, most = self._scale(context.counts(q, k), q, context), 1.0
        if q.dtype == torch.float16 and scale.numel():
            # A scaled query may leave float16. The kernel, which computes in float32, takes the largest scale, or on
            # an accelerator, where a look at it would wait, all rows in float32.
            if profile_of(q.device).asynchronous:
                return fused_attention(scaled_rows(q, scale), k.float(), v.float(), context).to(q.dtype)
            most = max(most, float(scale.detach().abs().max()))
        return fused_attention(scaled_rows(q, scale / most).to(q.dtype), k, v, context, factor=most)

    def _traceable(self, q: Queries, k: Keys, context: Context) -> bool:
        return is_one_call(q, k, context) and q.dtype != torch.float16


@register
class LogNSoftmax(ScaledSoftmax):
    """Softmax attention with logits times log n_i: w_ij = softmax_j(log(n_i) u_ij), u = <q, k> / sqrt(D).

    After Chiang and Cholak (arXiv 2202.12172), where n is the length of the sequence; here it is the number of keys
    that the row sees.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> LogNSoftmax().weights(q, k).sum(-1).allclose(torch.ones(()))
    True
    """

    def _scale(self, counts: Int64[Tensor, "#B 1 R"], q: Queries, context: Context) -> Float[Tensor, "#B 1 R"]:
        return _log(counts, q)


@register
class EntropyInvariantSoftmax(ScaledSoftmax):
    """Softmax attention with logits times log n_i to the base of the trained length m: softmax_j(log_m(n_i) u_ij).

    At n_i = m it is plain softmax. After Su Jianlin's note of 2021 on entropy-invariant attention.

    Attributes:
        trained_length: m, at least 2.
    """

    trained_length: int = 512

    def check(self) -> None:
        check_least(2, trained_length=self.trained_length)

    def _scale(self, counts: Int64[Tensor, "#B 1 R"], q: Queries, context: Context) -> Float[Tensor, "#B 1 R"]:
        return _log(counts, q) / math.log(self.trained_length)


class SSMaxScale(nn.Module):
    """The learned scale s of each head.

    Attributes:
        scale: (H,).
    """

    def __init__(self, num_heads: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((num_heads,), initial))


@register
class SSMax(ScaledSoftmax):
    """Scalable softmax: w_ij = softmax_j(s_h log(n_i) u_ij) with a learned s for each head h.

    After Nakanishi (arXiv 2501.19399). What ``build`` gives is needed as ``params``.

    >>> SSMax().build(2, 8, seed=0).scale
    Parameter containing:
    tensor([0.4300, 0.4300], requires_grad=True)

    Attributes:
        initial: s before training. The default is the value of the source's first figure; it makes s log n = 1, plain
            softmax, at n = 10.
    """

    initial: float = 0.43

    def check(self) -> None:
        if not math.isfinite(self.initial):
            raise SettingError("initial", "a finite number", self.initial)

    def build(self, num_heads: int, head_dim: int, seed: int) -> SSMaxScale:
        return SSMaxScale(num_heads, self.initial)

    def _check_call(self, q: Queries, k: Keys, context: Context) -> None:
        params = context.params
        if not isinstance(params, SSMaxScale):
            raise SettingError("params", "the module that SSMax.build returns", Shown(type(params).__name__))
        if len(params.scale) != q.shape[1]:
            raise SettingError("params", f"a scale for each of {q.shape[1]} heads", len(params.scale))

    def _scale(self, counts: Int64[Tensor, "#B 1 R"], q: Queries, context: Context) -> Float[Tensor, "#B H R"]:
        assert isinstance(context.params, SSMaxScale)
        return context.params.scale[:, None] * _log(counts, q)


@register
class CosineSoftmax(ScaledSoftmax):
    """Softmax of cosines: w_ij = softmax_j(c_i <q_i / ||q_i||, k_j / ||k_j||>) with c_i = log(D) log(n_i).

    It is softplus attention (LSSA) with exp in place of softplus. The norms of queries and keys do not matter, and a
    zero row has cosine 0. A position's rotation keeps norms; its bias is added to c_i times the cosine, which lies
    in [-c_i, c_i].

    Attributes:
        log_n: whether c_i grows with n_i; if not, every row has the c of ``trained_length``.
        trained_length: m of the constant scale log(D) log(m), at least 2; without effect where ``log_n``.
    """

    log_n: bool = True
    trained_length: int = 1024

    @classmethod
    def examples(cls) -> "tuple[CosineSoftmax, ...]":
        return cls(), cls(log_n=False, trained_length=20)

    def check(self) -> None:
        check_least(2, trained_length=self.trained_length)

    def _scale(self, counts: Int64[Tensor, "#B 1 R"], q: Queries, context: Context) -> Float[Tensor, "#B 1 R"]:
        length = counts if self.log_n else torch.full_like(counts, self.trained_length)
        head_dim = q.shape[-1]
        # Softmax divides by sqrt(D), which has no place here.
        return math.sqrt(head_dim) * math.log(head_dim) * _log(length, q)

    def _prepare(self, q: Queries, k: Keys, context: Context, key_start: int = 0) -> tuple[Queries, Keys]:
        # Rotation keeps norms, so rows are normalized first, and a cache holds keys of norm one.
        return super()._prepare(unit_rows(q), unit_rows(k), context, key_start)


def _log(counts: Int64[Tensor, "#B 1 R"], q: Queries) -> Float[Tensor, "#B 1 R"]:
    """log n_i in float32, or in float64 for float64 rows."""
    return counts.to(torch.promote_types(q.dtype, torch.float32)).log()
