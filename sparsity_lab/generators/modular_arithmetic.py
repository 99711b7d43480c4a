"""``ModularArithmetic`` and ``CompareNumbers``: the value of an expression modulo m, and the smaller of two numbers.

Both depend on every token of the prompt. The first is the task without brackets of Deletang et al. (arXiv
2207.02098). The layout and the position IDs are this lab's.
"""

from functools import cached_property

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.response_layout import FixedFormat, OneAnswer, prompt_vocabulary
from sparsity_lab.generators.stream import Ints, Stream, bounded, whole
from sparsity_lab.generators.task import Draw
from sparsity_lab.generators.uniform_prompt import drawn_tokens
from sparsity_lab.settings import SettingError, register

OPERATORS = "+-*"
_LARGEST_MODULUS = 128  # the law of the value takes cubic time


def check_modulus(modulus: int, operators: str) -> None:
    """Raise ``SettingError`` if the modulus or the operators are not valid."""
    if whole("modulus", modulus, 2) > _LARGEST_MODULUS:
        raise SettingError("modulus", f"at most {_LARGEST_MODULUS}", modulus)
    if not operators or set(operators) - set(OPERATORS) or len(set(operators)) < len(operators):
        raise SettingError("operators", "one or more of + - *, each once", operators)


@register
class ModularArithmetic(OneAnswer):
    """The value of an expression modulo m, products first: ``BOS x_1 o_1 x_2 .. o_(n-1) x_n = r EOS``. The
    length is n.

    IDs: s for the expression, s + 1 for ``=``, s for r. The sources of r are the whole expression; that of EOS is
    ``=``.

    Attributes:
        modulus: m. The x are drawn uniformly from 0 .. m - 1.
        operators: the operators, drawn uniformly: some of ``"+-*"``.
    """

    modulus: int = 5
    operators: str = OPERATORS

    @classmethod
    def examples(cls) -> "tuple[ModularArithmetic, ...]":
        return cls(), cls(modulus=3, operators="+-")

    def check(self) -> None:
        check_modulus(self.modulus, self.operators)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return prompt_vocabulary([*map(str, range(self.modulus)), *self.operators])

    def prompt_length(self, length: int) -> int:
        return 2 * length - 1

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        out[:, ::2] = drawn_tokens(stream, length, start, len(out), length, self.modulus)
        if length > 1:
            words = stream.words("operators", length, start, len(out), length - 1)
            out[:, 1::2] = self.modulus + bounded(words, len(self.operators))

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        numbers, operators = prompts[:, ::2], prompts[:, 1::2] - self.modulus
        inside = (numbers >= 0) & (numbers < self.modulus)
        return bool(inside.all() and ((operators >= 0) & (operators < len(self.operators))).all())

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        prompts, _ = self.prompts_of(tokens)
        low = np.where(np.arange(prompts.shape[1]) % 2, self.modulus, 0)
        return {"values": Draw(prompts - low)}

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        total, product = np.zeros(len(prompts), dtype=np.int64), prompts[:, 0].copy()
        names = np.array([OPERATORS.index(operator) for operator in self.operators])
        for j in range(1, length):
            operator, number = names[prompts[:, 2 * j - 1] - self.modulus], prompts[:, 2 * j]
            times = operator == 2
            total = np.where(times, total, total + product) % self.modulus
            product = np.where(times, product * number, np.where(operator == 1, -number, number)) % self.modulus
        return np.asarray((total + product) % self.modulus)[:, None]

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        marginals = np.zeros((2 * length - 1, self.vocabulary.size))
        marginals[::2, : self.modulus] = 1 / self.modulus
        marginals[1::2, self.modulus : -2] = 1 / len(self.operators)
        return marginals

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        m = self.modulus
        number = np.arange(m)
        # law[t, p]: the sum of the complete terms is t, and the signed product so far is p.
        law = np.zeros((m, m))
        law[0] = 1 / m
        closed, plus = (number[:, None] + number) % m, np.full((m, m), 1 / m)
        product = (number[:, None] * number) % m
        for _ in range(length - 1):
            summed = np.bincount(closed.reshape(-1), law.reshape(-1), m)[:, None] * plus
            multiplied = np.zeros((m, m))
            np.add.at(multiplied.T, product, law.T[:, None] / m)
            times = self.operators.count("*") / len(self.operators)
            law = times * multiplied + (1 - times) * summed
        return np.append(np.bincount(closed.reshape(-1), law.reshape(-1), m), np.zeros(len(self.operators) + 2))[None]

    def answer(self, prompt: tuple[int, ...]) -> int:
        expression = "".join(self.vocabulary.names[token] for token in prompt)
        total = 0
        for term in expression.replace("-", "+-").split("+"):
            product = 1
            for factor in term.split("*"):
                product *= int(factor)
            total += product
        return total % self.modulus


