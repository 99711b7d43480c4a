"""Softplus attention: LSSA, and LSSAR with re-weighting.

LSSA, eq. 4 of Gao, Spratling, Gionfrida, arXiv 2501.13428:

    s_ij = log(D) log(n_i) <q_i / ||q_i||, k_j / ||k_j||>
    f_ij = softplus(s_ij) = log(1 + exp(s_ij)) where row i sees key j, else 0
    a_ij = f_ij / Σ_j' f_ij'

LSSAR, eq. 5, sharpens such weights, or those of any kernel, by a threshold and a power:

    x_ij = relu(n_i a_ij - o_i)^p        w_ij = x_ij / Σ_j' x_ij'

D is the head size. n_i is the number of keys that row i sees, including its own: i + 1 in a causal row without
padding, never the length of the sequence. o_i is 0 where n_i <= 3, else 1: a key of a longer row survives if its
weight exceeds 1 / n_i.

There is no epsilon. Before the power, a row is divided by its largest entry. This leaves w unchanged and keeps the
power in range: the largest entry is then 1, so the sum is at least 1. Where all weights of a row are equal, 0 / 0 in
the formula, the row keeps its weights.

Computed in float32 at least. Queries and keys come rotated, which does not change their norms.

The fast form goes in tiles of query rows, in memory linear in T. Rows f_ij = φ(s_ij) are normalized and perhaps
re-weighted. Let μ_i be the mean of f_ij over the n_i keys that row i sees. With a_ij = f_ij / (n_i μ_i), n_i cancels:

    without p:   w_ij = f_ij / Z_i,       Z_i = Σ_j f_ij
    with p:      w_ij = r_ij^p / G_i,     r_ij = relu(f_ij - o_i μ_i) / (max_j f_ij - o_i μ_i),   G_i = Σ_j r_ij^p

With p, a tile holds all keys of its rows, so its scores are computed once for both passes. The first pass takes the
mean and maximum, the second the powers. The backward pass computes the scores again. With g_i the gradient of row i
divided by Z_i or G_i, D_i = <g_i, out_i>, and p_i = p / (max_j f_ij - o_i μ_i),

    without p:   A_ij = <g_i, v_j> - D_i                        df_ij = A_ij
    with p:      A_ij = r_ij^(p-1) (<g_i, v_j> - D_i)           df_ij = p_i (A_ij - (o_i / n_i) Σ_j' A_ij')
    ds_ij = φ'(s_ij) df_ij          dv_j = Σ_i w_ij dout_i = Σ_i r_ij^p g_i

A tile is stored key by key, (keys, rows). Three of its products with (rows, D) and (keys, D) then find their operands
in the right layout, which saves a seventh of the time of all seven.

The second term of df is the gradient of μ_i. It reaches every key that the row sees, clipped ones too. A row of equal
f (see above) is treated as p = 1 and o = 0, which gives it the weights f_ij / Z_i.

Small whole exponents go by multiplication, which is many times faster than ``pow``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from sparsity_lab.kernels.cache import KeyValueCache
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.kernel import CachedKernel
from sparsity_lab.kernels.lssar.native import native_rows
from sparsity_lab.kernels.operator import is_watched
from sparsity_lab.kernels.parts.backward import own_backward
from sparsity_lab.kernels.parts.compiler import COMPILER, check_native
from sparsity_lab.kernels.parts.profile import profile_of
from sparsity_lab.kernels.parts.unit_rows import scaled_unit_rows, unit_rows
from sparsity_lab.settings import SettingError, Shown, is_registered, register

# --- the formulas, dense


def softplus_scores(q: Queries, k: Keys, counts: Float[Tensor, "#B 1 R 1"]) -> Weights:
    """(B, H, R, K) scores s, float32 or float64. A zero query or key has scores 0.

    Args:
        counts: n_i, at least 1.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = math.log(q.shape[-1]) * counts.log()
    return scale * unit_rows(q.to(wide)) @ unit_rows(k.to(wide)).mT


