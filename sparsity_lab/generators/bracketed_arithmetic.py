"""``BracketedArithmetic``: the value modulo m of an expression with brackets.

The grammar is that of Deletang et al. (arXiv 2207.02098). The layout and the position IDs are this lab's. Expressions
are drawn exactly: by the published law, or uniformly by counting over the grammar.
"""

from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.modular_arithmetic import OPERATORS, check_modulus
from sparsity_lab.generators.response_layout import OneAnswer, prompt_vocabulary
from sparsity_lab.generators.stream import Floats, Ints, Stream, bounded, open_unit
from sparsity_lab.generators.task import Draw
from sparsity_lab.settings import SettingError, register

_LONGEST = 1000  # the law of the tokens takes quadratic time
_VALUE, _OPEN, _CLOSE, _FIRST_OPERATOR, _BETWEEN = 0, 1, 2, 3, 6
_SHORTEST = 5  # the shortest expression of two others

Shape = Literal["published", "uniform"]


@register
class BracketedArithmetic(OneAnswer):
    """The value of an expression with brackets modulo m: ``BOS x_1 .. x_n = r EOS``. The length is n, the number of
    tokens of x.

    Expressions of up to four tokens are ``d``, ``-d``, ``(d)`` and ``(-d)`` with a digit d. Longer ones are two
    expressions in brackets with an operator between them, such as ``((2*3)--4)``.

    IDs: s for the expression, s + 1 for ``=``, s for r. The sources of r are the whole expression; that of EOS is
    ``=``.

    Attributes:
        modulus: m. Digits are drawn uniformly from 0 .. m - 1.
        operators: operators between expressions, drawn uniformly: some of ``"+-*"``.
        shape: ``"published"``: the length of the left of two expressions is uniform over the possible ones.
            ``"uniform"``: all expressions of n tokens are equally likely.
    """

    modulus: int = 5
    operators: str = OPERATORS
    shape: Shape = "published"
    certified_lengths = (8, 24)

    @classmethod
    def examples(cls) -> "tuple[BracketedArithmetic, ...]":
        return cls(), cls(modulus=3, operators="+", shape="uniform")

    def check(self) -> None:
        check_modulus(self.modulus, self.operators)

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if length > _LONGEST:
            raise SettingError("length", f"at most {_LONGEST} for {self}", length)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        signs = [sign for sign in OPERATORS if sign in self.operators or sign == "-"]
        return prompt_vocabulary([*map(str, range(self.modulus)), *signs, "(", ")"])

    @cached_property
    def _kinds(self) -> NDArray[np.int8]:
        """The kind of each token: a value, a bracket, an operator, or none of these."""
        of_signs = {"(": _OPEN, ")": _CLOSE} | {sign: _FIRST_OPERATOR + i for i, sign in enumerate(OPERATORS)}
        kinds = [_VALUE] * self.modulus + [
            of_signs.get(name, _BETWEEN) for name in self.vocabulary.names[self.modulus :]
        ]
        return np.array(kinds, dtype=np.int8)

    def prompt_length(self, length: int) -> int:
        return length

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        words = stream.words("expression", length, start, len(out), length)
        out[:] = bounded(words, self.modulus)
        token = self.vocabulary.token
        operators = np.array([token(operator) for operator in self.operators])
        lengths, cumulative = _splits(self.shape, self.modulus, len(self.operators), length)
        rows, first, size = np.arange(len(out)), np.zeros(len(out), dtype=np.int64), np.full(len(out), length)
        while len(rows):
            # Brackets and signs of one-digit expressions.
            bracketed, negative = size > 2, size % 2 == 0
            short = size < _SHORTEST
            at = short & negative
            out[rows[at], (first + bracketed)[at]] = token("-")
            out[rows[bracketed], first[bracketed]] = token("(")
            out[rows[bracketed], (first + size - 1)[bracketed]] = token(")")
            rows, first, size = rows[~short], first[~short], size[~short]
            left = 1 + np.searchsorted(cumulative, size + open_unit(words[rows, first]), side="right") - lengths[size]
            sign = first + 1 + left
            out[rows, sign] = operators[bounded(words[rows, sign], len(operators))]
            rows = np.concatenate([rows, rows])
            first, size = np.concatenate([first + 1, sign + 1]), np.concatenate([left, size - 3 - left])

    def _valued(self, prompts: Ints) -> tuple[Ints, Bool[np.ndarray, " B"]]:
        """The value of each prompt, and whether it is an expression, which means that it reduces to one value step by
        step."""
        B, L = prompts.shape
        kind = np.full((B, L + 1), _BETWEEN, dtype=np.int8)
        kind[:, :-1] = self._kinds[prompts]
        kind, value = kind.reshape(-1), np.pad(prompts, ((0, 0), (0, 1))).reshape(-1)
        at = np.flatnonzero(_signs(kind))
        value[at + 1] = -value[at + 1] % self.modulus
        kind, value = np.delete(kind, at), np.delete(value, at)
        at = np.flatnonzero((kind[:-2] == _OPEN) & (kind[1:-1] == _VALUE) & (kind[2:] == _CLOSE))
        kind, value = (np.delete(one, np.concatenate([at, at + 2])) for one in (kind, value))
        allowed = np.isin(np.arange(_BETWEEN + 1), [_FIRST_OPERATOR + OPERATORS.index(one) for one in self.operators])
        while len(kind) > 4:
            inner = (kind[:-4] == _OPEN) & (kind[1:-3] == _VALUE) & (kind[3:-1] == _VALUE) & (kind[4:] == _CLOSE)
            at = np.flatnonzero(inner & allowed[kind[2:-2]])
            if not len(at):
                break
            a, b, operator = value[at + 1], value[at + 3], kind[at + 2] - _FIRST_OPERATOR
            value[at] = np.choose(operator, [a + b, a - b, a * b]) % self.modulus
            kind[at] = _VALUE
            gone = (at[:, None] + np.arange(1, 5)).reshape(-1)
            kind, value = np.delete(kind, gone), np.delete(value, gone)
        ends = np.flatnonzero(kind == _BETWEEN)
        if len(ends) != B:  # some token cannot be in an expression
            return np.zeros(B, dtype=np.int64), np.zeros(B, dtype=bool)
        one = (np.diff(ends, prepend=-1) == 2) & (kind[np.maximum(ends - 1, 0)] == _VALUE)
        return np.where(one, value[np.maximum(ends - 1, 0)], 0), one

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        return bool(self._valued(prompts)[1].all())

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return self._valued(prompts)[0][:, None]

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        prompts, length = self.prompts_of(tokens)
        kind = self._kinds[prompts]
        most = (length + 3) // 4
        operator = (kind >= _FIRST_OPERATOR) & ~_signs(np.pad(kind, ((0, 0), (0, 1)), constant_values=_BETWEEN))[
            :, :-1
        ]
        signs = np.array([self.operators.find(name) for name in self.vocabulary.names])
        columns = [_in_order(prompts, kind == _VALUE, most), _in_order(signs[prompts], operator, most - 1)]
        if length >= _SHORTEST:
            depth = (kind == _OPEN).cumsum(axis=1) - (kind == _CLOSE).cumsum(axis=1)
            columns.append((operator & (depth == 1)).argmax(axis=1)[:, None])  # where the outermost one is
        return {"values": Draw(np.concatenate(columns, axis=1))}

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        names = self.vocabulary.names
        kinds = _kind_laws(self.shape, self.modulus, len(self.operators), length)
        marginals = np.zeros((length, len(names)))
        marginals[:, : self.modulus] = kinds[:, :1] / self.modulus
        for operator in self.operators:
            marginals[:, names.index(operator)] = kinds[:, 3] / len(self.operators)
        marginals[:, names.index("-")] += kinds[:, 4]
        marginals[:, names.index("(")], marginals[:, names.index(")")] = kinds[:, 1], kinds[:, 2]
        return marginals

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        law = np.zeros((1, self.vocabulary.size))
        law[0, : self.modulus] = _value_laws(self.shape, self.modulus, self.operators, length)[length]
        return law

    def answer(self, prompt: tuple[int, ...]) -> int:
        text = [self.vocabulary.names[token] for token in prompt]
        value, end = self._parsed(text, 0)
        if end != len(text):
            raise ValueError(f"expected one expression, got {''.join(text)}")
        return value % self.modulus

    def _parsed(self, text: list[str], at: int) -> tuple[int, int]:
        """The value of the expression that begins here, and its end."""
        if text[at].isdigit():
            return int(text[at]), at + 1
        if text[at] == "-" and text[at + 1].isdigit():
            return -int(text[at + 1]), at + 2
        if text[at] != "(":
            raise ValueError(f"expected an expression at {at}, got {''.join(text)}")
        left, end = self._parsed(text, at + 1)
        if text[end] == ")" and text[at + 1] != "(":
            return left, end + 1
        operator = text[end]
        right, close = self._parsed(text, end + 1)
        if operator not in self.operators or text[close] != ")":
            raise ValueError(f"expected an operator and a bracket, got {''.join(text)}")
        return {"+": left + right, "-": left - right, "*": left * right}[operator], close + 1


