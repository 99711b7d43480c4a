"""What trains the block score: its divergence from where dense attention lies."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels.adaptive.sampled_rows import SampledRows
from sparsity_lab.kernels.adaptive.scores import block_scores, log_importance
from sparsity_lab.kernels.adaptive.selector import Selector

__all__ = ["selector_loss"]


def selector_loss(
    sample: SampledRows,
    selector: Selector,
    pooling: Literal["sum", "max"],
    over: Literal["all", "selected"],
) -> Float[Tensor, ""]:
    """L_sel = mean over sampled rows and heads of keys of Σ_{j in Ω_t} a_tj (log a_tj - log π_tj), in nats.

    The target a is the block mass of dense attention over complete past blocks. Queries, keys and target are
    detached: a gradient reaches the score's weights alone. Rows without such blocks, and padding, do not count.

    Args:
        selector: its weights get the gradient.
        over: ``"selected"`` restricts target and prediction to the blocks that the row keeps. A block that is never
            selected then never gets a signal.
    """
    kept = sample.codes > 0
    domain = sample.past & kept if over == "selected" else sample.past.expand_as(kept)
    with torch.no_grad():
        target = sample.target(domain, pooling)
    scores = block_scores(sample.q, selector.summaries.first(kept.shape[-1]), selector.weights)
    importance = log_importance(scores, sample.past)
    counts = domain.any(-1) & sample.real.unsqueeze(1)
    # A row that does not count gets harmless numbers before its logarithms, so that no NaN enters the gradient.
    importance = importance.masked_fill(~domain, -math.inf).masked_fill(~counts.unsqueeze(-1), 0.0)
    log_share = importance.log_softmax(-1).masked_fill(~domain, 0.0)
    divergence = (torch.xlogy(target, target) - target * log_share).sum(-1)
    return divergence.masked_fill(~counts, 0.0).sum() / counts.sum().clamp_min(1)
