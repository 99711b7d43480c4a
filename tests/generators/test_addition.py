"""Addition: the sheet's fixture, both formats, the law of the digits by enumeration, and mutants."""

import itertools

import numpy as np
import pytest
from generators.mutants import catches, mutant
from generators.written import answered, ids_between, tokens_of, written

from sparsity_lab.generators import Addition, Stream

RUNNING = Addition(num_operands=3)


def test_fixture() -> None:
    assert answered(Addition(), "653+049", 3) == "653+049=2070"
    assert ids_between(Addition(), 3, start=6) == [[9, 8, 7, 6, 9, 8, 7, 6, 7, 8, 9, 10]]


def test_end_ids_stand_above_the_highest_place() -> None:
    """The symbol before an operand, BOS included, has the ID of the last digit of the sum; ``=`` keeps s."""
    task = Addition(end_ids=True)
    assert task.coupled_ids(3, start=6).tolist() == [[10, 9, 8, 7, 10, 9, 8, 7, 6, 7, 8, 9, 10, 0]]
    assert task.largest_position_id(3) == Addition().largest_position_id(3)
    several = Addition(num_operands=3, end_ids=True)
    assert several.coupled_ids(2)[0, :10].tolist() == [4, 3, 2, 4, 3, 2, 4, 3, 2, 1]
    assert several.coupled_ids(2)[:, 10:].tolist() == RUNNING.coupled_ids(2)[:, 10:].tolist()
    assert several.coupled_ids(2)[1].tolist() == RUNNING.coupled_ids(2)[1].tolist()


def test_carries_through_all_places() -> None:
    assert answered(Addition(), "999+001", 3) == "999+001=0001"
    assert answered(Addition(), "999+999", 3) == "999+999=8991"
    assert answered(Addition(num_operands=10, scratchpad=False), "+".join(["99"] * 10), 2).endswith("=099")
    assert answered(Addition(num_operands=12), "+".join(["99"] * 12), 2).endswith(">9801>8811")


def test_running_sums_by_hand() -> None:
    """The two kinds of ID: place of a digit, and number of an operand or running sum, symbols with what follows."""
    assert answered(RUNNING, "57+48+96", 2) == "57+48+96=000>750>501>102"
    assert ids_between(RUNNING, 2, start=1) == [
        [3, 2, 1, 3, 2, 1, 3, 2, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4],
        [2, 2, 3, 3, 3, 4, 4, 4, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4],
    ]


def test_equal_ids_are_what_a_digit_of_a_running_sum_needs() -> None:
    """Digit j of running sum i shares kind 1 with its two addends' digits j, and kind 2 with operand i."""
    significance, number = RUNNING.coupled_ids(4)
    slots = RUNNING.slot_sources(4)
    equals = len(significance) - len(slots) - 1
    for i, j in itertools.product(range(1, 4), range(4)):
        slot = i * 6 + j
        here = [t for t in slots[slot] if significance[t] == significance[equals + slot + 1]]
        assert len(here) == 2
        assert sorted(number[here].tolist()) == [i, i + 1]
        assert number[equals + slot + 1] == i + 1


@pytest.mark.parametrize(
    ("task", "length"),
    [
        (Addition(), 9),
        (Addition(operand_digits="uniform"), 6),
        (Addition(num_operands=5, scratchpad=False), 4),
        (Addition(num_operands=4), 5),
        (Addition(scratchpad=True), 3),
        (Addition(num_operands=12, operand_digits="uniform"), 2),
        (Addition(base=2), 11),
        (Addition(base=2, num_operands=5), 3),
    ],
    ids=str,
)
def test_rule(task: Addition, length: int) -> None:
    for text in written(task, task.sample(Stream(seed=7), 0, 300, length)):
        prompt, response = text.split("=")
        operands = [int(operand, task.base) for operand in prompt.split("+")]
        assert [len(operand) for operand in prompt.split("+")] == [length] * task.num_operands
        sums = [int(digits[::-1], task.base) for digits in response.split(">")]
        if task.has_scratchpad:
            assert sums == [0, *itertools.accumulate(operands)]
        else:
            assert sums == [sum(operands)]
        assert {len(digits) for digits in response.split(">")} == {task.sum_places(length)}


@pytest.mark.parametrize("prompt", ["57++", "+1557", "155+7+"])
def test_the_observer_refuses_operands_without_digits(prompt: str) -> None:
    whole = [RUNNING.end, *tokens_of(RUNNING, f"{prompt}=000>750>501>102")[0].tolist(), RUNNING.end]
    with pytest.raises(ValueError, match="expected digits on either side"):
        RUNNING.solve(tuple(whole))


def test_running_sums_by_default_for_more_than_two() -> None:
    assert [Addition(num_operands=n).has_scratchpad for n in (2, 3, 4)] == [False, True, True]
    assert Addition(scratchpad=True).num_kinds == 2
    assert Addition(num_operands=4, scratchpad=False).num_kinds == 1


def test_sums_have_room() -> None:
    """One place more up to base operands, two up to base^2."""
    assert [Addition(num_operands=n).sum_places(3) for n in (2, 10, 11, 100, 101)] == [4, 4, 5, 5, 6]
    assert Addition(base=2).sum_places(3) == 4
    assert Addition(base=2, num_operands=3).sum_places(3) == 5


