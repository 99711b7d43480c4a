"""Sort, Mode, MajorityOfAll and CountSymbol beside Python's own functions, their laws by enumeration, and mutants."""

import itertools
from collections import Counter

import numpy as np
import pytest
from generators.mutants import catches, mutant

from sparsity_lab.generators import Copy, CountSymbol, MajorityOfAll, Mode, ResponseTask, Reverse, Sort, Stream
from sparsity_lab.settings import SettingError


def prompts_and_answers(task: ResponseTask, length: int, count: int = 300) -> list[tuple[list[int], list[int]]]:
    P = task.prompt_length(length)
    tokens = task.sample(Stream(seed=4), 0, count, length).tokens.tolist()
    return [(row[1 : P + 1], row[P + 2 : -1]) for row in tokens]


def test_answers_are_those_of_python() -> None:
    for distinct in (False, True):
        for prompt, answer in prompts_and_answers(Sort(num_values=20, distinct=distinct), 12):
            assert answer == sorted(prompt)
            assert not distinct or len(set(prompt)) == 12
    for prompt, (answer,) in prompts_and_answers(Mode(alphabet_size=3), 10):
        most = Counter(prompt).most_common(1)[0][1]
        assert answer == min(symbol for symbol in range(3) if prompt.count(symbol) == most)
    for prompt, (answer,) in prompts_and_answers(MajorityOfAll(), 10):
        assert answer == (sum(prompt) > 5)
    for (*prompt, asked), (answer,) in prompts_and_answers(CountSymbol(largest_count=20), 10):
        assert answer - 4 == prompt.count(asked)


SMALL: list[tuple[ResponseTask, int]] = [
    (Sort(num_values=4), 3),
    (Sort(num_values=5, distinct=True), 3),
    (Mode(alphabet_size=3), 5),
    (Mode(alphabet_size=4), 1),
    (MajorityOfAll(), 5),
    (MajorityOfAll(), 6),
    (CountSymbol(alphabet_size=3, largest_count=4), 4),
    (Copy(alphabet_size=5, distinct=True), 3),
]


@pytest.mark.parametrize(("task", "length"), SMALL, ids=str)
def test_laws_of_answers_by_enumeration(task: ResponseTask, length: int) -> None:
    inputs = range(task.num_inputs)  # type: ignore[attr-defined]
    words = list(itertools.product(inputs, repeat=task.prompt_length(length)))
    if getattr(task, "distinct", False):
        words = [word for word in words if len(set(word)) == len(word)]
    answers = task.respond(np.array(words), length)
    declared = task.response_marginals(length)
    assert declared is not None
    for seen, law in zip(answers.T, declared, strict=True):
        assert np.allclose(np.bincount(seen, minlength=len(law)) / len(words), law, atol=1e-12)


def test_the_law_of_the_mode_at_many_symbols() -> None:
    """Of 300 symbols: it sums to one, falls from the lowest symbol on, and ties get rarer."""
    law, few = (Mode(alphabet_size=6).response_marginals(n)[0][:6] for n in (300, 12))
    assert law.sum() == pytest.approx(1.0)
    assert (np.diff(law) < 0).all()
    assert law[0] - law[-1] < few[0] - few[-1]


def test_distinct_symbols_are_uniform_among_arrangements() -> None:
    rows = Copy(alphabet_size=4, distinct=True).sample(Stream(), 0, 24_000, 3).tokens[:, 1:4].tolist()
    counts = np.array(list(Counter(map(tuple, rows)).values()))
    assert len(counts) == 24
    # Chi-square with 23 degrees of freedom exceeds 80 once in 10^8 times.
    assert ((counts - 1000) ** 2 / 1000).sum() < 80


def test_refusals() -> None:
    for make, message in [
        (lambda: Sort(num_values=4, distinct=True).check_length(5), "length: expected at most num_values = 4"),
        (lambda: Copy(alphabet_size=4, distinct=True).truth(5), "length: expected at most alphabet_size = 4"),
        (lambda: Reverse(alphabet_size=4, distinct=True).truth(5), "length: expected at most alphabet_size = 4"),
        (lambda: CountSymbol(largest_count=9).truth(10), "length: expected at most largest_count = 9"),
        (
            lambda: Sort(num_values=2**20, distinct=True),
            "num_values: expected at most 4096, since all symbols are different",
        ),
        (lambda: Copy(alphabet_size=2**20, distinct=True), "alphabet_size: expected at most 4096, since all"),
        (lambda: Mode(alphabet_size=64), "alphabet_size: expected at most 32, got 64"),
        (lambda: Mode().truth(2000), r"length: expected at most 1000 for Mode\(\), got 2000"),
        (lambda: Sort(num_values=1), "num_values: expected a whole number of at least 2, got 1"),
        (lambda: Mode(alphabet_size=1), "alphabet_size: expected a whole number of at least 2, got 1"),
    ]:
        with pytest.raises(SettingError, match=message):
            make()


def descending(self: Sort, prompts: np.ndarray, length: int) -> np.ndarray:
    return np.sort(prompts, axis=1)[:, ::-1]


def ties_to_the_highest(self: Mode, prompts: np.ndarray, length: int) -> np.ndarray:
    counts = np.stack([(prompts == symbol).sum(axis=1) for symbol in range(4)], axis=1)
    return (3 - counts[:, ::-1].argmax(axis=1))[:, None]


def ties_to_one(self: MajorityOfAll, prompts: np.ndarray, length: int) -> np.ndarray:
    return (2 * prompts.sum(axis=1, keepdims=True) >= length).astype(np.int64)


def repeats_in_a_tenth(self: Sort, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    Sort.draw_prompts(self, stream, start, out, length)
    out[np.arange(start, start + len(out)) % 10 == 0, 1] = out[np.arange(start, start + len(out)) % 10 == 0, 0]


def test_mutants() -> None:
    even = {"certified_lengths": property(lambda self: (4,))}
    assert catches("rule", mutant(Sort(num_values=8), respond=descending))
    assert catches("rule", mutant(Mode(), respond=ties_to_the_highest))
    assert catches("label_balance", mutant(Mode(), respond=ties_to_the_highest))
    assert catches("rule", mutant(MajorityOfAll(), respond=ties_to_one, **even))  # type: ignore[arg-type]
    assert catches("bayes", mutant(Sort(distinct=True), draw_prompts=repeats_in_a_tenth))
