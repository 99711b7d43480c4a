"""A gradient from the output to the weights of the score, through a selection that has none.

The unnormalized weights of a kept candidate block j, one that is not always kept, are multiplied by
w = 1 + π_tj - stopgrad(π_tj). That is one, so the forward pass is what it was, to the last bit; backward,

    ∂L/∂π_tj = Σ_h Σ_{i in j} P̂_ti <∂L/∂o_t, v_i - o_t>

over the query heads that share the selection. From π it goes on to the weights of the score, and no further:
queries and keys are detached there.

Shapes: B batch, G heads of keys, M query heads that share one, R query rows, K keys, n blocks, D head size, P pairs
of a row and a block.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsity_lab.kernels.adaptive.gather import ListedRows
from sparsity_lab.kernels.adaptive.scores import ScoreWeights, block_shares, complete_past
from sparsity_lab.kernels.adaptive.selection import SELECTED
from sparsity_lab.kernels.adaptive.selector import Selector
from sparsity_lab.kernels.softmax import softmax_weights

__all__ = ["listed_gates", "row_gates", "with_gates"]


def row_gates(
    q: Float[Tensor, "B G M R D"],
    positions: Int64[Tensor, "#B R"],
    codes: UInt8[Tensor, "B G R n"],
    selector: Selector,
) -> Float[Tensor, "B G R n"]:
    """log w = log(1 + π - stopgrad(π)), zeros, for blocks that these rows keep as candidates."""
    shares = _shares(q, positions, codes.shape[-1], selector).masked_fill(codes < SELECTED, 0.0)
    return (shares - shares.detach()).log1p()


def with_gates(
    out: Float[Tensor, "F M R D"],
    q: Float[Tensor, "F M R D"],
    k: Float[Tensor, "F 1 K D"],
    v: Float[Tensor, "F 1 K D"],
    mask: Bool[Tensor, "F 1 R K"],
    gates: Float[Tensor, "F R K"],
) -> Float[Tensor, "F M R D"]:
    """The very same output, through which a gradient reaches the gates of tokens too."""
    result: Tensor = _Gated.apply(out, q.detach(), k.detach(), v.detach(), mask, gates)  # type: ignore[no-untyped-call]
    return result


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, gates: Tensor) -> Tensor:
        ctx.save_for_backward(out, q, k, v, mask)
        ctx.dtype = gates.dtype
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, q, k, v, mask = ctx.saved_tensors
        weights = softmax_weights(q, k.expand(-1, q.shape[1], -1, -1), mask)
        slope = weights * (grad @ v.mT - (grad * out).sum(-1, keepdim=True))
        return grad, None, None, None, None, slope.sum(1).to(ctx.dtype)


def listed_gates(q: Float[Tensor, "B G M R D"], listed: list[ListedRows], selector: Selector) -> Float[Tensor, " P"]:
    """log w of all pairs, one list after the other. A list's π is computed in the backward pass alone, so that no
    table of all rows and blocks is kept."""
    weights = selector.weights.beta, selector.weights.query, selector.weights.key
    gates: Tensor = _ListedGates.apply(q.detach(), listed, selector, *weights)  # type: ignore[no-untyped-call]
    return gates


class _ListedGates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, listed: list[ListedRows], selector: Selector, *weights: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, *weights)
        ctx.listed, ctx.selector = listed, selector
        return q.new_zeros(sum(len(part.row) for part in listed))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, beta, *residual = ctx.saved_tensors
        query, key = (None if x is None else x.detach().requires_grad_() for x in residual)
        selector = replace(ctx.selector, weights=ScoreWeights(beta.detach().requires_grad_(), query, key))
        wanted = selector.weights.learned
        totals = [torch.zeros_like(leaf) for leaf in wanted]
        sizes = [len(part.row) for part in ctx.listed]
        for part, slopes in zip(ctx.listed, torch.split(grad, sizes), strict=True):
            of_rows = q[:, :, :, part.rows]
            positions = torch.arange(part.start, part.start + of_rows.shape[3], device=q.device)[None]
            rule = selector.rule
            own = (part.start + part.row) // rule.block_size
            candidate = (part.block >= rule.n_sink) & (part.block + rule.n_local <= own)
            num_blocks = int(positions[0, -1]) // rule.block_size + 1
            with torch.enable_grad():
                shares = _shares(of_rows, positions, num_blocks, selector)
            table = torch.zeros_like(shares).flatten(0, 1)
            table[part.head, part.row, part.block] = slopes.to(table.dtype) * candidate
            found = torch.autograd.grad(shares, wanted, table.view_as(shares))
            totals = [total + addend for total, addend in zip(totals, found, strict=True)]
        return None, None, None, *totals, *[None] * (3 - len(totals))


def _shares(
    q: Float[Tensor, "B G M R D"], positions: Int64[Tensor, "#B R"], num_blocks: int, selector: Selector
) -> Float[Tensor, "B G R n"]:
    """π of the first blocks."""
    summaries = selector.summaries.first(num_blocks)
    past = complete_past(summaries, positions, selector.rule.block_size)
    return block_shares(q, summaries, selector.weights, past)
