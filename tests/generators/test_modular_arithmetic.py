"""ModularArithmetic beside Python's own parser, CompareNumbers beside its numbers, their laws, and mutants."""

import itertools

import numpy as np
import pytest
from generators.mutants import catches, mutant
from generators.written import answered, ids_between, written

from sparsity_lab.generators import CompareNumbers, ModularArithmetic, Stream
from sparsity_lab.settings import SettingError


@pytest.mark.parametrize("operators", ["+-*", "*", "-+", "+"])
def test_values_are_those_of_python(operators: str) -> None:
    task = ModularArithmetic(modulus=7, operators=operators)
    seen = set()
    for text in written(task, task.sample(Stream(seed=1), 0, 200, 9)):
        expression, value = text.split("=")
        assert eval(expression) % 7 == int(value)
        seen |= set(expression) & set("+-*")
    assert seen == set(operators)


def test_by_hand() -> None:
    assert answered(ModularArithmetic(), "2*3-4*4", 4) == "2*3-4*4=0"
    assert answered(CompareNumbers(), "129<130", 3) == "129<130=yes"
    assert answered(CompareNumbers(), "130<130", 3) == "130<130=no"
    assert ids_between(CompareNumbers(), 2, start=4) == [[4, 5, 6, 4, 5, 6, 4]]


def test_comparisons_are_those_of_python() -> None:
    task = CompareNumbers(base=4)
    for text in written(task, task.sample(Stream(seed=1), 0, 300, 3)):
        numbers, answer = text.split("=")
        assert answer == ("yes" if int(numbers.split("<")[0], 4) < int(numbers.split("<")[1], 4) else "no")


def test_laws_of_answers_by_enumeration() -> None:
    for operators in ("+-*", "*", "-"):
        task = ModularArithmetic(modulus=3, operators=operators)
        choices = [range(3), range(3, 3 + len(operators))] * 2 + [range(3)]
        answers = task.respond(np.array(list(itertools.product(*choices))), 3)[:, 0]
        declared = task.response_marginals(3)[0]
        assert np.allclose(np.bincount(answers, minlength=len(declared)) / len(answers), declared, atol=1e-12)
    task = CompareNumbers(base=3)
    digits = np.array(list(itertools.product(range(3), repeat=4)))
    answers = task.respond(np.insert(digits, 2, 3, axis=1), 2)[:, 0]
    declared = task.response_marginals(2)[0]
    assert np.allclose(np.bincount(answers, minlength=len(declared)) / 81, declared, atol=1e-12)


def test_refusals() -> None:
    for make, message in [
        (lambda: ModularArithmetic(operators=""), r"operators: expected one or more of \+ - \*, each once, got ''"),
        (lambda: ModularArithmetic(operators="+/"), "operators: expected one or more"),
        (lambda: ModularArithmetic(operators="++"), "operators: expected one or more"),
        (lambda: ModularArithmetic(modulus=1), "modulus: expected a whole number of at least 2, got 1"),
        (lambda: ModularArithmetic(modulus=400), "modulus: expected at most 128, got 400"),
        (lambda: CompareNumbers(base=1), "base: expected a whole number of at least 2, got 1"),
    ]:
        with pytest.raises(SettingError, match=message):
            make()


def from_left_to_right(self: ModularArithmetic, prompts: np.ndarray, length: int) -> np.ndarray:
    """Without precedence of products."""
    value = prompts[:, 0].copy()
    for j in range(1, length):
        operator, number = prompts[:, 2 * j - 1] - self.modulus, prompts[:, 2 * j]
        value = np.choose(operator, [value + number, value - number, value * number])
    return (value % self.modulus)[:, None]


def at_most(self: CompareNumbers, prompts: np.ndarray, length: int) -> np.ndarray:
    answers = CompareNumbers.respond(self, prompts, length)
    equal = (prompts[:, :length] == prompts[:, length + 1 :]).all(axis=1)
    answers[equal] = self.base + 1
    return answers


def test_mutants() -> None:
    assert catches("rule", mutant(ModularArithmetic(), respond=from_left_to_right))
    assert catches("rule", mutant(CompareNumbers(base=3), respond=at_most))
    short = {"certified_lengths": property(lambda self: (1,))}
    assert catches("label_balance", mutant(CompareNumbers(base=3), respond=at_most, **short))  # type: ignore[arg-type]
