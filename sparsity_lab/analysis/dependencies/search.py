"""Small sets of far tokens that lower the loss on a target: two searches, and random sets for comparison.

*Greedy*: from the near tokens alone, show one far token more at a time, each time the one that lowers the loss most.
It finds tokens that help one by one and passes by those that help only together: of two bits whose parity is the
target, neither says anything alone.

*Elimination*: from all tokens, hide the far ones whose hiding raises the loss least, half of them at a time and in
the end one at a time. It finds tokens that are needed together and passes by those that stand in for each other: of
two copies of a token neither is missed alone.

Each gives an upper bound of the loss of the best k tokens, so the smaller of the two is one too.

Source: the greedy search is the lab procedure of sheet "sparse planted correlations" 5.8; elimination is the lab's
addition for rules such as parity.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsity_lab.analysis.dependencies.contexts import Contexts, Predictor, losses

Losses = Callable[[Bool[Tensor, "N n"], Int64[Tensor, "M 2"] | None], Float[Tensor, " M"]]


@dataclass(frozen=True)
class Nested:
    """Sets of 0, 1 .. K far tokens, each inside the next.

    Attributes:
        positions: (N, K), in the order in which they join; the first k are the set of k.
        loss: (N, K + 1), with the near tokens and the set of k.
    """

    positions: Int64[Tensor, "N K"]
    loss: Float[Tensor, "N sizes"]


@dataclass(frozen=True)
class Found:
    """What the searches found for the contexts of one length.

    Attributes:
        near: (N,) loss with the near tokens alone.
        full: (N,) loss with all tokens.
        greedy, elimination: their sets.
        random: (N, K + 1) mean loss over random sets of k.
    """

    near: Float[Tensor, " N"]
    full: Float[Tensor, " N"]
    greedy: Nested
    elimination: Nested
    random: Float[Tensor, "N sizes"]


def search(
    predict: Predictor,
    contexts: Contexts,
    near: int,
    largest: int,
    draws: int,
    batch_tokens: int,
    generator: torch.Generator,
) -> Found:
    """Search the far tokens of every context, all but the last ``near``.

    Args:
        largest: K; at most the number of far tokens.
        draws: random sets of each size.
    """
    count, n = contexts.tokens.shape
    visible = (torch.arange(n) >= n - near).expand(count, -1)
    everything = torch.ones_like(visible)

    def loss_of(shown: Bool[Tensor, "N n"], changed: Int64[Tensor, "M 2"] | None = None) -> Float[Tensor, " M"]:
        return losses(predict, contexts, shown, batch_tokens, changed)

    with_near, with_all = loss_of(visible), loss_of(everything)
    drawn = [_random(loss_of, visible, with_near, largest, generator) for _ in range(draws)]
    return Found(
        near=with_near,
        full=with_all,
        greedy=_greedy(loss_of, visible, with_near, largest),
        elimination=_elimination(loss_of, visible, with_near, with_all, largest),
        random=torch.stack(drawn).mean(0),
    )


def _greedy(loss_of: Losses, near: Tensor, with_near: Tensor, largest: int) -> Nested:
    visible, positions, loss = near.clone(), [], [with_near]
    for _ in range(largest):
        trial = _tried(loss_of, visible, ~visible)
        best = trial.min(1)
        visible[torch.arange(len(visible)), best.indices] = True
        positions.append(best.indices)
        loss.append(best.values)
    return Nested(torch.stack(positions, 1), torch.stack(loss, 1))


def _elimination(loss_of: Losses, near: Tensor, with_near: Tensor, with_all: Tensor, largest: int) -> Nested:
    visible, rows = torch.ones_like(near), torch.arange(len(near))[:, None]
    remaining, dropped, loss = int((~near)[0].sum()), [], [with_all]
    while remaining > 1:
        trial = _tried(loss_of, visible, visible & ~near)
        if remaining > largest:
            removed = remaining - max(largest, remaining // 2)
            least = trial.argsort(dim=1, stable=True)[:, :removed]
            visible[rows, least] = False
            remaining -= removed
            if remaining == largest:
                loss = [loss_of(visible, None)]
        else:
            best = trial.min(1)
            visible[rows[:, 0], best.indices] = False
            dropped.append(best.indices)
            loss.append(best.values)
            remaining -= 1
    dropped.append((visible & ~near).int().argmax(1))
    loss.append(with_near)
    return Nested(torch.stack(dropped[::-1], 1), torch.stack(loss[::-1], 1))


def _tried(loss_of: Losses, visible: Tensor, candidates: Tensor) -> Float[Tensor, "N n"]:
    """Loss with the visibility of each candidate turned over; infinite for the others."""
    changed = candidates.nonzero()
    trial = torch.full(candidates.shape, torch.inf, dtype=torch.float64)
    trial[candidates] = loss_of(visible, changed)
    return trial


def _random(
    loss_of: Losses, near: Tensor, with_near: Tensor, largest: int, generator: torch.Generator
) -> Float[Tensor, "N sizes"]:
    words = torch.rand(near.shape, generator=generator).masked_fill(near, torch.inf)
    order = words.argsort(dim=1)[:, :largest]
    visible, loss = near.clone(), [with_near]
    for step in range(largest):
        visible[torch.arange(len(near)), order[:, step]] = True
        loss.append(loss_of(visible, None))
    return torch.stack(loss, 1)
