"""The causal product of linear attention, o_t = Σ_{i<=t} <Q_t, K_i> U_i, chunk by chunk, without a T x T matrix.

Inside a chunk the C x C products are formed; what lies before it enters through the sum S = Σ_i K_i U_iᵀ, which is
carried from chunk to chunk.

Shapes: N sequences (batch and heads) of n chunks each of C rows, F features, E value columns. Rows are
(N n, C, features or columns) with the chunks of a sequence side by side; sums are (N, F, E).
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["causal_product", "causal_product_gradient"]


def causal_product(
    Q: Float[Tensor, "chunks C F"],
    K: Float[Tensor, "chunks C F"],
    U: Float[Tensor, "chunks C E"],
    S: Float[Tensor, "N F E"],
) -> tuple[Float[Tensor, "chunks C E"], Float[Tensor, "N F E"]]:
    """o = Q S + tril(Q Kᵀ) U of each chunk, and the sum after the last.

    Args:
        S: the sum before the first chunk.
    """
    before, after = _running_sums(K, U, S)
    return torch.bmm(Q, before).baddbmm_(_lower(Q, K), U), after


def causal_product_gradient(
    Q: Float[Tensor, "chunks C F"],
    K: Float[Tensor, "chunks C F"],
    U: Float[Tensor, "chunks C E"],
    S: Float[Tensor, "N F E"],
    dO: Float[Tensor, "chunks C E"],
    R: Float[Tensor, "N F E"],
) -> tuple[
    Float[Tensor, "chunks C F"], Float[Tensor, "chunks C F"], Float[Tensor, "chunks C E"], Float[Tensor, "N F E"]
]:
    """Gradients of Q, K, U and S:

        dQ = dO Sᵀ + tril(dO Uᵀ) K        dK = U Rᵀ + tril(dO Uᵀ)ᵀ Q        dU = K R + tril(Q Kᵀ)ᵀ dO

    of each chunk, where S is the sum before it, and R, the gradient of the sum after it, is Σ_i Q_i dO_iᵀ over all
    later rows.

    Args:
        S: the sum before the first chunk.
        dO: the gradient of the rows.
        R: the gradient of the sum after the last chunk.
    """
    before, _ = _running_sums(K, U, S)
    after, dS = _running_sums(Q, dO, R, backwards=True)
    G = _lower(dO, U)
    dQ = torch.bmm(dO, before.mT).baddbmm_(G, K)
    dK = torch.bmm(U, after.mT).baddbmm_(G.mT, Q)
    dU = torch.bmm(K, after).baddbmm_(_lower(Q, K).mT, dO)
    return dQ, dK, dU, dS


def _lower(Q: Float[Tensor, "chunks C F"], K: Float[Tensor, "chunks C F"]) -> Float[Tensor, "chunks C C"]:
    return torch.bmm(Q, K.mT).tril_()


def _running_sums(
    K: Float[Tensor, "chunks C F"],
    U: Float[Tensor, "chunks C E"],
    S: Float[Tensor, "N F E"],
    backwards: bool = False,
) -> tuple[Float[Tensor, "chunks F E"], Float[Tensor, "N F E"]]:
    """S plus the sum Σ_i K_i U_iᵀ over all rows before each chunk, and over all rows; ``backwards``: after each."""
    own = torch.bmm(K.mT, U).view(len(S), -1, *S.shape[1:])
    order = list(range(own.shape[1]))
    if backwards:
        order.reverse()
    sums = torch.empty_like(own)
    sums[:, order[0]] = S
    for i, following in pairwise(order):
        torch.add(sums[:, i], own[:, i], out=sums[:, following])
    return sums.flatten(0, 1), sums[:, order[-1]] + own[:, order[-1]]
