"""Multiplication: the sheet's fixture, what its sources determine, the law of the digits, and mutants."""

import itertools

import numpy as np
import pytest
from generators.mutants import catches, mutant
from generators.written import answered, ids_between, written

from sparsity_lab.generators import Multiplication, Stream, certify


def test_fixture() -> None:
    assert answered(Multiplication(), "123*45", 3) == "123*45=53550"
    assert ids_between(Multiplication(), 3, start=1) == [[3, 4, 5, 6, 4, 5, 6, 5, 4, 3, 2, 1]]
    assert Multiplication().largest_position_id(3) == 6


def test_extremes() -> None:
    assert answered(Multiplication(), "999*99", 3) == "999*99=10989"
    assert answered(Multiplication(multiplier_digits=10), f"99*{'9' * 10}", 2) == f"99*{'9' * 10}=109999999989"
    assert answered(Multiplication(), "000*99", 3) == "000*99=00000"


@pytest.mark.parametrize(
    ("task", "length"),
    [
        (Multiplication(), 9),
        (Multiplication(multiplier_digits=5, operand_digits="uniform"), 3),
        (Multiplication(multiplier_digits=2, base=2), 12),
        (Multiplication(multiplier_digits=10), 30),
    ],
    ids=str,
)
def test_rule(task: Multiplication, length: int) -> None:
    for text in written(task, task.sample(Stream(seed=7), 0, 300, length)):
        prompt, response = text.split("=")
        a, b = prompt.split("*")
        assert (len(a), len(b)) == (length, task.multiplier_digits)
        assert len(response) == length + task.multiplier_digits
        assert int(response[::-1], task.base) == int(a, task.base) * int(b, task.base)


def every_sequence(task: Multiplication, n: int) -> np.ndarray:
    """All sequences of a length."""
    digits = np.array(list(itertools.product(range(task.base), repeat=n + task.multiplier_digits)))
    prompts = np.insert(digits, n, task.vocabulary.token("*"), axis=1)
    ends = np.full((len(prompts), 1), task.end)
    equals = np.full((len(prompts), 1), task.equals)
    return np.concatenate([ends, prompts, equals, task.respond(prompts, n), ends], axis=1)


def undetermined(tokens: np.ndarray, slots: list[list[int]]) -> int:
    """Number of slots in which sequences with equal source tokens have different targets."""
    first = tokens.shape[1] - len(slots)
    found = 0
    for j, sources in enumerate(slots):
        with_target = len(np.unique(tokens[:, [*sources, first + j]], axis=0))
        found += with_target != len(np.unique(tokens[:, sources], axis=0))
    return found


@pytest.mark.parametrize(
    ("base", "M", "n"), [(2, 2, 8), (3, 2, 6), (3, 3, 5), (4, 4, 3), (4, 1, 5), (5, 2, 4), (10, 1, 3), (10, 2, 3)]
)
def test_the_sources_determine_each_digit(base: int, M: int, n: int) -> None:
    """Over all sequences, up to a multiplier of as many digits as the base."""
    task = Multiplication(base=base, multiplier_digits=M)
    assert undetermined(every_sequence(task, n), task.slot_sources(n)) == 0


def test_fewer_sources_would_not() -> None:
    """Neither without the product's own digit, nor without the digits that only the second place before needs."""
    task = Multiplication(base=3, multiplier_digits=2)
    tokens, slots = every_sequence(task, 6), task.slot_sources(6)
    assert undetermined(tokens, [s[:-1] if len(s) > 2 else s for s in slots]) > 0
    nearer = [
        [t for t in s if not (t <= 6 and t == max(u for u in s if u <= 6))] if len(s) == 7 else s for s in slots
    ]
    assert undetermined(tokens, nearer) > 0


def test_sparse_however_long() -> None:
    """k = 2 M + 3, and one less where carries are digits."""
    assert [Multiplication().truth(n).k for n in (5, 20, 60)] == [7, 7, 7]
    assert Multiplication(multiplier_digits=10).truth(40).k == 23
    assert Multiplication(multiplier_digits=1).truth(20).k == 4
    assert Multiplication(base=2).truth(20).k == 6


