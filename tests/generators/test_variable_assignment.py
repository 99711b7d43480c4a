"""VariableAssignment: rules, IDs by hand, the law of the statements, and mutants."""

from collections import Counter

import numpy as np
import pytest
from generators.mutants import catches, mutant
from scipy import stats

from sparsity_lab.generators import Batch, Stream, VariableAssignment

TASK = VariableAssignment(hops=2, num_names=6, num_constants=2)
A, B, C, D, E, ONE, EQUALS, END = 0, 1, 2, 3, 4, 7, 8, 9
#        b = a | d = c | a = 1   | c = b | ask d:  c   b  a ..
PROMPT = [B, A, D, C, A, ONE, C, B]


def whole(query: int, *response: int) -> np.ndarray:
    return np.array([[END, *PROMPT, query, EQUALS, *response, END]])


def test_by_hand() -> None:
    """Of the chain a = 1, b = a, c = b, d = c, the variable two hops from the constant's is c."""
    prompts = np.array([[*PROMPT, C]])
    assert TASK.are_prompts(prompts, 4)
    assert TASK.respond(prompts, 4).tolist() == [[B, A, ONE]]
    tokens = whole(C, B, A, ONE)
    assert TASK.find_sources(tokens, 4).tolist() == [[[7, 8, 9], [1, 2, 11], [5, 6, 12], [13, -1, -1]]]


def test_ids_by_hand() -> None:
    """Both tokens of statement i have ID i. Query, ``=`` and variables: the statement that assigns them. Or, without
    look-ahead, what was read has the ID of where it was read."""
    tokens = whole(C, B, A, ONE)
    statements = [1, 1, 2, 2, 3, 3, 4, 4]
    assert TASK.find_position_ids(tokens, 4)[0].tolist() == [[0, *statements, 4, 4, 1, 3, 0, 0]]
    plain = TASK.replace(look_ahead=False)
    assert plain.find_position_ids(tokens, 4)[0].tolist() == [[0, *statements, 0, 0, 4, 1, 3, 0]]
    assert TASK.largest_position_id(4) == 4


@pytest.mark.parametrize(
    "prompt",
    [
        [*PROMPT, D],  # three hops
        [*PROMPT, B],  # one hop
        [*PROMPT, E],  # never assigned
        [B, A, D, C, A, C, C, B, C],  # no constant, a circle
        [B, A, B, C, A, ONE, C, B, C],  # b assigned twice
        [B, ONE, D, C, A, ONE, C, B, C],  # two constants
        [B, A, D, D, A, ONE, C, B, C],  # d = d
        [B, A, D, E, A, ONE, C, B, C],  # d = e, which is not assigned
    ],
)
def test_what_is_no_prompt(prompt: list[int]) -> None:
    assert not TASK.are_prompts(np.array([prompt]), 4)


