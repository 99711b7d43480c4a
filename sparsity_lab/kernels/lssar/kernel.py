"""Softplus attention: LSSA, and LSSAR with re-weighting."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels.cache import KeyValueCache
from sparsity_lab.kernels.cached import CachedKernel
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.lssar.fast import tiled_rows
from sparsity_lab.kernels.lssar.formula import amplification, check_power, reweight, softplus_weights
from sparsity_lab.kernels.lssar.native import native_rows
from sparsity_lab.kernels.operator import is_watched
from sparsity_lab.kernels.parts.compiler import COMPILER, check_native
from sparsity_lab.kernels.parts.unit_rows import scaled_unit_rows
from sparsity_lab.settings import SettingError, Shown, is_registered, register


class SoftplusKernel(CachedKernel):
    """Base: a subclass says by which power weights are re-weighted.

    ``"tiled"`` computes tiles of query rows, and again in the backward pass, which has a closed form. ``"native"`` is
    the same in C++: on a CPU, in float32 at most, where there is a compiler.

    A position rotates queries and keys. A bias is refused: the source defines none, and scores that stay below
    log(D) log(n_i) are what the mechanism is about.
    """

    implementations = ("reference", *(("native",) if COMPILER else ()), "tiled")
    positions = frozenset({"rotate"})

    def _power(self, context: Context) -> float | None:
        """The p of the second stage; None without one."""
        return None

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        counts = _counts(q, k, context)
        weights, p = softplus_weights(q, k, context.visible(q, k), counts), self._power(context)
        return weights if p is None else reweight(weights, counts, p)

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        return self._on_unit_keys(q, _unit(k), v, context)

    def _check_implementation(self, implementation: str, q: Queries) -> None:
        if implementation != "native":
            return
        check_native(q)
        if is_watched(q) and not is_registered(type(self)):
            expected = "a registered class under torch.compile, torch.func or on the meta device, for 'native'"
            raise SettingError("implementation", expected, Shown(type(self).__name__))

    def _on_unit_keys(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        """``_fast`` where keys have norm one already."""
        wide = torch.promote_types(q.dtype, torch.float32)
        scale = math.log(q.shape[-1]) * _counts(q, k, context).log()
        rows = scaled_unit_rows(q.to(wide), scale), k.to(wide), v.to(wide)
        if context.implementation == "native":
            return native_rows(*rows, context, self._power(context)).to(q.dtype)
        bound = math.log(q.shape[-1]) * math.log(k.shape[2])
        return tiled_rows(*rows, context, phi="softplus", p=self._power(context), bound=bound).to(q.dtype)

    def _extend(self, q: Queries, k: Keys, v: Values, state: KeyValueCache, context: Context) -> Outputs:
        if k.dtype != torch.float32:
            # In 16 bits keys of norm one would be rounded once more, which a power of 15 shows.
            return super()._extend(q, k, v, state, context)
        # The cache holds keys of norm one, so that a step does not normalize them all again.
        q, k = self._prepare(q, k, context, context.query_start)
        state.append(_unit(k), v, context.key_mask)
        return self._on_unit_keys(q, state.keys, state.values, replace(context, key_mask=state.key_mask))


@register
class LSSA(SoftplusKernel):
    """Length-scaled softplus attention (LSSA): softplus of scaled cosines, divided by the row's sum.

        w_ij = f_ij / Σ_j' f_ij'        f = softplus(s)        s_ij = log(D) log(n_i) <q_i / ||q_i||, k_j / ||k_j||>

    over the n_i keys that row i sees. Gao, Spratling, Gionfrida, arXiv 2501.13428, eq. 4.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> LSSA().weights(q, k).sum(-1).allclose(torch.ones(()))
    True
    """


@register
class LSSAR(SoftplusKernel):
    """Re-weighted softplus attention (LSSAR): what of an ``LSSA`` weight exceeds the mean, to the power p.

    With the weights a of ``LSSA`` and o_i = 0 where n_i <= 3, else 1,

        w_ij = x_ij / Σ_j' x_ij'        x_ij = relu(n_i a_ij - o_i)^p

    A row whose a are all equal keeps them. The source reports p = 3 and 15, and 15 as the better one at lengths
    beyond the trained. Gao, Spratling, Gionfrida, arXiv 2501.13428, eq. 5.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> LSSAR(p=3).weights(q, k).shape
    torch.Size([1, 2, 8, 8])

    Attributes:
        p: a number of at least 1, whole numbers up to 65 being fastest; None trains without re-weighting.
        test_p: p at inference (``training=False``); None takes that of training.
    """

    p: float | None = 15.0
    test_p: float | None = None

    @classmethod
    def examples(cls) -> "tuple[LSSAR, ...]":
        return cls(), cls(p=None, test_p=2.5), cls(p=1, test_p=3)

    @classmethod
    def benchmarked(cls) -> "tuple[LSSAR, ...]":
        return cls(), cls(p=3)

    def check(self) -> None:
        check_power("p", self.p)
        check_power("test_p", self.test_p)

    @property
    def rounding(self) -> float:
        return max((amplification(p) for p in (self.p, self.test_p) if p is not None), default=1.0)

    def _power(self, context: Context) -> float | None:
        return self.p if context.training or self.test_p is None else self.test_p


def _unit(x: Keys) -> Keys:
    """Rows of norm one, in float32 at least; zero rows stay zero."""
    return scaled_unit_rows(x.to(torch.promote_types(x.dtype, torch.float32)))


def _counts(q: Queries, k: Keys, context: Context) -> Float[Tensor, "#B 1 R 1"]:
    """n_i of these rows, in float32 at least."""
    return context.counts(q, k).to(torch.promote_types(q.dtype, torch.float32)).unsqueeze(-1)