@register
class CompareNumbers(FixedFormat):
    """Whether one number is smaller: ``BOS a_1 .. a_n < b_1 .. b_n = r EOS``, r = 1 if a < b. The length is n, the
    number of digits.

    IDs: s - 1 + j for digit j of either number, s + n for ``<`` and ``=``, s for r. All digits are sources of r. That
    of EOS is ``=``.

    Attributes:
        base: digits are drawn uniformly from 0 .. base - 1, including the first one.
    """

    base: int = 10

    @classmethod
    def examples(cls) -> "tuple[CompareNumbers, ...]":
        return (cls(base=3),)

    def check(self) -> None:
        whole("base", self.base, 2)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return prompt_vocabulary([*map(str, range(self.base)), "<", "yes", "no"], *["data"] * self.base, "cue")

    def prompt_length(self, length: int) -> int:
        return 2 * length + 1

    def response_length(self, length: int) -> int:
        return 1

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        digits = drawn_tokens(stream, length, start, len(out), 2 * length, self.base)
        out[:, :length], out[:, length], out[:, length + 1 :] = digits[:, :length], self.base, digits[:, length:]

    def _digits(self, prompts: Ints) -> Ints:
        return np.delete(prompts, prompts.shape[1] // 2, axis=1)

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        digits = self._digits(prompts)
        return bool(((digits >= 0) & (digits < self.base)).all() and (prompts[:, length] == self.base).all())

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        return {"values": Draw(self._digits(self.prompts_of(tokens)[0]))}

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        difference = np.sign(prompts[:, length + 1 :] - prompts[:, :length])
        # The first digit that differs decides.
        first = (difference != 0).argmax(axis=1)[:, None]
        smaller = np.take_along_axis(difference, first, axis=1) > 0
        return np.where(smaller, self.base + 1, self.base + 2)

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        marginals = np.zeros((2 * length + 1, self.vocabulary.size))
        marginals[:, : self.base] = 1 / self.base
        marginals[length] = np.eye(self.vocabulary.size)[self.base]
        return marginals

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        smaller = (1 - float(self.base) ** -length) / 2
        return np.array([[0.0] * (self.base + 1) + [smaller, 1 - smaller, 0.0, 0.0]])

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        places = range(start, start + length)
        return [[0, *places, start + length, *places, start + length, start, 0]]

    def slot_sources(self, length: int) -> list[list[int]]:
        return [[*range(1, length + 1), *range(length + 2, 2 * length + 2)], [2 * length + 2]]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        sign = tokens.index(self.base)
        a, b = list(tokens[1:sign]), list(tokens[sign + 1 : equals])
        answer = self.vocabulary.token("yes" if a < b else "no")
        sources = [place for place in range(1, equals) if place != sign]
        return [(sources, answer), ([equals], self.end)]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        sign, ids = tokens.index(self.base), []
        for t, token in enumerate(tokens):
            if token == self.end:
                ids.append(0)
            elif t <= 2 * sign:
                ids.append(t if t <= sign else t - sign)
            else:
                ids.append(1)
        return [ids]
