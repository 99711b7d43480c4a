"""State tracking: the product of a word in a group, and the state of an automaton after a word.

``WordProblem`` multiplies elements of a permutation group. ``RandomAutomaton`` runs a random automaton. If all states
are written out, each target depends on two tokens. The last state alone depends on the whole word.

Word problems of groups are the standard probe of state tracking (Liu et al., arXiv 2210.10749; Merrill et al., arXiv
2404.08819). The layout, the parameters and the position IDs are this lab's.
"""

from abc import abstractmethod
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.response_layout import OneAnswer, RunningResponse, prompt_vocabulary
from sparsity_lab.generators.stream import Ints, Stream, bounded, permutations, whole
from sparsity_lab.generators.task import Truth
from sparsity_lab.generators.uniform_prompt import UniformPrompt
from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError, register

Permutation = tuple[int, ...]

_LARGEST_GROUP = 1000


def _check_between(name: str, value: int, least: int, most: int) -> None:
    if whole(name, value, least) > most:
        raise SettingError(name, f"at most {most}", value)


class Group(Setting, family="group"):
    """A finite group of permutations, given by generators."""

    largest = LARGEST_SIZE

    @abstractmethod
    def generating_set(self) -> tuple[Permutation, ...]:
        """Different permutations of 0 .. n - 1 in one-line notation, whose products are the group."""

    def name(self, element: Permutation) -> str:
        """A readable form of an element: the images of 1, 2, .., in one-line notation."""
        return ("" if len(element) < 10 else ".").join(str(i + 1) for i in element)

    def elements(self) -> tuple[Permutation, ...]:
        """All elements, the generators first.

        Raises:
            SettingError: there are more than 1000 elements.

        >>> from sparsity_lab.generators import Cyclic
        >>> Cyclic(n=3).elements()
        ((1, 2, 0), (2, 0, 1), (0, 1, 2))
        """
        return _closure(self.generating_set())

    def check(self) -> None:
        self.elements()


@register
class Cyclic(Group):
    """Z_n, the rotations of n points. The word problem is addition modulo n.

    Attributes:
        n: number of elements, at least 2.
    """

    n: int = 5

    def check(self) -> None:
        _check_between("n", self.n, 2, _LARGEST_GROUP)

    def generating_set(self) -> tuple[Permutation, ...]:
        return (tuple((i + 1) % self.n for i in range(self.n)),)

    def name(self, element: Permutation) -> str:
        """The number of points by which it rotates."""
        return str(element[0])


@register
class Symmetric(Group):
    """S_n, all permutations of n points. From n = 5 on, its word problem is complete for NC1.

    Attributes:
        n: number of points, from 2 to 6.
    """

    n: int = 5

    def check(self) -> None:
        _check_between("n", self.n, 2, 6)

    def generating_set(self) -> tuple[Permutation, ...]:
        swap, rotation = (1, 0, *range(2, self.n)), (*range(1, self.n), 0)
        return (swap, rotation) if self.n > 2 else (swap,)


@register
class Alternating(Group):
    """A_n, the even permutations of n points.

    Attributes:
        n: number of points, from 3 to 6.
    """

    n: int = 5

    def check(self) -> None:
        _check_between("n", self.n, 3, 6)

    def generating_set(self) -> tuple[Permutation, ...]:
        # The cycles (1 2 j).
        cycles = []
        for j in range(2, self.n):
            cycle = list(range(self.n))
            cycle[0], cycle[1], cycle[j] = 1, j, 0
            cycles.append(tuple(cycle))
        return tuple(cycles)


@register
class Generated(Group):
    """The group that your own permutations generate.

    >>> Generated(generators=((2, 1, 3), (2, 3, 1)))
    Generated(generators=((2, 1, 3), (2, 3, 1)))

    Attributes:
        generators: permutations in one-line notation, the images of 1, 2, .., as in ``((2, 1, 3), (2, 3, 1))``.
    """

    generators: tuple[tuple[int, ...], ...] = ((2, 1, 3, 4), (2, 3, 4, 1))

    def check(self) -> None:
        size = len(self.generators[0]) if self.generators else 0
        if self.generators and size < 2:
            raise SettingError("generators[0]", "a permutation of two points or more", self.generators[0])
        if not self.generators or len(set(self.generators)) < len(self.generators):
            raise SettingError("generators", "one permutation or more, all different", self.generators)
        for i, generator in enumerate(self.generators):
            if sorted(generator) != list(range(1, size + 1)):
                raise SettingError(f"generators[{i}]", f"the numbers 1 to {size} in some order", generator)
        self.elements()

    def generating_set(self) -> tuple[Permutation, ...]:
        return tuple(tuple(i - 1 for i in generator) for generator in self.generators)


