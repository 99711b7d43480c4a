"""BracketedArithmetic beside Python's own parser, its laws beside all expressions of short lengths, and mutants."""

import itertools
from collections import Counter
from functools import cache

import numpy as np
import pytest
from generators.mutants import catches, mutant
from generators.written import answered, ids_between, written

from sparsity_lab.generators import BracketedArithmetic, Stream
from sparsity_lab.settings import SettingError


def test_by_hand() -> None:
    assert answered(BracketedArithmetic(), "((2*3)--4)", 10) == "((2*3)--4)=0"
    assert answered(BracketedArithmetic(), "(-2)", 4) == "(-2)=3"
    assert ids_between(BracketedArithmetic(), 3, start=2) == [[2, 2, 2, 3, 2]]


@pytest.mark.parametrize("shape", ["published", "uniform"])
@pytest.mark.parametrize("operators", ["+-*", "*", "+"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 30, 71])
def test_values_are_those_of_python(shape: str, operators: str, length: int) -> None:
    task = BracketedArithmetic(modulus=7, operators=operators, shape=shape)  # type: ignore[arg-type]
    for text in written(task, task.sample(Stream(seed=1), 0, 60, length)):
        expression, value = text.split("=")
        assert len(expression) == length
        assert eval(expression) % 7 == int(value)


@cache
def expressions(length: int, digits: str, operators: str, uniform: bool) -> dict[str, float]:
    """All expressions of a length with their probabilities, by the grammar."""
    forms = {1: "{}", 2: "-{}", 3: "({})", 4: "(-{})"}
    if length in forms:
        return {forms[length].format(d): 1 / len(digits) for d in digits}
    found: dict[str, float] = {}
    for left in range(1, length - 3):
        sides = [expressions(size, digits, operators, uniform) for size in (left, length - 3 - left)]
        for (a, p), (b, q), sign in itertools.product(*(side.items() for side in sides), operators):
            found[f"({a}{sign}{b})"] = p * q / len(operators) / (length - 4)
    return dict.fromkeys(found, 1 / len(found)) if uniform else found


@pytest.mark.parametrize("shape", ["published", "uniform"])
@pytest.mark.parametrize("operators", ["+-*", "+"])
@pytest.mark.parametrize("length", [1, 4, 5, 8])
def test_laws_by_enumeration(shape: str, operators: str, length: int) -> None:
    task = BracketedArithmetic(modulus=2, operators=operators, shape=shape)  # type: ignore[arg-type]
    every = expressions(length, "01", operators, shape == "uniform")
    assert sum(every.values()) == pytest.approx(1)
    marginals = task.truth(length).token_marginals
    assert marginals is not None
    expected = np.zeros_like(marginals)
    index = np.arange(len(expected))
    for text, share in every.items():
        names = ["BOS/EOS", *text, "=", str(eval(text) % 2), "BOS/EOS"]
        expected[index, [task.vocabulary.token(name) for name in names]] += share
    assert marginals == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", ["published", "uniform"])
def test_every_expression_is_drawn_as_often_as_its_law_says(shape: str) -> None:
    task = BracketedArithmetic(modulus=2, operators="+*", shape=shape)  # type: ignore[arg-type]
    every = expressions(8, "01", "+*", shape == "uniform")
    texts = written(task, task.sample(Stream(seed=5), 0, 40_000, 8))
    seen = Counter(text.split("=")[0] for text in texts)
    assert set(seen) <= set(every)
    statistic = sum((seen[text] - 40_000 * share) ** 2 / (40_000 * share) for text, share in every.items())
    # Of that many degrees of freedom, with a standard deviation of their root times 1.4.
    assert abs(statistic - len(every) + 1) < 6 * np.sqrt(2 * len(every))


def test_only_expressions_are_prompts() -> None:
    """Of all rows of six tokens those that the grammar has."""
    task = BracketedArithmetic(modulus=2, operators="+-", shape="uniform")
    every = expressions(6, "01", "+-", True)
    rows = np.array(list(itertools.product(range(6), repeat=6)))
    texts = ["".join(task.vocabulary.names[token] for token in row) for row in rows.tolist()]
    valued = task._valued(rows)[1]
    assert {text for text, is_one in zip(texts, valued, strict=True) if is_one} == set(every)
    assert not task.are_prompts(rows, 6)
    for text, row in zip(texts[::97], rows[::97].tolist(), strict=True):
        try:
            task.answer(tuple(row))
        except (ValueError, LookupError):
            assert text not in every
        else:
            assert text in every


def test_refusals() -> None:
    for make, message in [
        (lambda: BracketedArithmetic(operators="+/"), "operators: expected one or more of"),
        (lambda: BracketedArithmetic(modulus=1), "modulus: expected a whole number of at least 2, got 1"),
        (lambda: BracketedArithmetic(shape="any"), "shape: expected 'published' or 'uniform', got 'any'"),  # type: ignore[arg-type]
        (lambda: BracketedArithmetic().truth(1001), r"length: expected at most 1000 for BracketedArithmetic\(\)"),
    ]:
        with pytest.raises(SettingError, match=message):
            make()


def ignoring_signs(self: BracketedArithmetic, prompts: np.ndarray, length: int) -> np.ndarray:
    """A sign at the beginning of the outermost right expression is overlooked."""
    answers = BracketedArithmetic.respond(self, prompts, length)
    signed = prompts[:, -3] == self.vocabulary.token("-")
    return np.where(signed[:, None], (answers + 1) % self.modulus, answers)


def left_heavy(self: BracketedArithmetic, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """Half of the sequences are expressions of the other law."""
    BracketedArithmetic.draw_prompts(self, stream, start, out, length)
    again = np.empty_like(out)
    BracketedArithmetic(shape="uniform").draw_prompts(stream, start, again, length)
    rows = np.arange(start, start + len(out)) % 2 == 0
    out[rows] = again[rows]


def test_mutants() -> None:
    task = BracketedArithmetic()
    long = {"certified_lengths": property(lambda self: (24,))}
    assert catches("rule", mutant(task, respond=ignoring_signs))
    assert catches("token_marginals", mutant(task, draw_prompts=left_heavy, **long))  # type: ignore[arg-type]