@pytest.mark.parametrize(("base", "M", "n"), [(2, 2, 8), (3, 1, 5), (3, 2, 7), (3, 3, 7), (10, 1, 4)])
def test_no_source_is_superfluous(base: int, M: int, n: int) -> None:
    """Of the digit with most sources, between the lowest places, where no carry is unknown, and the highest."""
    task = Multiplication(base=base, multiplier_digits=M)
    tokens, slots = every_sequence(task, n), task.slot_sources(n)
    slot = max(j for j, sources in enumerate(slots) if len(sources) == task.truth(n).k)
    first = tokens.shape[1] - len(slots)
    for source in slots[slot]:
        fewer = [t for t in slots[slot] if t != source]
        assert undetermined(tokens[:, [*fewer, first + slot]], [list(range(len(fewer)))]) == 1


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize(("base", "M", "n"), [(2, 2, 5), (4, 2, 3), (6, 1, 3), (3, 3, 3), (10, 2, 2)])
def test_law_of_the_digits_by_enumeration(base: int, M: int, n: int, uniform: bool) -> None:
    task = Multiplication(base=base, multiplier_digits=M, operand_digits="uniform" if uniform else "fixed")

    def weights(places: int) -> np.ndarray:
        sizes = range(1, places + 1) if uniform else [places]
        return np.array([sum(base**-m for m in sizes if x < base**m) / len(sizes) for x in range(base**places)])

    products = np.outer(np.arange(base**n), np.arange(base**M)).reshape(-1)
    probability = np.outer(weights(n), weights(M)).reshape(-1)
    exact = [np.bincount(products // base**j % base, probability, minlength=base) for j in range(n + M)]
    declared = task.truth(n).label_distribution
    assert declared is not None
    assert declared[:-1, :base] == pytest.approx(np.array(exact), abs=1e-12)


def test_no_closed_form_for_long_multipliers() -> None:
    truth = Multiplication(multiplier_digits=3).truth(4)
    assert truth.label_distribution is None
    assert truth.chance_accuracy is None
    assert truth.bayes_accuracy == 1.0
    assert certify(Multiplication(multiplier_digits=3), sequences=1000, lengths=(4,), effort="quick").passed


def no_last_carry(self: Multiplication, prompts: np.ndarray, length: int) -> np.ndarray:
    response = Multiplication.respond(self, prompts, length)
    response[:, -1] = 0
    return response


def ids_upwards(self: Multiplication, start: int, length: int) -> list[list[int]]:
    """The response counts up."""
    (ids,) = Multiplication.ids_from(self, start, length)
    response = len(ids) - 1 - length - self.multiplier_digits
    return [[*ids[:response], *ids[-2 : response - 1 : -1], 0]]


def even_multiplier(self: Multiplication, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """Where a is odd, b is even in some sequences: the product is even too often."""
    Multiplication.draw_prompts(self, stream, start, out, length)
    out[(np.arange(start, start + len(out)) % 3 == 0) & (out[:, length - 1] % 2 == 1), -1] &= ~1


def nothing_but_zeros(self: Multiplication, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    Multiplication.draw_prompts(self, stream, start, out, length)
    out[out < self.base] = 0


def test_operands_have_their_law_where_the_product_has_none() -> None:
    task = Multiplication(multiplier_digits=3)
    assert not catches("token_marginals", task)
    assert catches("token_marginals", mutant(task, draw_prompts=nothing_but_zeros))


def no_second_place(self: Multiplication, length: int) -> list[list[int]]:
    return [sources[1:] if len(sources) > 5 else sources for sources in Multiplication.slot_sources(self, length)]


@pytest.mark.parametrize(
    ("method", "broken", "check"),
    [
        ("respond", no_last_carry, "rule"),
        ("ids_from", ids_upwards, "position_ids"),
        ("draw_prompts", even_multiplier, "label_balance"),
        ("slot_sources", no_second_place, "second_answer"),
    ],
)
def test_mutants(method: str, broken: object, check: str) -> None:
    task = mutant(Multiplication(), **{method: broken})  # type: ignore[arg-type]
    assert catches(check, task)
