"""MissingDuplicate: the peer's examples, sources by hand, laws by enumeration, and mutants."""

import itertools

import numpy as np
import pytest
from generators.mutants import catches, mutant
from generators.written import answered, tokens_of, written

from sparsity_lab.generators import MissingDuplicate, Stream
from sparsity_lab.settings import SettingError

TASK = MissingDuplicate()


def test_by_hand() -> None:
    assert answered(TASK, "01100_10", 4) == "01100_10=1"
    assert answered(TASK, "10_101", 3) == "10_101=1"
    assert answered(TASK, "_0", 1) == "_0=0"
    batch = TASK.sample(Stream(), 0, 50, 4)
    assert batch.position_ids is not None
    assert batch.sources is not None
    assert batch.position_ids[0, 0].tolist() == [0, 2, 3, 4, 5, 2, 3, 4, 5, 1, 1, 0]
    for row, sources in zip(batch.tokens.tolist(), batch.sources[:, 9].tolist(), strict=True):
        blank = row.index(2)
        assert sorted(sources) == sorted([blank, blank + 4 if blank < 5 else blank - 4])


def test_rule() -> None:
    for text in written(TASK, TASK.sample(Stream(seed=3), 0, 300, 7)):
        prompt, answer = text.split("=")
        full = prompt.replace("_", answer)
        assert prompt.count("_") == 1
        assert full[:7] == full[7:]


def test_laws_by_enumeration() -> None:
    n = 3
    prompts = []
    for word, place in itertools.product(itertools.product((0, 1), repeat=n), range(2 * n)):
        prompt = [*word, *word]
        prompt[place] = 2
        prompts.append(prompt)
    assert TASK.are_prompts(np.array(prompts), n)
    shares = (np.array(prompts)[:, :, None] == np.arange(TASK.vocabulary.size)).mean(axis=0)
    assert np.allclose(shares, TASK.prompt_marginals(n))


@pytest.mark.parametrize("prompt", ["010010", "01_0_0", "01_110", "0__100"])
def test_no_prompts(prompt: str) -> None:
    assert not TASK.are_prompts(tokens_of(TASK, prompt), 3)


def test_refusal() -> None:
    with pytest.raises(SettingError, match="alphabet_size: expected a whole number of at least 2, got 1"):
        MissingDuplicate(alphabet_size=1)


def blank_in_the_first_copy(self: MissingDuplicate, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """Half as many places."""
    MissingDuplicate.draw_prompts(self, stream, start, out, length)
    first, second = out[:, :length].copy(), out[:, length:].copy()
    out[:, :length] = np.maximum(first, second)
    out[:, length:] = np.minimum(first, second)


def other_symbol(self: MissingDuplicate, prompts: np.ndarray, length: int) -> np.ndarray:
    """The symbol beside the twin."""
    return np.take_along_axis(prompts, (self._places(prompts)[:, 1:] + 1) % (2 * length), axis=1) % 2


def one_place_on(self: MissingDuplicate, tokens: np.ndarray, length: int) -> np.ndarray:
    """The twin is taken to be the symbol after it."""
    sources = MissingDuplicate.find_sources(self, tokens, length)
    sources[:, 0, 1] = np.where(sources[:, 0, 1] < 2 * length, sources[:, 0, 1] + 1, sources[:, 0, 0] + 1)
    return sources


def test_mutants() -> None:
    for methods, check in [
        ({"respond": other_symbol}, "rule"),
        ({"draw_prompts": blank_in_the_first_copy}, "token_marginals"),
        ({"find_sources": one_place_on}, "source_sets"),
    ]:
        assert catches(check, mutant(TASK, **methods))  # type: ignore[arg-type]