def test_sparse_however_long() -> None:
    assert [Addition().truth(n).k for n in (1, 2, 50)] == [3, 5, 5]
    assert [Addition(num_operands=n).truth(9).k for n in (3, 6)] == [5, 5]
    assert [Addition(num_operands=n, scratchpad=False).truth(9).k for n in (3, 6)] == [7, 13]


def test_largest_id() -> None:
    """N + 2 for N digits, as the sheet says; with running sums the number of operands may be more."""
    assert Addition().largest_position_id(200) == 202
    assert Addition(num_operands=20).largest_position_id(3) == 21


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize(("base", "num", "n"), [(2, 2, 4), (3, 2, 3), (2, 3, 3), (3, 4, 2)])
def test_law_of_the_digits_by_enumeration(base: int, num: int, n: int, uniform: bool) -> None:
    task = Addition(base=base, num_operands=num, scratchpad=num > 2, operand_digits="uniform" if uniform else "fixed")
    # Of the numbers with at most m digits each has probability base^-m.
    sizes = range(1, n + 1) if uniform else [n]
    weight = [sum(base**-m for m in sizes if x < base**m) / len(sizes) for x in range(base**n)]
    declared = task.truth(n).label_distribution
    assert declared is not None
    places = task.sum_places(n)
    exact = np.zeros((num + 1, places, base))
    for operands in itertools.product(range(base**n), repeat=num):
        probability = np.prod([weight[x] for x in operands])
        for i in range(num + 1):
            total = sum(operands[:i])
            exact[i, range(places), [total // base**j % base for j in range(places)]] += probability
    sums = declared[:-1] if num == 2 else np.concatenate([declared[:-1], np.zeros((1, declared.shape[1]))])
    found = sums.reshape(-1, places + (num > 2), declared.shape[1])[:, :places, :base]
    assert found == pytest.approx(exact[-len(found) :], abs=1e-12)


def test_uniform_operands_have_uniform_numbers_of_digits() -> None:
    """Place j is zero with probability 1 - (n - j) / n + (n - j) / n / base."""
    tokens = Addition(operand_digits="uniform").sample(Stream(seed=8), 0, 20_000, 4).tokens
    zero = (tokens[:, 1:5] == 0).double().mean(dim=0).tolist()
    expected = [1 - 0.9 * (4 - j) / 4 for j in (3, 2, 1, 0)]
    assert zero == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(20_000))


def without_carry(self: Addition, prompts: np.ndarray, length: int) -> np.ndarray:
    """The carry into the highest place is lost."""
    response = Addition.respond(self, prompts, length)
    response[:, length] = 0
    return response


def ids_not_reversed(self: Addition, start: int, length: int) -> list[list[int]]:
    """As if the operands were reversed, too."""
    (ids,) = Addition.ids_from(self, start, length)
    return [[0, *ids[length:0:-1], *ids[length + 1 :]]]


def even_units(self: Addition, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """The units of the second operand make the sum even in some sequences; alone they are uniform."""
    Addition.draw_prompts(self, stream, start, out, length)
    rows = (np.arange(start, start + len(out)) % 3 == 0) & ((out[:, length - 1] + out[:, -1]) % 2 == 1)
    out[rows, -1] ^= 1


def rarely_ten(self: Addition, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    Addition.draw_prompts(self, stream, start, out, length)
    out[(np.arange(start, start + len(out)) % 2 == 0) & (out[:, 0] == 9), 0] = 0


def no_carry_source(self: Addition, length: int) -> list[list[int]]:
    return [sorted(sources)[: 2 if j else None] for j, sources in enumerate(Addition.slot_sources(self, length))]


@pytest.mark.parametrize(
    ("method", "broken", "check"),
    [
        ("respond", without_carry, "rule"),
        ("ids_from", ids_not_reversed, "position_ids"),
        ("draw_prompts", even_units, "label_balance"),
        ("draw_prompts", rarely_ten, "token_marginals"),
        ("slot_sources", no_carry_source, "second_answer"),
    ],
)
def test_mutants(method: str, broken: object, check: str) -> None:
    task = mutant(Addition(), **{method: broken})  # type: ignore[arg-type]
    assert catches(check, task)


def kinds_swapped(self: Addition, start: int, length: int) -> list[list[int]]:
    return Addition.ids_from(self, start, length)[::-1]


def sums_of_none(self: Addition, prompts: np.ndarray, length: int) -> np.ndarray:
    """The first running sum is written for that of none."""
    response = Addition.respond(self, prompts, length)
    places = self.sum_places(length)
    response[:, :places] = response[:, places + 1 : 2 * places + 1]
    return response


@pytest.mark.parametrize(
    ("method", "broken", "check"), [("ids_from", kinds_swapped, "position_ids"), ("respond", sums_of_none, "rule")]
)
def test_mutants_with_running_sums(method: str, broken: object, check: str) -> None:
    task = mutant(RUNNING, **{method: broken})  # type: ignore[arg-type]
    assert catches(check, task)
