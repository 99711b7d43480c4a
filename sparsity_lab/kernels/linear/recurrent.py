"""One decoding step of linear attention: S_t = S + K_t v_tᵀ, z_t = z + K_t, o_t = S_tᵀ Q_t / (<z_t, Q_t> + eps).

Q_t and K_t are the features of the new token's query and key. Sums of products, for the matrices of one row are too
small for matrix products to pay.

Shapes: B batch, H heads, D head size, E width of values, F features.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.kernels.linear.chunked import LinearCall
from sparsity_lab.kernels.linear.denominator import divisor

__all__ = ["recurrent_attention"]


def recurrent_attention(
    q: Float[Tensor, "B H 1 D"],
    k: Float[Tensor, "B H 1 D"],
    v: Float[Tensor, "B H 1 E"],
    key_mask: Bool[Tensor, "B 1"] | None,
    call: LinearCall,
    S: Float[Tensor, "B H F E"],
    z: Float[Tensor, "B H F"],
) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H F E"], Float[Tensor, "B H F"]]:
    """The row of the token after those whose sums are S and z, in the dtype of q, and the sums after it."""
    above, below = call.features.query(q.to(S.dtype), call.start)
    key_above, key_below = call.features.key(k.to(S.dtype), call.start)
    if key_mask is not None:
        key_above, key_below = (keys * key_mask[:, None, :, None] for keys in (key_above, key_below))
    S = torch.addcmul(S, key_above.mT, v.to(S.dtype))
    z = z + key_below.squeeze(2)
    total = divisor((below.squeeze(2) * z).sum(-1, keepdim=True), call.eps)
    out = (above.mT * S).sum(2) / total
    return out.unsqueeze(2).to(q.dtype), S, z
