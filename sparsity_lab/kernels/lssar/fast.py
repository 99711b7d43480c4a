"""Rows f_ij = φ(s_ij), normalized and perhaps re-weighted, in tiles of query rows, in memory linear in T.

Let μ_i be the mean of f_ij over the n_i keys that row i sees. With a_ij = f_ij / (n_i μ_i), n_i cancels:

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
f (see ``formula``) is treated as p = 1 and o = 0, which gives it the weights f_ij / Z_i.


Small whole exponents go by multiplication, which is many times faster than ``pow``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values
from sparsity_lab.kernels.lssar.formula import EQUAL, thresholds
from sparsity_lab.kernels.parts.backward import own_backward
from sparsity_lab.kernels.parts.profile import profile_of

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
