"""StackManipulation: the peer's examples, laws by enumeration, and mutants."""

import itertools

import numpy as np
import pytest
from generators.mutants import catches, mutant

from sparsity_lab.generators import StackManipulation, Stream
from sparsity_lab.settings import SettingError

TASK = StackManipulation()


def answered(*names: str) -> str:
    prompt = np.array([[TASK.vocabulary.token(name) for name in names]])
    assert TASK.are_prompts(prompt, len(names))
    return "".join(TASK.vocabulary.names[token] for token in TASK.respond(prompt, len(names))[0])


def test_the_examples_of_the_peer() -> None:
    assert answered("0", "1", "1", "0", "push1", "pop", "pop") == "110...."
    assert answered("1", "1", "0", "pop", "pop", "pop") == "......"
    assert answered("1", "pop", "pop", "push0") == "0..."


def every_prompt(n: int) -> tuple[np.ndarray, np.ndarray]:
    """All prompts of n tokens, and their probabilities."""
    prompts, shares = [], []
    for m in range(1, n):
        for bits in itertools.product((0, 1), repeat=m):
            for actions in itertools.product((2, 3, 4), repeat=n - m):
                prompts.append([*bits, *actions])
                shares.append(2.0**-m * 3.0 ** (m - n) / (n - 1))
    return np.array(prompts), np.array(shares)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_laws_by_enumeration(n: int) -> None:
    prompts, shares = every_prompt(n)
    assert shares.sum() == pytest.approx(1)
    assert TASK.are_prompts(prompts, n)
    for tokens, declared in [
        (prompts, TASK.prompt_marginals(n)),
        (TASK.respond(prompts, n), TASK.response_marginals(n)),
    ]:
        seen = (shares[:, None, None] * (tokens[:, :, None] == np.arange(8))).sum(axis=0)
        assert np.allclose(seen, declared, atol=1e-12)
    drawn = {tuple(row) for row in TASK.sample(Stream(), 0, 5000, n).tokens[:, 1 : n + 1].tolist()}
    assert drawn <= set(map(tuple, prompts.tolist()))


@pytest.mark.parametrize("prompt", [[0, 1, 1], [2, 0, 3], [3, 2, 2], [0, 2, 1], [0, 5, 2]])
def test_no_prompts(prompt: list[int]) -> None:
    assert not TASK.are_prompts(np.array([prompt]), 3)


def test_refusals() -> None:
    for length in (1, 1001):
        with pytest.raises(
            SettingError, match=f"length: expected from 2 to 1000 for StackManipulation.*, got {length}"
        ):
            TASK.check_length(length)


def bottom_first(self: StackManipulation, prompts: np.ndarray, length: int) -> np.ndarray:
    top_first = StackManipulation.respond(self, prompts, length)
    return np.sort(top_first, axis=1)


def rarely_popped(self: StackManipulation, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """Half of the pops push a 0 instead."""
    StackManipulation.draw_prompts(self, stream, start, out, length)
    rows = np.arange(start, start + len(out)) % 2 == 0
    out[rows] = np.where(out[rows] == 2, 3, out[rows])


def test_mutants() -> None:
    assert catches("rule", mutant(TASK, respond=bottom_first))
    assert catches("token_marginals", mutant(TASK, draw_prompts=rarely_popped))
    no_end = mutant(TASK, slot_sources=lambda self, n: [list(range(1, n))] * n + [[n + 1]])
    assert catches("second_answer", no_end)
