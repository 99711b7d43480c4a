"""The denominator of linear attention, n_t = <Q_t, Σ_{i<=t} K_i>: running sums of features, no products of rows.

Shapes: as in ``product``: N sequences of n chunks of C rows, F features. Rows are (N n, C, F), sums (N, F).
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["causal_total", "causal_total_gradient", "divisor"]


def causal_total(
    Q: Float[Tensor, "chunks C F"], K: Float[Tensor, "chunks C F"], z: Float[Tensor, "N F"]
) -> tuple[Float[Tensor, "chunks C 1"], Float[Tensor, "N F"]]:
    """<Q_t, z_t> with z_t = z + Σ_{i<=t} K_i, and the sum after the last row.

    Args:
        z: the sum before the first row.
    """
    running, after = _running(K, z)
    return running.mul_(Q).sum(-1, keepdim=True), after


def causal_total_gradient(
    Q: Float[Tensor, "chunks C F"],
    K: Float[Tensor, "chunks C F"],
    z: Float[Tensor, "N F"],
    dn: Float[Tensor, "chunks C 1"],
    dz: Float[Tensor, "N F"],
) -> tuple[Float[Tensor, "chunks C F"], Float[Tensor, "chunks C F"], Float[Tensor, "N F"]]:
    """Gradients of Q, K and z: dQ_t = dn_t z_t, and dK_t = dz + Σ_{i>=t} dn_i Q_i.

    Args:
        dn: the gradient of the totals.
        dz: the gradient of the sum after the last row.
    """
    running, _ = _running(K, z)
    later, before = _running(_backwards(dn * Q, len(z)), dz)
    return running.mul_(dn), _backwards(later, len(z)), before


def divisor(total: Tensor, eps: float) -> Tensor:
    """What rows are divided by, n_t + eps; a row of nothing over nothing is nothing."""
    total = total + eps
    return total.masked_fill(total == 0, 1.0)


def _backwards(x: Float[Tensor, "chunks C F"], num_sequences: int) -> Float[Tensor, "chunks C F"]:
    return x.view(num_sequences, -1, x.shape[-1]).flip(1).view_as(x)


def _running(K: Float[Tensor, "chunks C F"], z: Float[Tensor, "N F"]) -> tuple[Tensor, Float[Tensor, "N F"]]:
    """z plus the sum of the rows up to each, (N n, C, F), and up to the last."""
    inside = K.cumsum(1)
    ends = inside[:, -1].view(len(z), -1, z.shape[-1])
    sums = torch.cat([z[:, None], ends], dim=1).cumsum(1)
    return inside.add_(sums[:, :-1].flatten(0, 1)[:, None]), sums[:, -1]
