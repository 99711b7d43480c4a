"""MultipleAddition: the published IDs written out, numbers as the published code draws them, laws, and mutants."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from generators.mutants import catches, mutant
from generators.written import answered, ids_between, written

from sparsity_lab.generators import Addition, MultipleAddition, Stream

TASKS = [
    MultipleAddition(),
    MultipleAddition(num_operands=5, base=3),
    MultipleAddition(num_operands=12),
    MultipleAddition(num_operands=2, start_with_zeros=False),
    MultipleAddition(scratchpad=False),
]


def test_by_hand() -> None:
    assert answered(MultipleAddition(), "057+048+096", 2) == "057+048+096=000>750>501>102"
    assert answered(MultipleAddition(start_with_zeros=False), "057+048+096", 2) == "057+048+096=750>501>102"
    assert answered(MultipleAddition(scratchpad=False), "057+048+096", 2) == "057+048+096=102"
    assert ids_between(MultipleAddition(), 2, start=1) == [
        [4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4],
        [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4],
    ]


def published_ids(text: str, s: int, of_first_sum: int) -> list[list[int]]:
    """Of a written sequence, symbol by symbol: significance, and the number of an operand or sum."""
    prompt, response = text.split("=")
    places, numbers = [], []
    for i, operand in enumerate(prompt.split("+"), 1):
        w = len(operand)
        places += [*range(s + w, s, -1), s]  # digits, then the `+` after them
        numbers += [s + i - 1] * (w + 1)
    places, numbers = places[:-1], numbers[:-1]
    for i, total in enumerate(response.split(">"), of_first_sum):
        w = len(total)
        places += range(s, s + w + 1)  # the symbol, then digits from the units on
        numbers += [s + i] * (w + 1)
    return [places, numbers]


@pytest.mark.parametrize("task", TASKS, ids=str)
@pytest.mark.parametrize("length", [1, 2, 4])
def test_sums_widths_and_ids_are_those_of_the_published_rule(task: MultipleAddition, length: int) -> None:
    base = task.base
    largest = task.num_operands * (base**length - 1)
    width = next(w for w in range(1, 20) if base**w > largest)
    for text in written(task, task.sample(Stream(seed=7), 0, 200, length)):
        prompt, response = text.split("=")
        operands = [int(operand, base) for operand in prompt.split("+")]
        assert len(operands) == task.num_operands
        assert {len(number) for number in (*prompt.split("+"), *response.split(">"))} == {width}
        assert max(operands) >= (base ** (length - 1) if length > 1 else 0)
        sums = [int(digits[::-1], base) for digits in response.split(">")]
        running = [0, *itertools.accumulate(operands)][1 - task.start_with_zeros :]
        assert sums == (running if task.scratchpad else [sum(operands)])
        expected = published_ids(text, 3, 0)
        assert ids_between(task, length, start=3) == (expected if task.scratchpad else expected[:1])


def test_both_addends_of_the_next_sum_share_an_id() -> None:
    """Digit j of the sum of the first i is made of those of operand i and of the sum before, which have s + i - 1."""
    task, length = MultipleAddition(num_operands=4), 3
    significance, number = task.coupled_ids(length)
    slots = task.slot_sources(length)
    equals = len(significance) - len(slots) - 1
    for i in range(1, 5):
        for j in range(4):
            slot = 5 * i + j
            here = [t for t in slots[slot] if significance[t] == 2 + j]
            assert number[here].tolist() == [i, i]
            assert number[equals + slot + 1] == i + 1


def published_numbers(base: int, n: int) -> dict[int, Fraction]:
    """A number of digits uniform on 1 .. n, then a number of so many digits that does not begin with 0, or 0 .. 9."""
    law: Counter[int] = Counter()
    for size in range(1, n + 1):
        numbers = range(base ** (size - 1) if size > 1 else 0, base**size)
        for number in numbers:
            law[number] += Fraction(1, n * len(numbers))  # type: ignore[assignment]
    return law  # type: ignore[return-value]


@pytest.mark.parametrize(("base", "num", "n"), [(2, 2, 3), (3, 2, 2), (3, 3, 2), (4, 2, 1)])
def test_law_of_published_digits_by_enumeration(base: int, num: int, n: int) -> None:
    """Of all rows of operands those whose longest has n digits, which the width tells."""
    law = published_numbers(base, n)
    rows = {
        row: np.prod([float(law[x]) for x in row])
        for row in itertools.product(law, repeat=num)
        if n == 1 or max(row) >= base ** (n - 1)
    }
    total = sum(rows.values())
    for task in (
        Addition(base=base, num_operands=num, operand_digits="published", scratchpad=True),
        MultipleAddition(base=base, num_operands=num),
    ):
        marginals = task.truth(n).token_marginals
        assert marginals is not None
        expected = np.zeros_like(marginals)
        texts = [numbers_written(task, row, n) for row in rows]
        for tokens, weight in zip(texts, rows.values(), strict=True):
            expected[np.arange(len(tokens)), tokens] += weight / total
        assert marginals == pytest.approx(expected, abs=1e-12)


def numbers_written(task: Addition | MultipleAddition, row: tuple[int, ...], n: int) -> list[int]:
    width = task.padded_places(n)[0]
    prompt: list[int] = []
    for number in row:
        prompt += [*(number // task.base**j % task.base for j in reversed(range(width))), task.base]
    prompts = np.array([prompt[:-1]])
    assert task.are_prompts(prompts, n)
    return [task.end, *prompt[:-1], task.equals, *task.respond(prompts, n)[0].tolist(), task.end]


def test_published_numbers_are_drawn_by_their_law() -> None:
    """Chi-square with 8 degrees of freedom exceeds 60 once in 10^9 times."""
    task = MultipleAddition(num_operands=2, base=3, scratchpad=False)
    prompts = task.sample(Stream(seed=3), 0, 40_000, 2).tokens[:, 1 : task.prompt_length(2) + 1].tolist()
    seen = Counter((3 * row[1] + row[2], 3 * row[5] + row[6]) for row in prompts)
    law = published_numbers(3, 2)
    rows = {row: float(law[row[0]] * law[row[1]]) for row in itertools.product(law, repeat=2) if max(row) >= 3}
    scale = 40_000 / sum(rows.values())
    assert set(seen) <= set(rows)
    assert sum((seen[row] - scale * share) ** 2 / (scale * share) for row, share in rows.items()) < 200


def no_longest(self: MultipleAddition, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """The units alone are drawn in a third of the sequences."""
    MultipleAddition.draw_prompts(self, stream, start, out, length)
    rows = np.arange(start, start + len(out)) % 3 == 0
    for own in self._columns(length):
        out[rows, own.start : own.stop - 1] = 0


def own_number_from_the_next(self: MultipleAddition, start: int, length: int) -> list[list[int]]:
    """As in this lab's running sums: operands count from s + 1."""
    significance, number = MultipleAddition.ids_from(self, start, length)
    equals = self.prompt_length(length) + 1
    return [significance, [0, *(i + 1 for i in number[1:equals]), *number[equals:]]]


@pytest.mark.parametrize(
    ("method", "broken", "check"),
    [
        ("draw_prompts", no_longest, "bayes"),
        ("draw_prompts", no_longest, "token_marginals"),
        ("ids_from", own_number_from_the_next, "position_ids"),
    ],
)
def test_mutants(method: str, broken: object, check: str) -> None:
    assert catches(check, mutant(MultipleAddition(base=4), **{method: broken}))  # type: ignore[arg-type]
