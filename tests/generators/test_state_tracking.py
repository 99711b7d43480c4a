"""Word problems and random automata: beside products of permutation matrices, and mutants."""

import numpy as np
import pytest
from generators.mutants import catches, mutant

from sparsity_lab.generators import (
    Alternating,
    Cyclic,
    Generated,
    Group,
    ParityScratchpad,
    RandomAutomaton,
    Stream,
    Symmetric,
    WordProblem,
)
from sparsity_lab.settings import SettingError

GROUPS: list[tuple[Group, int]] = [
    (Cyclic(n=7), 7),
    (Symmetric(n=2), 2),
    (Symmetric(n=3), 6),
    (Symmetric(n=5), 120),
    (Symmetric(n=6), 720),
    (Alternating(n=3), 3),
    (Alternating(n=5), 60),
    (Generated(), 24),
    # The quaternions, as rotations of their own eight elements.
    (Generated(generators=((2, 3, 4, 1, 6, 7, 8, 5), (5, 8, 7, 6, 3, 2, 1, 4))), 8),
]


@pytest.mark.parametrize(("group", "order"), GROUPS, ids=str)
def test_groups_have_their_order_and_are_closed(group: Group, order: int) -> None:
    elements = group.elements()
    assert len(set(elements)) == order
    assert elements[: len(group.generating_set())] == group.generating_set()
    some = elements[:: max(1, order // 12)]
    assert {tuple(b[i] for i in a) for a in some for b in some} <= set(elements)


def matrix(element: tuple[int, ...]) -> np.ndarray:
    """Row vectors times this permute as the element does: e_i goes to e_(element[i])."""
    return np.eye(len(element), dtype=int)[list(element)]


@pytest.mark.parametrize("letters", ["elements", "generators"])
@pytest.mark.parametrize(("group", "order"), GROUPS[:-3], ids=str)
def test_products_of_matrices(group: Group, order: int, letters: str) -> None:
    if letters == "generators" and len(group.generating_set()) == 1:
        pytest.skip("one letter says nothing")
    task = WordProblem(group=group, letters=letters)  # type: ignore[arg-type]
    elements = group.elements()
    for row in task.sample(Stream(seed=3), 0, 10, 9).tokens.tolist():
        product = np.eye(len(elements[0]), dtype=int)
        for letter, answer in zip(row[1:10], row[11:20], strict=True):
            assert letter < task.num_inputs
            product = product @ matrix(elements[letter])
            assert (product == matrix(elements[answer])).all()


def test_parity_is_the_word_problem_of_two_elements() -> None:
    parity = ParityScratchpad().sample(Stream(seed=2), 0, 50, 13).tokens
    word = WordProblem(group=Cyclic(n=2)).sample(Stream(seed=2), 0, 50, 13).tokens
    # The rotation by one comes first among the elements, so that 0 and 1 change places.
    assert WordProblem(group=Cyclic(n=2)).vocabulary.names[:2] == ("1", "0")
    assert ((word[:, 1:14] == 1 - parity[:, 1:14]).sum(dim=1) >= 0).all()
    assert (word[:, 15:28] == (1 - word[:, 1:14]).cumsum(dim=1) % 2 ^ 1).all()


def test_answers_alone_are_the_last_of_the_scratchpad() -> None:
    for whole, last in [
        (WordProblem(group=Alternating(n=4)), WordProblem(group=Alternating(n=4), scratchpad=False)),
        (RandomAutomaton(maps=1), RandomAutomaton(maps=1, scratchpad=False)),
    ]:
        steps, answers = (task.sample(Stream(), 0, 100, 8).tokens for task in (whole, last))
        assert (steps[:, :10] == answers[:, :10]).all()
        assert (steps[:, -2] == answers[:, -2]).all()


def test_automata_are_made_of_what_was_asked_for() -> None:
    task = RandomAutomaton(num_states=7, permutations=3, resets=2, maps=2, automaton_seed=1)
    table = task.transitions
    assert table.shape == (7, 7)
    assert all(len(set(column)) == 7 for column in table.T[:3].tolist())
    assert all(len(set(column)) == 1 for column in table.T[3:5].tolist())
    assert all(1 < len(set(column)) < 7 for column in table.T[5:].tolist())
    assert task.vocabulary.names[:7] == ("p0", "p1", "p2", "r0", "r1", "m0", "m1")
    other = RandomAutomaton(num_states=7, permutations=3, resets=2, maps=2, automaton_seed=6)
    assert (other.transitions != table).any()


def test_laws_by_hand() -> None:
    """Uniform factors make all products uniform; generators reach few elements in few steps."""
    uniform = WordProblem(group=Symmetric(n=3)).response_marginals(3)
    assert np.allclose(uniform[:, :6], 1 / 6)
    task = WordProblem(group=Symmetric(n=3), letters="generators")
    one_step, two_steps = task.response_marginals(2)
    assert one_step[:2].tolist() == [0.5, 0.5]
    # Swap twice, or rotate twice, or one after the other: four products, all different.
    assert sorted(two_steps[:6].tolist()) == [0.0, 0.0, 0.25, 0.25, 0.25, 0.25]
    reset = RandomAutomaton(num_states=4, permutations=0, resets=2)
    assert (np.sort(reset.response_marginals(5)[:, reset.first_state_token :])[:, -2:] == 0.5).all()


def test_refusals() -> None:
    for make, message in [
        (lambda: Symmetric(n=7), "n: expected at most 6, got 7"),
        (lambda: Cyclic(n=1), "n: expected a whole number of at least 2, got 1"),
        (lambda: Generated(generators=((1, 3),)), r"generators\[0\]: expected the numbers 1 to 2 in some order"),
        (lambda: Generated(generators=()), "generators: expected one permutation or more"),
        (
            lambda: Generated(generators=((2, 3, 4, 5, 6, 7, 1), (2, 1, 3, 4, 5, 6, 7))),
            "generators: they generate a group of more than 1000 elements",
        ),
        (
            lambda: RandomAutomaton(permutations=0, resets=0),
            "permutations: expected at least two inputs of any kind, got 0",
        ),
        (lambda: RandomAutomaton(permutations=0, resets=1), "expected at least two inputs of any kind, got 1"),
        (
            lambda: WordProblem(group=Cyclic(), letters="generators"),
            "letters: expected 'elements', since the group has",
        ),
        (lambda: Generated(generators=((1,),)), r"generators\[0\]: expected a permutation of two points or more"),
        (lambda: RandomAutomaton(num_states=1), "num_states: expected a whole number of at least 2, got 1"),
    ]:
        with pytest.raises(SettingError, match=message):
            make()


def the_other_order(self: WordProblem, prompts: np.ndarray, length: int) -> np.ndarray:
    """x_j q_(j-1) in place of q_(j-1) x_j: the same in commutative groups alone."""
    elements, products = self.group.elements(), []
    for word in prompts.tolist():
        product, states = tuple(range(len(elements[0]))), []
        for letter in word:
            product = tuple(product[i] for i in elements[letter])
            states.append(elements.index(product))
        products.append(states)
    return np.array(products).reshape(len(prompts), length)


def more_resets(self: RandomAutomaton, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    RandomAutomaton.draw_prompts(self, stream, start, out, length)
    rows = np.arange(start, start + len(out)) % 5 == 0
    out[rows, :] = self.num_inputs - 1


def test_mutants() -> None:
    word = WordProblem(group=Symmetric(n=3))
    assert catches("rule", mutant(word, respond=the_other_order))
    assert catches("token_marginals", mutant(RandomAutomaton(), draw_prompts=more_resets))
    assert catches("label_balance", mutant(RandomAutomaton(), draw_prompts=more_resets))
    assert (
        the_other_order(WordProblem(group=Cyclic(n=4)), np.array([[0, 1, 2]]), 3)
        == WordProblem(group=Cyclic(n=4)).respond(np.array([[0, 1, 2]]), 3)
    ).all()
