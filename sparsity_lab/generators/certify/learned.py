"""A learned attacker: a small network that guesses which of two is real, on sequences it was not trained on.

The declarations make both sides of some exchanges equally likely. Two sequences exchange choices that are declared
independent, or a target is exchanged for one redrawn from the exact predictor. Then each guess is right with
probability one half, whatever the network has learned, so the test is exact binomial. This also holds for the pairs
on which the network is most confident, because its confidence does not change if a pair is reversed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sparsity_lab.generators.certify.draws import Choices, choices_of, columns
from sparsity_lab.generators.certify.findings import Finding, proportion, spread
from sparsity_lab.generators.certify.predictions import Predictions
from sparsity_lab.generators.certify.sequences import DrawnSequences
from sparsity_lab.generators.stream import Ints

_WIDTH = 64
_BATCH = 512  # pairs
_RATE = 1e-2
_SUREST = (1, 4, 16, 64)  # of all pairs, of a quarter of them, and so on
_FEWEST = 200  # pairs
_MOST_SLOTS = 8
_LISTED = 256  # values of a choice; larger choices are given by their lowest bits and their size
_OF = "share of pairs told apart, beyond half"


def learned(sample: DrawnSequences) -> Iterator[Finding]:
    """A network trained on half of the sequences is at chance on the other half. It can tell neither sequences with
    exchanged choices from real ones, nor targets from labels redrawn from the exact predictor."""
    if sample.steps == 0:
        return
    choices = choices_of(sample)
    slots = [sample.slots[j] for j in spread(len(sample.slots), _MOST_SLOTS)]
    labels = [slot.label_index for slot in slots if sample.truth.labels and len(slot.rows) == len(sample.tokens)]
    if labels and choices.free.any():
        # The values are left out, because a target shows which of them was asked for.
        seen = choices.only(choices.free).beside(Choices.of(np.stack(labels, axis=1), "targets", free=False))
        yield from _exchanged(sample, seen, seen.free, "what must tell nothing of the targets")
    yield from _exchanged(sample, choices, np.ones(len(choices.free), bool), "choices")
    yield from _redrawn(sample)


def _exchanged(sample: DrawnSequences, choices: Choices, free: NDArray[np.bool_], what: str) -> Iterator[Finding]:
    """Two sequences that exchange some choices, where both have made them, are as likely as before. A choice that may
    decide whether another is made is exchanged only if all choices are always made."""
    values = choices.values
    families, of = np.unique(choices.family, return_inverse=True)
    fixed = np.zeros(len(of), bool)
    if (values < 0).any():
        bits = columns(choices)
        fixed[bits.choice[bits.deciding]] = True
    movable = np.array([bool((free & ~fixed)[of == f].all()) for f in range(len(families))])
    if not movable.any() or len(families) < 2:
        return
    codes, size, choice = _codes(values)
    rng = sample.generator(2)
    half = len(values) // 4 * 2
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    network = _Network.made(size, 1, generator)

    def difference(rows: Ints) -> Tensor:
        a, b = rows[0::2], rows[1::2]
        moved = (rng.random((len(a), len(families))) < 0.5) & movable
        swap = moved[:, of] & (values[a] >= 0) & (values[b] >= 0)
        swap = swap[:, choice]
        first, second = codes[a], codes[b]
        both = np.concatenate([first, second, np.where(swap, second, first), np.where(swap, first, second)])
        score = network(torch.from_numpy(both))[:, 0].reshape(4, len(a))
        return score[0] + score[1] - score[2] - score[3]

    _train(network, lambda: difference(rng.integers(half, size=2 * _BATCH)), sample.steps)
    yield from _tested(difference, np.arange(half, 2 * half), f"{what}, exchanged")


def _redrawn(sample: DrawnSequences) -> Iterator[Finding]:
    """One target of each sequence for which the exact predictor is uncertain, and another label drawn from it."""
    seen = sample.predictions
    if not isinstance(seen, Predictions) or sample.truth.labels is None or len(sample.targets) == 0:
        return
    rng, N = sample.generator(3), len(sample.tokens)
    target = (sample.first + (rng.random(N) * sample.counts).astype(np.int64))[sample.counts > 0]
    target = target[seen.redrawn[target] != sample.targets[target]]
    half = len(target) // 2
    if half < _FEWEST:
        return
    answer = seen.answer[target]
    known = np.concatenate(
        [sample.tokens[sample.rows[target]], answer[:, None], sample.slot_of_target[target, None]], 1
    )
    # Tokens after the target may depend on it.
    known[:, :-2][np.arange(sample.tokens.shape[1]) > sample.positions[target][:, None]] = -1
    codes, size, _ = _codes(known)
    pair = torch.from_numpy(np.stack([sample.targets[target], seen.redrawn[target]], axis=1))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    network = _Network.made(size, sample.task.vocabulary.size, generator)

    def difference(rows: Ints) -> Tensor:
        score = network(torch.from_numpy(codes[rows])).gather(1, pair[rows])
        return score[:, 0] - score[:, 1]

    _train(network, lambda: difference(rng.integers(half, size=2 * _BATCH)), sample.steps)
    yield from _tested(difference, np.arange(half, len(target)), "a target and one that the predictor draws")


def _tested(difference: Callable[[Ints], Tensor], rows: Ints, subject: str) -> Iterator[Finding]:
    """The share of pairs that the network gets right, of all pairs and of those with the highest confidence."""
    with torch.no_grad():
        parts = [difference(rows[i : i + 8 * _BATCH]).numpy() for i in range(0, len(rows), 8 * _BATCH)]
    found = np.concatenate(parts)
    found = found[np.argsort(-np.abs(found), kind="stable")]
    found = found[found != 0]
    for part in _SUREST:
        if (n := len(found) // part) >= _FEWEST:
            which = subject if part == 1 else f"{subject}, the surest of {part}"
            yield proportion("learned", which, int((found[:n] > 0).sum()), n, 0.5, _OF)


@dataclass(frozen=True)
class _Network:
    """The sum of one embedding for each value, and two layers."""

    parameters: tuple[Tensor, ...]

    @classmethod
    def made(cls, codes: int, outputs: int, generator: torch.Generator) -> "_Network":
        shapes = ((codes, _WIDTH), (_WIDTH,), (_WIDTH, _WIDTH), (_WIDTH,), (_WIDTH, outputs))
        sizes = (0.3, 0.5, (2 / _WIDTH) ** 0.5, 0.1, _WIDTH**-0.5)
        drawn = (torch.randn(shape, generator=generator) * size for shape, size in zip(shapes, sizes, strict=True))
        return cls(tuple(one.requires_grad_() for one in drawn))

    def __call__(self, codes: Tensor) -> Tensor:
        vectors, first, weights, second, last = self.parameters
        hidden = functional.gelu(functional.embedding_bag(codes, vectors, mode="sum") + first)
        return functional.gelu(hidden @ weights + second) @ last


def _train(network: _Network, difference: Callable[[], Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(network.parameters, lr=_RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _RATE * (1 - step / steps)
        loss = functional.softplus(-difference()).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _codes(values: Ints) -> tuple[Ints, int, Ints]:
    """(N, C) an embedding index for each value of each choice, also for absent ones; the number of indices; (C,) the
    choice of each column. Choices with large values have two columns: their lowest bits and their size."""
    most = values.max(axis=0, initial=0) + 1
    large = most > _LISTED
    coarse = np.where(values[:, large] < 0, -1, values[:, large].clip(0) * 64 // most[large])
    low = np.where(values < 0, -1, np.where(large, values & 63, values))
    every = np.concatenate([low, coarse], axis=1) + 1
    sizes = every.max(axis=0, initial=0) + 1
    choice = np.append(np.arange(values.shape[1]), np.flatnonzero(large))
    return every + np.cumsum(sizes) - sizes, int(sizes.sum()), choice
