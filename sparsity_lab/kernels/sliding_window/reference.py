"""Which keys a row sees through a sliding window: softmax attention on the first few keys and the last few.

With width w and s sinks, row i sees key j if j < s or i - w < j, and j <= i; without ``causal`` if j < s or
|i - j| < w. Sinks: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453.
"""

from jaxtyping import Bool, Int64
from torch import Tensor

__all__ = ["window_sees"]


def window_sees(
    rows: Int64[Tensor, " R"], keys: Int64[Tensor, " K"], *, width: int, sinks: int, causal: bool
) -> Bool[Tensor, "R K"]:
    """(R, K): True where the row at position i sees the key at position j."""
    i, j = rows[:, None], keys[None, :]
    sees = (j < sinks) | ((i - j).abs() < width)
    return sees & (j <= i) if causal else sees