class _StateTracking(RunningResponse, OneAnswer, UniformPrompt):
    """``BOS x_1 .. x_n = q_1 .. q_n EOS`` with q_j = transitions[q_(j-1), x_j]; without ``scratchpad`` only q_n."""

    scratchpad: bool

    @cached_property
    @abstractmethod
    def transitions(self) -> Ints:
        """(states, inputs), the next state."""

    @property
    @abstractmethod
    def first_state(self) -> int:
        """q_0."""

    @property
    @abstractmethod
    def first_state_token(self) -> int:
        """The token of state 0. The tokens of the other states follow."""

    @property
    def num_inputs(self) -> int:
        return int(self.transitions.shape[1])

    def response_length(self, length: int) -> int:
        return length if self.scratchpad else 1

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        transitions = self.transitions
        states = np.empty((length, len(prompts)), dtype=np.int64)
        state = np.full(len(prompts), self.first_state)
        for j, inputs in enumerate(np.ascontiguousarray(prompts.T)):
            state = transitions[state, inputs]
            states[j] = state
        return (states if self.scratchpad else states[-1:]).T + self.first_state_token

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        S, A = self.transitions.shape
        step = np.zeros((S, S))
        np.add.at(step, (np.arange(S)[:, None], self.transitions), 1 / A)
        law = np.eye(S)[self.first_state]
        marginals = np.zeros((length, self.vocabulary.size))
        for row in marginals:
            law = law @ step
            row[self.first_state_token : self.first_state_token + S] = law
        return marginals if self.scratchpad else marginals[-1:]

    def ids_from(self, start: int, length: int) -> list[list[int]]:
        return (RunningResponse if self.scratchpad else OneAnswer).ids_from(self, start, length)

    def slot_sources(self, length: int) -> list[list[int]]:
        return (RunningResponse if self.scratchpad else OneAnswer).slot_sources(self, length)

    @abstractmethod
    def take_steps(self, word: tuple[int, ...]) -> list[int]:
        """The states after each input, by definition."""

    def _answers(self, word: tuple[int, ...]) -> list[int]:
        if not all(0 <= letter < self.num_inputs for letter in word):
            raise ValueError(f"expected inputs from 0 to {self.num_inputs - 1}, got {word}")
        return [self.first_state_token + state for state in self.take_steps(word)]

    def answer(self, prompt: tuple[int, ...]) -> int:
        return self._answers(prompt)[-1]

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        if not self.scratchpad:
            return super().work_out(tokens, equals)
        answers = self._answers(tokens[1:equals])
        steps = [([1 + j, equals + j] if j else [1], answer) for j, answer in enumerate(answers)]
        return [*steps, ([equals], self.end)]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        return (RunningResponse if self.scratchpad else OneAnswer).define_position_ids(self, tokens)


@register
class WordProblem(_StateTracking):
    """Products in a group, one factor after the other: ``BOS x_1 .. x_n = q_1 .. q_n EOS`` with q_j = x_1 x_2 .. x_j.
    The length is n.

    A product xy of permutations takes i to y(x(i)): x acts first.

    IDs: s + 1 .. s + n for the word, s for ``=``, s + 1 .. s + n for the products. The sources of q_j are x_j and
    q_(j-1), or only x_1 for q_1. That of EOS is ``=``. Without a scratchpad, all x have ID s, ``=`` has s + 1, and
    q_n has s with all x as its sources.

    >>> task = WordProblem(group=Cyclic(n=3))
    >>> print(sequence_text(task.sample(Stream(seed=0), 0, 1, 3).view(0)))
    BOS/EOS [1] [1] [2] [=] <1> <2> <1> <BOS/EOS>
            2   3   4   1   2   3   4

    Attributes:
        group: Cyclic, Symmetric, Alternating or Generated.
        letters: the x are drawn uniformly from all ``"elements"``, or only from the ``"generators"``.
        scratchpad: False gives only the last product, the negative control.
    """

    group: Group = Symmetric()
    letters: Literal["elements", "generators"] = "elements"
    scratchpad: bool = True

    @classmethod
    def examples(cls) -> "tuple[WordProblem, ...]":
        return (
            cls(group=Symmetric(n=3)),
            cls(group=Cyclic(n=4), scratchpad=False),
            cls(group=Alternating(n=4), letters="generators"),
        )

    def check(self) -> None:
        if self.letters == "generators" and len(self.group.generating_set()) < 2:
            raise SettingError("letters", "'elements', since the group has one generator", self.letters)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return prompt_vocabulary(map(self.group.name, self.group.elements()))

    @cached_property
    def transitions(self) -> Ints:
        count = len(self.group.elements() if self.letters == "elements" else self.group.generating_set())
        return _products(self.group.elements(), count)

    @property
    def first_state(self) -> int:
        elements = self.group.elements()
        return elements.index(tuple(range(len(elements[0]))))

    @property
    def first_state_token(self) -> int:
        return 0

    def truth(self, length: int) -> Truth:
        # A uniform factor makes the product uniform for any other factors.
        uniform = True if self.letters == "elements" else None
        return self.truth_with(length, label_free_subsets=uniform, label_free_bystanders=uniform)

    def take_steps(self, word: tuple[int, ...]) -> list[int]:
        elements = self.group.elements()
        product, states = tuple(range(len(elements[0]))), []
        for letter in word:
            product = tuple(elements[letter][i] for i in product)
            states.append(elements.index(product))
        return states