def _signs(kind: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Where a minus is a sign: after a bracket, after an operator, or at the start."""
    before = np.concatenate([np.full_like(kind[..., :1], _BETWEEN), kind[..., :-1]], axis=-1)
    after = np.concatenate([kind[..., 1:], np.full_like(kind[..., :1], _BETWEEN)], axis=-1)
    minus = kind == _FIRST_OPERATOR + OPERATORS.index("-")
    return np.asarray(minus & (before != _VALUE) & (before != _CLOSE) & (after == _VALUE))


def _in_order(values: Ints, chosen: NDArray[np.bool_], most: int) -> Ints:
    """(B, most) the chosen values of each row, padded with -1."""
    found = np.full((len(values), most), -1)
    rows, places = chosen.nonzero()
    found[rows, (chosen.cumsum(axis=1) - 1)[rows, places]] = values[rows, places]
    return found


@lru_cache(maxsize=64)
def _shares(shape: Shape, modulus: int, operators: int, longest: int) -> tuple[Floats, ...]:
    """For each length from 0, the probabilities that the left of its two expressions has length 1, 2, and so on."""
    shares = [np.ones(0)] * min(longest + 1, _SHORTEST)
    log_counts = np.full(longest + 1, np.log(modulus))
    for size in range(_SHORTEST, longest + 1):
        logs = log_counts[1 : size - 3] + log_counts[size - 4 : 0 : -1]
        log_counts[size] = np.log(operators) + np.logaddexp.reduce(logs)
        shares.append(
            np.full(size - 4, 1 / (size - 4)) if shape == "published" else np.exp(logs - np.logaddexp.reduce(logs))
        )
    return tuple(shares)


@lru_cache(maxsize=8)
def _splits(shape: Shape, modulus: int, operators: int, longest: int) -> tuple[Ints, Floats]:
    """A table for ``searchsorted``: the start of each length's entries, and in one ascending row each length plus the
    cumulative probabilities of the left expression's length."""
    shares = _shares(shape, modulus, operators, longest)
    begins = np.cumsum([0, *(len(one) for one in shares)])[:-1]
    tables = [size + np.append(one.cumsum()[:-1], 1.0) for size, one in enumerate(shares) if len(one)]
    return begins, np.concatenate([*tables, np.ones(0)])


@lru_cache(maxsize=8)
def _kind_laws(shape: Shape, modulus: int, operators: int, length: int) -> Floats:
    """(length, 5): probability that each token is a digit, an opening or closing bracket, an operator or a sign."""
    digit, opening, closing, _, sign = np.eye(5)
    laws = [np.zeros((0, 5)), np.stack([digit]), np.stack([sign, digit])]
    laws += [np.stack([opening, digit, closing]), np.stack([opening, sign, digit, closing])]
    for size, shares in list(enumerate(_shares(shape, modulus, operators, length)))[_SHORTEST:]:
        law = np.zeros((size, 5))
        law[0], law[-1] = opening, closing
        law[2 : size - 2, 3] = shares
        for left, share in enumerate(shares.tolist(), 1):
            law[1 : left + 1] += share * laws[left]
            law[left + 2 : -1] += share * laws[size - 3 - left]
        laws.append(law)
    return laws[length]


@lru_cache(maxsize=8)
def _value_laws(shape: Shape, modulus: int, operators: str, longest: int) -> Floats:
    """(longest + 1, modulus): law of the value of an expression of each length."""
    number = np.arange(modulus)
    results = {"+": number[:, None] + number, "-": number[:, None] - number, "*": number[:, None] * number}
    laws = np.full((longest + 1, modulus), 1 / modulus)
    for size, shares in list(enumerate(_shares(shape, modulus, len(operators), longest)))[_SHORTEST:]:
        both = (shares[:, None] * laws[1 : size - 3]).T @ laws[size - 4 : 0 : -1]
        found = [np.bincount((results[one] % modulus).reshape(-1), both.reshape(-1), modulus) for one in operators]
        laws[size] = np.mean(found, axis=0)
    return laws
