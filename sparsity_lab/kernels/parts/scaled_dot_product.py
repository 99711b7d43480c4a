"""PyTorch's fused kernel, for values of any width."""

import math

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


def scaled_dot_product(
    q: Float[Tensor, "B H R D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K E"],
    *,
    mask: Float[Tensor, "#B #H R K"] | Bool[Tensor, "#B #H R K"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "B H R E"]:
    """``torch.nn.functional.scaled_dot_product_attention``. Its fused forms want values as wide as keys, so the
    narrower of the two get columns of zeros, which change nothing.

    Args:
        scale: of the scores, before a mask of numbers; None is 1 / sqrt(D).
    """
    more = v.shape[-1] - q.shape[-1]
    if not more:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    width, scale = v.shape[-1], 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if more > 0:
        q, k = pad(q, (0, more)), pad(k, (0, more))
    else:
        v = pad(v, (0, -more))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)[..., :width]