@register
class RandomAutomaton(_StateTracking):
    """The states of a random automaton that reads x: ``BOS x_1 .. x_n = q_1 .. q_n EOS``. The length is n.

    The automaton is drawn once from ``automaton_seed``, and starts in state 0. Inputs are uniform. IDs and sources
    are those of ``WordProblem``.

    Attributes:
        num_states: number of states.
        permutations: number of inputs that permute the states, each a uniform permutation.
        resets: number of inputs that lead from all states to one.
        maps: number of inputs with a uniform next state for each state.
        automaton_seed: seed of the automaton, independent of the stream's.
        scratchpad: False gives only the last state.
    """

    num_states: int = 5
    permutations: int = 2
    resets: int = 1
    maps: int = 0
    automaton_seed: int = 0
    scratchpad: bool = True

    @classmethod
    def examples(cls) -> "tuple[RandomAutomaton, ...]":
        return cls(), cls(num_states=3, permutations=1, maps=2, scratchpad=False)

    def check(self) -> None:
        _check_between("num_states", self.num_states, 2, _LARGEST_GROUP)
        for name in ("permutations", "resets", "maps"):
            _check_between(name, getattr(self, name), 0, _LARGEST_GROUP)
        if (inputs := self.permutations + self.resets + self.maps) < 2:
            raise SettingError("permutations", "at least two inputs of any kind", inputs)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        kinds = {"p": self.permutations, "r": self.resets, "m": self.maps}
        inputs = [f"{kind}{i}" for kind, count in kinds.items() for i in range(count)]
        return prompt_vocabulary([*inputs, *(f"q{i}" for i in range(self.num_states))])

    @cached_property
    def transitions(self) -> Ints:
        S, inputs = self.num_states, self.permutations + self.resets + self.maps
        words = Stream(seed=self.automaton_seed, name="automaton").words("transitions", S, 0, inputs, S)
        table = bounded(words, S)
        table[: self.permutations] = permutations(words[: self.permutations])
        resets = slice(self.permutations, self.permutations + self.resets)
        table[resets] = table[resets, :1]
        return np.ascontiguousarray(table.T)

    @property
    def first_state(self) -> int:
        return 0

    @property
    def first_state_token(self) -> int:
        return self.num_inputs

    def take_steps(self, word: tuple[int, ...]) -> list[int]:
        state, states, table = 0, [], self.transitions.tolist()
        for letter in word:
            state = table[state][letter]
            states.append(state)
        return states


@lru_cache(maxsize=64)
def _closure(generators: tuple[Permutation, ...]) -> tuple[Permutation, ...]:
    """The generators, then all other products in the order in which they are found."""
    found = dict.fromkeys(generators)
    new = list(generators)
    while new:
        one = new.pop(0)
        for generator in generators:
            product = tuple(generator[i] for i in one)
            if product not in found:
                found[product] = None
                new.append(product)
        if len(found) > _LARGEST_GROUP:
            raise SettingError("generators", f"they generate a group of more than {_LARGEST_GROUP} elements")
    return tuple(found)


@lru_cache(maxsize=64)
def _products(elements: tuple[Permutation, ...], letters: int) -> Ints:
    """(elements, letters): the index of the product of each element with each letter."""
    images = np.array(elements, dtype=np.int32)
    # A unique number for each element: a weighted sum of its images.
    weights = np.random.Generator(np.random.Philox(0)).integers(1, 2**40, images.shape[1])
    keys = images @ weights
    order = np.argsort(keys)
    assert (np.diff(keys[order]) > 0).all()
    products = np.stack([letter[images] @ weights for letter in images[:letters]], axis=1)
    return np.asarray(order[np.searchsorted(keys[order], products)])