def softplus_weights(
    q: Queries, k: Keys, visible: Bool[Tensor, "#B 1 R K"], counts: Float[Tensor, "#B 1 R 1"]
) -> Weights:
    """(B, H, R, K) weights a, float32 or float64: rows sum to one, or to zero where no key is seen."""
    scores = softplus_scores(q, k, counts)
    # The mask multiplies f: before the scale, at n = 1, it would be 0 * -inf.
    f = torch.logaddexp(scores, torch.zeros_like(scores)).masked_fill(~visible, 0.0)
    total = f.sum(-1, keepdim=True)
    return f / total.masked_fill(total == 0, 1.0)


UNSHIFTED_KEYS = 3
"""Rows that see so many keys have no threshold. With one, two keys would always give a one-hot row."""

EQUAL = 1e-6
"""Weights count as equal if the largest exceeds their mean by no more than this part of it."""


def thresholds(counts: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """o_i of rows that see n_i = ``counts`` keys."""
    return (counts > UNSHIFTED_KEYS).to(counts.dtype)


def reweight(weights: Weights, counts: Float[Tensor, "#B 1 R 1"], p: float) -> Weights:
    """(B, H, R, K) weights w of rows whose weights a sum to one, or are zero where no key is seen.

    Args:
        weights: a; zero on keys that are not seen.
        counts: n_i, at least 1.
        p: at least 1.
    """
    excess = torch.relu(counts * weights - thresholds(counts))
    # A factor of a row changes neither w nor its gradient.
    largest = excess.detach().amax(-1, keepdim=True)
    equal = largest <= EQUAL
    powers = (excess / largest.masked_fill(equal, 1.0)) ** p
    total = powers.sum(-1, keepdim=True).masked_fill(equal, 1.0)
    return torch.where(equal, weights, powers / total)


def check_power(name: str, p: float | None) -> None:
    """Refuse p < 1, where the slope at the threshold is infinite."""
    if p is not None and p < 1:
        raise SettingError(name, "a number of at least 1", p)


def amplification(p: float) -> float:
    """How many times the power amplifies relative errors of weights, in outputs and gradients."""
    # Below 2 the slope jumps at the threshold, or rises steeply from it.
    return p if p >= 2 else 10.0


# --- the fast form


_LOG2_E = math.log2(math.e)
"""Scores of a tile come in units of log 2, since exp2 is several times faster than exp on a CPU."""
_LINEAR = 40.0
"""Beyond, softplus(x) is x to the last digit of float64."""

_MOST_MULTIPLIED = 64
"""Whole exponents up to here take at most a dozen multiplications."""

TiledPhi = Literal["softplus", "exp"]


def tiled_rows(
    q: Queries, k: Keys, v: Values, context: Context, *, phi: TiledPhi, p: float | None, bound: float
) -> Outputs:
    """(B, H, R, E) output. Computed in the dtype of q, float32 or float64.

    Args:
        q, k: their products are the scores s.
        p: at least 1; None: no re-weighting.
        bound: no softplus score is larger, in absolute value.
    """
    batch_size, num_heads, num_rows, _ = q.shape
    num_keys, start = k.shape[2], context.query_start
    counts = context.counts(q, k).to(q.dtype)
    counts = counts.expand(batch_size, num_heads, num_rows).flatten(0, 1).unsqueeze(1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    hidden = documents = None
    if context.key_mask is not None:
        hidden = q.new_zeros(batch_size, num_keys).masked_fill_(~context.key_mask[:, :num_keys], -math.inf)
        hidden = hidden.repeat_interleave(num_heads, dim=0).unsqueeze(-1)
    if context.document_ids is not None:
        ids = context.document_ids.repeat_interleave(num_heads, dim=0)
        documents = ids[:, None, start : start + num_rows], ids[:, :num_keys, None]
    rows = _RowForm(phi, p, bound, start if context.causal else None, counts, hidden, documents)
    if torch.is_grad_enabled():
        out: Tensor = _TiledRows.apply(q, k, v, rows)  # type: ignore[no-untyped-call]
    else:
        out, _ = _forward(q * _LOG2_E, k, v, rows)  # a decoding step feels each call
    return out.view(batch_size, num_heads, num_rows, v.shape[2])


class _Tile(NamedTuple):
    """Query rows and keys of some heads. Heads of all sequences lie on one axis, N.

    Attributes:
        of_rows: the tile's part of (N, R, D); rows count from the first that is given.
        of_keys: the tile's part of (N, T, D).
        of_numbers: the tile's part of (N, 1, R), a number of each row.
        later: (last keys, rows), -inf where a key comes after the row, else 0; None where no key does.
        buffers: (heads, keys, rows) each, without meaning yet.
    """

    of_rows: tuple[slice, slice]
    of_keys: tuple[slice, slice]
    of_numbers: tuple[slice, slice, slice]
    later: Tensor | None
    buffers: list[Tensor]


@dataclass(frozen=True)
class _RowForm:
    """What the rows are; N axes as in ``_Tile``.

    Attributes:
        phi, p, bound: as in ``tiled_rows``.
        causal_start: the position of the first row; None where rows see all keys.
        counts: (N, 1, R), n_i.
        hidden: (N, T, 1), -inf on masked keys, else 0; None where there are none.
        documents: (N, 1, R) of rows and (N, T, 1) of keys; None where there is one document.
    """

    phi: TiledPhi
    p: float | None
    bound: float
    causal_start: int | None
    counts: Tensor
    hidden: Tensor | None
    documents: tuple[Tensor, Tensor] | None

    def tiles(self, q: Tensor, num_keys: int, num_buffers: int) -> Iterator[_Tile]:
        """All tiles, on the same memory one after another."""
        (num_heads, num_rows, _), profile = q.shape, profile_of(q.device)
        # Powers need a row's mean and maximum before they can begin.
        most_rows, tile_keys = profile.softplus_rows, num_keys
        if self.p is not None:
            most_rows = profile.power_rows // (1 if num_keys <= profile.power_keys else 2)
        tile_rows = min(profile.rows(most_rows, num_heads * num_keys * q.itemsize), num_rows)
        if self.p is None:
            tile_keys = min(num_keys, profile.softplus_keys * max(1, profile.softplus_rows // tile_rows))
        # The products of a tile run over heads in parallel.
        most_heads = max(torch.get_num_threads(), profile.heads_entries // (tile_rows * tile_keys))
        tile_heads = max(1, min(num_heads, most_heads))  # or there is no sequence
        memory = q.new_empty(num_buffers, tile_heads * tile_rows * tile_keys)
        later = q.new_full((tile_rows, tile_rows), -math.inf).tril_(-1) if tile_rows > 1 else None
        for rows in _ranges(num_rows, tile_rows):
            first = None if self.causal_start is None else self.causal_start + rows.start
            seen = num_keys if self.causal_start is None else self.causal_start + rows.stop
            for heads in _ranges(num_heads, tile_heads):
                for keys in _ranges(seen, tile_keys):
                    hidden = None
                    if later is not None and first is not None and keys.stop > first:
                        # All rows of the tile see the keys before its first row.
                        hidden = later[max(keys.start - first, 0) : keys.stop - first, : rows.stop - rows.start]
                    shape = heads.stop - heads.start, keys.stop - keys.start, rows.stop - rows.start
                    buffers = [line[: math.prod(shape)].view(shape) for line in memory]
                    yield _Tile((heads, rows), (heads, keys), (heads, slice(None), rows), hidden, buffers)

    def scores(self, q: Tensor, k: Tensor, tile: _Tile, out: Tensor) -> None:
        """The products of q and k, -inf where a key is not seen: every φ makes that 0, in value and in slope."""
        if out.shape[2] > 1:
            torch.bmm(k[tile.of_keys], q[tile.of_rows].mT, out=out)
        else:
            # The product of a matrix with one column is many times slower than that of one row with a matrix.
            torch.bmm(q[tile.of_rows], k[tile.of_keys].mT, out=out.mT)
        if tile.later is not None:
            out[:, -len(tile.later) :] += tile.later
        if self.hidden is not None:
            out += self.hidden[tile.of_keys]
        if self.documents is not None:
            of_rows, of_keys = self.documents
            out.masked_fill_(of_rows[tile.of_numbers] != of_keys[tile.of_keys], -math.inf)

    def values(self, scores: Tensor) -> Tensor:
        """f, in place; of exp but for a factor of the row, which changes no weight."""
        if self.phi == "exp":
            largest = scores.amax(1, keepdim=True)
            return scores.sub_(largest.masked_fill_(largest == -math.inf, 0.0)).exp2_()
        if self._within_range(scores):
            return scores.exp2_().log1p_()
        return scores.copy_(softplus(scores.div_(_LOG2_E), threshold=_LINEAR))

    def values_and_slopes(self, scores: Tensor, slopes: Tensor, spare: Tensor) -> None:
        """f in place of the scores, and φ'(s); the contents of ``spare`` are lost."""
        if self.phi == "exp":
            slopes.copy_(self.values(scores))
        elif self._within_range(scores):
            torch.exp2(scores, out=slopes)
            torch.log1p(slopes, out=scores)
            slopes.div_(torch.add(slopes, 1.0, out=spare))
        else:
            torch.sigmoid(torch.div(scores, _LOG2_E, out=spare), out=slopes)
            self.values(scores)

    def _within_range(self, scores: Tensor) -> bool:
        """Whether exp(s) is finite."""
        return self.bound < 0.99 * math.log(torch.finfo(scores.dtype).max)


def _ranges(stop: int, size: int) -> Iterator[slice]:
    for start in range(0, stop, size):
        yield slice(start, min(start + size, stop))


class _Statistics(NamedTuple):
    """What the powers need to know of each row, (heads, 1, rows).

    Attributes:
        mean: o_i μ_i.
        inverse: 1 / (max_j f_ij - o_i μ_i).
        equal: whether the row's f are all equal; then o_i counts as 0.
    """

    mean: Tensor
    inverse: Tensor
    equal: Tensor

    def of(self, tile: _Tile) -> "_Statistics":
        """Those of the tile's rows."""
        return _Statistics(*(x[tile.of_numbers] for x in self))

    def gain(self, p: float) -> Tensor:
        """p_i."""
        return self.inverse * torch.where(self.equal, 1.0, p)

    def share(self, counts: Tensor) -> Tensor:
        """o_i / n_i."""
        return (thresholds(counts) / counts).masked_fill_(self.equal, 0.0)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, rows: _RowForm, statistics: _Statistics | None = None
) -> tuple[Tensor, Tensor]:
    """The output, and Z_i or G_i of all rows.

    Args:
        q: times log2(e).
        statistics: filled with those of the rows, where there are powers.
    """
    out, norms = v.new_zeros(*q.shape[:2], v.shape[2]), torch.zeros_like(rows.counts)
    for tile in rows.tiles(q, k.shape[1], 1 if rows.p is None else 3):
        y, *spare = tile.buffers
        rows.scores(q, k, tile, y)
        rows.values(y)
        if rows.p is not None:
            of_tile = _statistics(y, rows.counts[tile.of_numbers])
            for numbers, part in zip(statistics or (), of_tile, strict=statistics is not None):
                numbers[tile.of_numbers] = part
            y, _ = _powers(y, of_tile, rows.p, (spare[0], spare[1]))
        norms[tile.of_numbers] += y.sum(1, keepdim=True)
        out[tile.of_rows] += torch.bmm(y.mT, v[tile.of_keys])
    norms.masked_fill_(norms == 0, 1.0)  # or a row sees no key
    return out.div_(norms.mT), norms


class _TiledRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: _RowForm) -> Tensor:
        q = q * _LOG2_E
        means, inverses = torch.zeros_like(rows.counts), torch.zeros_like(rows.counts)
        statistics = _Statistics(means, inverses, torch.zeros_like(rows.counts, dtype=torch.bool))
        out, norms = _forward(q, k, v, rows, statistics)
        ctx.save_for_backward(q, k, v, out, norms, *statistics)
        ctx.rows = rows
        return out

    @staticmethod
    @own_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, norms, *numbers = ctx.saved_tensors
        rows: _RowForm = ctx.rows
        statistics = _Statistics(*numbers)
        grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        g = grad / norms.mT
        D = (g * out).sum(-1).unsqueeze(1)
        # p_i: not tiles are multiplied by it, but rows of queries and of their gradients.
        gain = torch.ones_like(D).mT if rows.p is None else statistics.gain(rows.p).mT
        share = statistics.share(rows.counts)
        for tile in rows.tiles(q, k.shape[1], 3 if rows.p is None else 4):
            y, slopes, *spare = tile.buffers
            rows.scores(q, k, tile, y)
            rows.values_and_slopes(y, slopes, spare[0])
            if rows.p is not None:
                y, power_slopes = _powers(y, statistics.of(tile), rows.p, (spare[0], spare[1]))
            g_rows = g[tile.of_rows]
            grad_v[tile.of_keys].baddbmm_(y, g_rows)
            A = torch.bmm(v[tile.of_keys], g_rows.mT, out=y).sub_(D[tile.of_numbers])
            if rows.p is not None:
                A.mul_(power_slopes)
                A -= A.sum(1, keepdim=True) * share[tile.of_numbers]
            ds = A.mul_(slopes)
            grad_q[tile.of_rows] += torch.bmm(ds.mT, k[tile.of_keys])
            grad_k[tile.of_keys].baddbmm_(ds, q[tile.of_rows] * gain[tile.of_rows])
        return grad_q.mul_(gain), grad_k.div_(_LOG2_E), grad_v, None


def _statistics(f: Tensor, counts: Tensor) -> _Statistics:
    mean = f.sum(1, keepdim=True) / counts * thresholds(counts)
    largest = f.amax(1, keepdim=True)
    none = largest < torch.finfo(f.dtype).tiny  # a row that sees no key
    equal = (largest - mean <= EQUAL * mean) | none
    mean.masked_fill_(equal, 0.0)
    return _Statistics(mean, (largest - mean).masked_fill_(none, 1.0).reciprocal_(), equal)


def _powers(f: Tensor, statistics: _Statistics, p: float, spare: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """r^p and r^(p-1) of a tile, in its memory; r and 1 in rows whose f are all equal."""
    mean, inverse, equal = statistics
    r = f.sub_(mean).mul_(inverse).relu_()
    if not profile_of(f.device).asynchronous and not equal.any():
        return power_and_slope(r, p, spare)
    plain = r.clone()
    y, slope = power_and_slope(r, p, spare)
    return torch.where(equal, plain, y, out=y), slope.masked_fill_(equal, 1.0)


def power_and_slope(r: Tensor, p: float, spare: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """r^p and r^(p-1), for r >= 0 and p >= 1; 0^0 is 0, the slope of relu at zero.

    The results lie in r and the two spare tensors, whose contents are lost; the third of them is free.
    """
    if p == 1:
        return r, torch.sign(r, out=spare[0])
    if p == 2:
        return torch.mul(r, r, out=spare[0]), r
    slope = _power(r, p - 1, spare)
    return r.mul_(slope), slope


def _power(r: Tensor, exponent: float, spare: tuple[Tensor, Tensor]) -> Tensor:
    """r^exponent in one of the spare tensors; r is kept. The exponent is positive and not 1."""
    if not exponent.is_integer() or exponent > _MOST_MULTIPLIED:
        return torch.pow(r, exponent, out=spare[0])
    free = list(spare)
    bits, square = int(exponent), r
    product: Tensor | None = None
    while True:
        if bits & 1:
            if product is None:
                product = square
            else:
                product = torch.mul(product, square, out=free.pop() if product is r else product)
        bits >>= 1
        if product is not None and not bits:
            return product
        # r is kept, and a product must not change with the square that it is.
        square = torch.mul(square, square, out=free.pop() if square is r or square is product else square)


# --- the classes


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
