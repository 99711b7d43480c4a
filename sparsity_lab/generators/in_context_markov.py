"""``InContextMarkov``: each sequence is a Markov chain with new random transitions, to be learned from its tokens.

This is the task of Edelman et al. (arXiv 2402.11004) with a uniform first token. The optimum counts. If n earlier
visits to the current state include n_b that were followed by b, the probability of the next token is

    P(b) = (n_b + alpha) / (n + S alpha)    with S states.

With two states, paths with equal numbers of stays in each state and of switches are equally likely. The number of
such paths is a product of two binomial coefficients, so the optimal loss at each position is a finite sum. For more
states no such sum is known, and the optimum's accuracy and loss are not declared.
"""

from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.query_layout import rows_of_chunks
from sparsity_lab.generators.stream import Floats, Ints, Stream, open_unit, whole
from sparsity_lab.generators.task import Draw, Step, Task, Truth
from sparsity_lab.settings import SettingError, register

_LONGEST, _LONGEST_SUM, _MOST_STATES = 4096, 512, 8  # the sum for the loss takes cubic time


@register
class InContextMarkov(Task):
    """``x_0 .. x_(l-1)`` with every next token scored, x_l included: T = l.

    x_0 is uniform. In each sequence the transitions from each state are independent and follow the symmetric
    Dirichlet law with parameter alpha. They are the same at all positions. A target depends on all tokens before it,
    so sources are not listed.

    Attributes:
        alpha: with 1, all transition probabilities are equally likely. A larger alpha makes them more equal.
        num_states: S, from 2 to 8. For 2 states and up to 512 tokens, the optimum's accuracy and loss are declared.
    """

    alpha: float = 1.0
    num_states: int = 2
    certified_lengths = (6, 40)

    @classmethod
    def examples(cls) -> "tuple[InContextMarkov, ...]":
        return cls(alpha=0.5), cls(num_states=4)

    def check(self) -> None:
        if not 0.01 <= self.alpha <= 1000:
            raise SettingError("alpha", "a number from 0.01 to 1000", self.alpha)
        if not 2 <= self.num_states <= _MOST_STATES:
            raise SettingError("num_states", f"from 2 to {_MOST_STATES}", self.num_states)

    def check_length(self, length: int) -> None:
        if not 1 <= length <= _LONGEST:
            raise SettingError("length", f"from 1 to {_LONGEST} for {self}", length)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(names=tuple(map(str, range(self.num_states))), roles=("data",) * self.num_states)

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length, start, count = self.checked_length(length), whole("start", start, 0), whole("count", count, 0)
        x, S = np.empty((count, length + 1), dtype=np.int64), self.num_states
        for rows, first in rows_of_chunks(start, count, length):
            size = rows.stop - rows.start
            passed = self._passed(
                stream.words("transitions", length, first, size, S * (S - 1)).reshape(size, S, S - 1)
            )
            unit = open_unit(stream.words("background", length, first, size, length + 1)).T.copy()
            # The next state at each step: it moves on by the number of bounds that the draw exceeds.
            following = np.empty((S, length + 1, size), dtype=np.int8)
            for state in range(S):
                steps = sum(unit >= passed[:, state, j] for j in range(S - 1))
                following[state] = (state + steps) % S
            chain, index = np.empty((length + 1, size), dtype=np.int8), np.arange(size)
            chain[0] = S - 1 - (unit[0] * S).astype(np.int8)
            for t in range(1, length + 1):
                chain[t] = following[chain[t - 1], t, index]
            x[rows] = chain.T
        whole_sequence = torch.from_numpy(x)
        tokens, targets = whole_sequence[:, :-1].contiguous(), whole_sequence[:, 1:].contiguous()
        return Batch(tokens, targets, vocabulary=self.vocabulary)

    def _passed(self, words: NDArray[np.uint64]) -> Floats:
        """(size, S, S - 1): for each state, the probability of moving on by at most j = 0 .. S - 2 states, by stick
        breaking."""
        left = np.arange(self.num_states - 1, 0, -1)
        share = open_unit(words)
        if self.alpha != 1 or self.num_states > 2:
            from scipy.special import betaincinv  # noqa: PLC0415

            share = betaincinv(self.alpha, self.alpha * left, share)
        rest = np.cumprod(1 - share, axis=2)
        share[:, :, 1:] *= rest[:, :, :-1]
        return np.asarray(share.cumsum(axis=2))

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        S = self.num_states
        levels: dict[str, Any] = {"bayes_accuracy": None, "bayes_loss": None}
        if S == 2 and length <= _LONGEST_SUM:
            accuracy, loss = _levels(self.alpha, length)
            levels = {"bayes_accuracy": float(accuracy.mean()), "bayes_loss": float(loss.mean())}
            levels["bayes_loss_by_slot"] = loss
        marginals = partial(np.full, (length, S), 1 / S)
        return Truth.of_uniform_labels(S, S, num_targets=length, build_marginals=marginals, **levels)

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        # The first token and the first step. Later steps depend on earlier ones.
        return {"values": Draw(tokens[:, :2])}

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        return tuple(Step(t) for t in range(len(tokens)))

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        tokens = batch.tokens.numpy()
        S = self.num_states
        if not ((tokens >= 0) & (tokens < S)).all():
            raise ValueError(f"expected sequences of {self}, got other tokens")
        posterior = np.empty((*tokens.shape, S))
        for state in range(S):
            at = tokens == state
            visits = _before(at[:, :-1])
            for following in range(S):
                followed = _before(at[:, :-1] & (tokens[:, 1:] == following))
                posterior[at, following] = ((followed + self.alpha) / (visits + S * self.alpha))[at]
        return torch.from_numpy(np.log(posterior))[batch.scored]


def _before(events: NDArray[np.bool_]) -> Ints:
    """(B, T) the number of (B, T - 1) events before each position."""
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
        # The number of ways to distribute the stays over visits, and the probability of each such path.
        logs = gammaln(stays + visits) - gammaln(stays + 1) - gammaln(visits)
        logs += betaln(stays + alpha, left + alpha) - betaln(alpha, alpha)
        weight = np.exp(logs.sum(axis=0))
        own, index = s % 2, np.arange(len(s))
        stay = (stays[own, index] + alpha) / (stays[own, index] + left[own, index] + 2 * alpha)
        accuracy[t] = weight @ np.maximum(stay, 1 - stay)
        loss[t] = weight @ (entr(stay) + entr(1 - stay))
    return accuracy, loss
