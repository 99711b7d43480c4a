"""The best blocks of one row, the same as by float64 scores of all, at half the bytes.

All blocks are scored in float32, from a table in the order in which the product reads it. With F features f of the
query and t of the block, such a score ĝ = Σ_d f_d t_d is off by at most

    |ĝ - g| <= ε = (F + 16) 2^-24 Σ_parts ‖f‖ max_j ‖t_j‖

in whatever order it is summed (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1, with Cauchy and
Schwarz in each part, log n, mean, variance and box; 16 covers the rounding of f and t, that of norms, and that of g
to float32, which decides ties). So the k best ĝ are the k best g if the next one is more than 2 ε below them. Else,
with ĝ_(k) the k-th, only blocks with ĝ >= ĝ_(k) - 2 ε can be among the k best or tied with one, and these few are
scored again in float64.

Shapes: B batch, G heads of keys, n blocks, D head size, F features.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.kernels.adaptive.scores import ScoreWeights, corners
from sparsity_lab.kernels.adaptive.summaries import Summaries

__all__ = ["ScoreTable"]

SPARE = 8
"""How many blocks beside the k best may be within 2 ε of the k-th."""


class ScoreTable:
    """Summaries of blocks in float32, for the scores of one row.

    Attributes:
        columns: (B G, 4D, n), of each block mean, variance and box.
        log_count: (B, 1, n), log n_j; -inf for a block without keys.
        largest: (4,) max_j ‖t_j‖ of each part: mean, variance, and the two corners of the box.
        largest_count: max_j log n_j, at least 1.
    """

    def __init__(
        self, batch_size: int, num_heads: int, head_dim: int, num_blocks: int, *, device: torch.device | str
    ) -> None:
        self.columns = torch.zeros(batch_size * num_heads, 4 * head_dim, num_blocks, device=device)
        self.log_count = torch.zeros(batch_size, 1, num_blocks, device=device)
        self.largest = torch.zeros(4, device=device)
        self.largest_count = 1.0

    def write(self, first: int, summaries: Summaries) -> None:
        """Enter the summaries of blocks ``first`` and on."""
        rows = torch.cat([summaries.moments, summaries.box], dim=-1)
        blocks = slice(first, first + rows.shape[2])
        self.columns[..., blocks] = rows.flatten(0, 1).mT
        self.log_count[..., blocks] = summaries.log_count.unsqueeze(1)
        norms = torch.unflatten(rows, -1, (4, -1)).norm(dim=-1).flatten(0, 2).amax(0)
        self.largest = torch.maximum(self.largest, norms.float())
        self.largest_count = max(self.largest_count, float(summaries.log_count.max()))

    def best(
        self,
        q: Float[Tensor, "B G D"],
        weights: ScoreWeights,
        summaries: Summaries,
        candidates: range,
        count: int,
        *,
        masked: bool,
    ) -> Int64[Tensor, "B G count"] | None:
        """The ``count`` >= 1 best of these blocks, in any order: by g in float64, of those that are tied in float32
        the lower ones. None if more than ``count + SPARE`` would have to be scored again.

        Args:
            summaries: what was written, in float64.
            masked: whether blocks may differ in log n.
        """
        if len(candidates) <= count + SPARE:
            return None
        features = _features(q, weights)
        num_features = features.shape[-1]
        columns = self.columns[:, :num_features, candidates.start : candidates.stop]
        scores = torch.bmm(features.view(-1, 1, num_features), columns).view(*q.shape[:2], -1)
        if masked:
            scores += self.log_count[..., candidates.start : candidates.stop]
        ranked, block = scores.topk(count + SPARE, dim=-1)
        # 2 ε, with one more feature for log n, which stands beside a one.
        norms = torch.linalg.vector_norm(features.view(*q.shape[:2], -1, q.shape[2]), dim=-1)
        sizes = norms.mul_(self.largest[: norms.shape[-1]]).sum(-1).add_(self.largest_count)
        margin = sizes.mul_((num_features + 17) * 2.0**-23)
        kth = ranked[..., count - 1]
        # Where a score is not a number, or minus infinity, neither is more.
        if (kth - ranked[..., count] > margin).all():
            return block[..., :count] + candidates.start
        if not (kth - ranked[..., -1] > margin).all():
            return None
        block = block.sort(dim=-1).values + candidates.start
        exact = _scores_of(block, _features(q.double(), weights), summaries).float()
        return block.gather(-1, exact.sort(dim=-1, descending=True, stable=True).indices[..., :count])


def _features(q: Float[Tensor, "B G D"], weights: ScoreWeights) -> Float[Tensor, "B G F"]:
    """What stands beside moments and box in g; nothing for the box where it adds nothing."""
    if weights.query is not None:
        # In float64 and then rounded, as ε wants it: two products lie behind a feature.
        beside = weights.features(q[:, :, None, None])
        return torch.cat([x for x in beside if x is not None], dim=-1)[:, :, 0, 0].to(q.dtype)
    beta = tuple((variance, box) for variance, box in weights.beta.tolist())
    parts = [q, q.square()]
    if any(box for _, box in beta):
        parts.append(corners(q))
    return torch.cat(parts, dim=-1) * _coefficients(beta, q.shape[-1], q.dtype)


@lru_cache(maxsize=64)
def _coefficients(beta: tuple[tuple[float, float], ...], head_dim: int, dtype: torch.dtype) -> Float[Tensor, "G F"]:
    """s (1 - β₂), ½ s² β₁ and s β₂, each for its features."""
    scale = 1.0 / math.sqrt(head_dim)
    of_head = [[scale * (1.0 - box), 0.5 * scale**2 * variance, scale * box, scale * box] for variance, box in beta]
    parts = 4 if any(box for _, box in beta) else 2
    return torch.tensor(of_head, dtype=dtype)[:, :parts].repeat_interleave(head_dim, dim=1)


def _scores_of(
    block: Int64[Tensor, "B G m"], features: Float[Tensor, "B G F"], summaries: Summaries
) -> Float[Tensor, "B G m"]:
    """g of these blocks, in float64."""
    index = block.unsqueeze(-1).expand(-1, -1, -1, summaries.moments.shape[-1])
    rows = torch.cat([summaries.moments.gather(2, index), summaries.box.gather(2, index)], dim=-1)
    log_count = summaries.log_count.gather(1, block.flatten(1)).view(block.shape)
    return (rows[..., : features.shape[-1]] * features.unsqueeze(2)).sum(-1) + log_count
