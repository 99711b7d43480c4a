"""``InContextMarkov``: a Markov chain whose transitions each sequence draws anew, to be learned from its own tokens.

The binary task of Edelman et al. (arXiv 2402.11004), here from a fair first token. Of n earlier visits to the current
state, s of which were followed by the same state again, the optimum makes it

    P(stay) = (s + alpha) / (n + 2 alpha).

Paths with given numbers of stays in each state and of switches between them are equally likely. Their number is a
product of two binomial coefficients, so the optimal loss at each position is a finite sum.
"""

from functools import cached_property, lru_cache, partial
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.query_layout import rows_of_chunks
from sparsity_lab.generators.stream import Stream, open_unit, whole
from sparsity_lab.generators.task import Draw, Step, Task, Truth
from sparsity_lab.settings import SettingError, register

__all__ = ["InContextMarkov"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LONGEST = 512  # the loss is a sum of the cube of it


@register
class InContextMarkov(Task):
    """``x_0 .. x_(l-1)`` with every next token scored, x_l included: T = l.

    x_0 is fair. In each sequence the probabilities to stay in 0 and in 1 are independent, with the law
    Beta(alpha, alpha), and the same at all places. A target depends on all tokens before it; sources are not listed.

    Attributes:
        alpha: 1 makes the transitions uniform; the larger, the nearer to fair coins.
    """

    extra_positions: ClassVar[int] = 0

    alpha: float = 1.0

    @classmethod
    def examples(cls) -> "tuple[InContextMarkov, ...]":
        return (cls(alpha=0.5),)

    def check(self) -> None:
        if not 0.01 <= self.alpha <= 1000:
            raise SettingError("alpha", "a number from 0.01 to 1000", self.alpha)

    def check_length(self, length: int) -> None:
        if not 1 <= length <= _LONGEST:
            raise SettingError("length", f"from 1 to {_LONGEST} for {self}", length)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(names=("0", "1"), roles=("data", "data"))

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return 6, 40

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length, start, count = self.checked_length(length), whole("start", start, 0), whole("count", count, 0)
        x = np.empty((count, length + 1), dtype=np.int64)
        for rows, first in rows_of_chunks(start, count, length):
            size = rows.stop - rows.start
            stay = self._transitions(open_unit(stream.words("transitions", length, first, size, 2)))
            unit = open_unit(stream.words("background", length, first, size, length + 1)).T.copy()
            chain = np.empty((length + 1, size), dtype=bool)
            chain[0] = unit[0] < 0.5
            from_zero, from_one = unit >= stay[:, 0], unit < stay[:, 1]
            for t in range(1, length + 1):
                chain[t] = np.where(chain[t - 1], from_one[t], from_zero[t])
            x[rows] = chain.T
        whole_sequence = torch.from_numpy(x)
        tokens, targets = whole_sequence[:, :-1].contiguous(), whole_sequence[:, 1:].contiguous()
        return Batch(tokens, targets, vocabulary=self.vocabulary)

    def _transitions(self, unit: Floats) -> Floats:
        if self.alpha == 1:
            return unit
        from scipy.special import betaincinv  # noqa: PLC0415

        return np.asarray(betaincinv(self.alpha, self.alpha, unit))

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        accuracy, loss = _levels(self.alpha, length)
        fair = np.array([0.5, 0.5])
        return Truth(
            num_targets=length,
            chance_accuracy=0.5,
            chance_loss=float(np.log(2)),
            bayes_accuracy=float(accuracy.mean()),
            bayes_loss=float(loss.mean()),
            bayes_loss_by_slot=loss,
            labels=(0, 1),
            label_distribution=fair,
            build_marginals=partial(np.full, (length, 2), 0.5),
        )

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        # The first token and the first step; later steps depend on those before.
        return {"values": Draw(tokens[:, :2])}

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        return tuple(Step(t) for t in range(len(tokens)))

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens = batch.tokens.numpy()
        if not ((tokens == 0) | (tokens == 1)).all():
            raise ValueError(f"expected sequences of {self}, got other tokens")
        now, following = tokens[:, :-1], tokens[:, 1:]
        posterior = np.empty((*tokens.shape, 2))
        for state in (0, 1):
            stays = _before((now == state) & (following == state))
            visits = _before(now == state)
            stay = (stays + self.alpha) / (visits + 2 * self.alpha)
            here = tokens == state
            posterior[here, state], posterior[here, 1 - state] = stay[here], 1 - stay[here]
        return torch.from_numpy(np.log(posterior))[batch.scored]


def _before(events: NDArray[np.bool_]) -> Ints:
    """(B, T) how many of (B, T - 1) events there were before each place."""
    return np.pad(events.cumsum(axis=1), ((0, 0), (1, 0)))


@lru_cache(maxsize=32)
def _levels(alpha: float, length: int) -> tuple[Floats, Floats]:
    """(length,) the optimum's accuracy and loss at each place.

    After t steps from 0 with s switches, m stays are in 0 and the rest in 1. State 0 was entered s // 2 + 1 times and
    state 1 (s + 1) // 2 times; they were left (s + 1) // 2 and s // 2 times.
    """
    from scipy.special import betaln, entr, gammaln  # noqa: PLC0415

    accuracy, loss = np.empty(length), np.empty(length)
    for t in range(length):
        s, m = (one.reshape(-1) for one in np.meshgrid(np.arange(t + 1), np.arange(t + 1), indexing="ij"))
        rest = t - s - m
        visits_of_one = (s + 1) // 2
        possible = (rest >= 0) & ((visits_of_one > 0) | (rest == 0))
        s, m, rest, visits_of_one = s[possible], m[possible], rest[possible], visits_of_one[possible]
        stays, left = np.stack([m, rest]), np.stack([(s + 1) // 2, s // 2])
        visits = np.stack([s // 2 + 1, np.maximum(visits_of_one, 1)])
        # How the stays are shared out among visits, and the probability of each such path.
        logs = gammaln(stays + visits) - gammaln(stays + 1) - gammaln(visits)
        logs += betaln(stays + alpha, left + alpha) - betaln(alpha, alpha)
        weight = np.exp(logs.sum(axis=0))
        own, index = s % 2, np.arange(len(s))
        stay = (stays[own, index] + alpha) / (stays[own, index] + left[own, index] + 2 * alpha)
        accuracy[t] = weight @ np.maximum(stay, 1 - stay)
        loss[t] = weight @ (entr(stay) + entr(1 - stay))
    return accuracy, loss