@pytest.mark.parametrize(
    "prompt",
    [
        [B, D, D, C, A, ONE, C, B, C],  # b = d, d = c, c = b: a circle
        [B, E, D, C, A, ONE, C, B, C],  # c = b, b = e, which is not assigned
        [B, A, B, C, A, ONE, C, B, C],  # b assigned twice
    ],
)
def test_the_observer_ends_and_refuses_what_leads_nowhere(prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        TASK.solve((END, *prompt, EQUALS, B, A, ONE, END))


def test_certified_lengths_are_lengths() -> None:
    for hops, num_names in [(0, 1), (2, 3), (2, 4), (2, 9)]:
        task = VariableAssignment(hops=hops, num_names=num_names)
        for length in task.certified_lengths:
            task.check_length(length)


def rows_of(task: VariableAssignment, batch: Batch, length: int) -> list[tuple[dict[int, int], int, list[int]]]:
    """(assignments, query, response) of each sequence."""
    found = []
    for row in batch.tokens.tolist():
        statements = dict(zip(row[1 : 2 * length : 2], row[2 : 2 * length + 1 : 2], strict=True))
        assert len(statements) == length
        found.append((statements, row[2 * length + 1], row[2 * length + 3 : -1]))
    return found


@pytest.mark.parametrize(("hops", "length", "num_names"), [(0, 1, 1), (0, 5, 9), (2, 3, 3), (3, 12, 12), (5, 20, 40)])
def test_rule(hops: int, length: int, num_names: int) -> None:
    task = VariableAssignment(hops=hops, num_names=num_names)
    for statements, query, response in rows_of(task, task.sample(Stream(seed=4), 0, 200, length), length):
        expected = [query]
        while expected[-1] in statements:
            expected.append(statements[expected[-1]])
        assert response == expected[1:]
        assert len(response) == hops + 1
        assert response[-1] >= num_names
        reached = list(statements)
        for _ in range(length):
            reached = [statements.get(variable, variable) for variable in reached]
        assert set(reached) == {response[-1]}  # all lead to the constant


def test_hops_and_statements_are_separate_dials() -> None:
    assert [VariableAssignment(hops=h).sequence_length(20) for h in (0, 3, 6)] == [45, 48, 51]
    assert VariableAssignment(hops=3).sequence_length(40) == 88


def test_the_tree_of_assignments_has_its_law() -> None:
    """Four statements, one hop: b = a is given, c hangs on a or b, d on a, b or c, all alike. So of the six trees
    each has probability 1/6; told apart by how many hang on the queried b and on the deepest other one."""
    task = VariableAssignment(hops=1, num_names=4)
    shapes: Counter[tuple[int, int]] = Counter()
    for statements, query, response in rows_of(task, task.sample(Stream(seed=5), 0, 12_000, 4), 4):
        on_query = sum(value == query for value in statements.values())
        on_root = sum(value == response[0] for value in statements.values())
        shapes[on_query, on_root] += 1
    #            c, d on: a a    a b, b a   a c    b b    b c
    expected = {(0, 3): 1, (1, 2): 2, (0, 2): 1, (2, 1): 1, (1, 1): 1}
    assert set(shapes) == set(expected)
    counts = np.array([shapes[shape] for shape in expected])
    assert stats.chisquare(counts, 2000 * np.array(list(expected.values()))).pvalue > 1e-6


def test_names_and_order_are_uniform_permutations() -> None:
    """All 24 orders of three of four names, and all six places of the two statements of a chain, at 1e-6 each."""
    task = VariableAssignment(hops=0, num_names=4)
    tokens = task.sample(Stream(seed=6), 0, 12_000, 3).tokens.numpy()
    codes = tokens[:, 1:6:2] @ np.array([16, 4, 1])
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-6
    chain = VariableAssignment(hops=1, num_names=3)
    sources = chain.sample(Stream(seed=6), 0, 12_000, 3).sources
    assert sources is not None
    places = sources[:, 8:10, 0].numpy() // 2 @ np.array([3, 1])
    _, counts = np.unique(places, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-6


def unshuffled(self: VariableAssignment, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """Half of the sequences begin with the queried variable's statement."""
    VariableAssignment.draw_prompts(self, stream, start, out, length)
    for row in out[-start % 2 :: 2]:
        at = 2 * row[:-1:2].tolist().index(row[-1])
        row[[0, 1, at, at + 1]] = row[[at, at + 1, 0, 1]]


def favorite_name(self: VariableAssignment, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """Names 0 and 1 are swapped where the query is 1: it is 0 too often."""
    VariableAssignment.draw_prompts(self, stream, start, out, length)
    rows = out[:, -1] == 1
    swapped = np.arange(self.num_names + self.num_constants)
    swapped[:2] = 1, 0
    out[rows] = swapped[out[rows]]


def one_hop_early(self: VariableAssignment, prompts: np.ndarray, length: int) -> np.ndarray:
    """The last variable before the constant is skipped."""
    response = VariableAssignment.respond(self, prompts, length).copy()
    response[:, -2] = response[:, -1]
    return response


def ids_of_the_right_side(self: VariableAssignment, tokens: np.ndarray, length: int) -> np.ndarray:
    ids = VariableAssignment.find_position_ids(self, tokens, length)
    ids[:, 0, 2 : 2 * length + 1 : 2] += 1
    return ids


def assigned_twice(self: VariableAssignment, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """In few sequences another constant is assigned to the query in place of one of the other variables."""
    VariableAssignment.draw_prompts(self, stream, start, out, length)
    for row in out[-start % 100 :: 100]:
        spare = next(at for at in range(0, 2 * length, 2) if row[at] != row[-1])
        row[spare], row[spare + 1] = row[-1], self.num_names


@pytest.mark.parametrize(
    ("hops", "method", "broken", "check"),
    [
        (2, "draw_prompts", unshuffled, "source_places"),
        (2, "draw_prompts", favorite_name, "token_marginals"),
        (0, "draw_prompts", assigned_twice, "second_answer"),
        (2, "respond", one_hop_early, "rule"),
        (2, "find_position_ids", ids_of_the_right_side, "position_ids"),
    ],
)
def test_mutants(hops: int, method: str, broken: object, check: str) -> None:
    task = mutant(VariableAssignment(hops=hops, num_names=9), **{method: broken})  # type: ignore[arg-type]
    assert catches(check, task)
