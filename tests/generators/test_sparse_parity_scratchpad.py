"""SparseParityScratchpad: rules, IDs that depend on the input by hand, its two modes, and mutants."""

import numpy as np
import pytest
from generators.mutants import catches, mutant
from generators.written import answered, tokens_of, written

from sparsity_lab.generators import SparseParityScratchpad, Stream

#                 1234567
BITS, RESPONSE = "o1i0io1", "110"


def ids_of(task: SparseParityScratchpad) -> list[int]:
    tokens = np.concatenate([[[5]], tokens_of(task, f"{BITS}={RESPONSE}"), [[5]]], axis=1)
    return task.find_position_ids(tokens, 7)[0, 0].tolist()  # type: ignore[no-any-return]


def test_look_ahead_ids_by_hand() -> None:
    """x_i has i + 1, ``=`` s_1 + 1, r_j s_(j+1) + 1 and the last r_m l + 2."""
    task = SparseParityScratchpad(k=3)
    assert answered(task, BITS, 7) == f"{BITS}={RESPONSE}"
    assert ids_of(task) == [0, 2, 3, 4, 5, 6, 7, 8, 3, 5, 8, 9, 0]
    assert task.largest_position_id(7) == 9


def test_plain_ids_by_hand() -> None:
    """``=`` has 1, r_j s_j + 1."""
    task = SparseParityScratchpad(k=3, look_ahead=False)
    assert ids_of(task) == [0, 2, 3, 4, 5, 6, 7, 8, 1, 3, 5, 8, 0]
    assert task.largest_position_id(7) == 8


def test_end_ids_mark_the_place_behind_the_last_bit() -> None:
    for look_ahead in (True, False):
        task = SparseParityScratchpad(k=3, look_ahead=look_ahead)
        marked = task.replace(end_ids=True)
        assert ids_of(marked) == [9, *ids_of(task)[1:]]
        assert marked.largest_position_id(7) == 9


def test_sources_by_hand() -> None:
    task = SparseParityScratchpad(k=3)
    tokens = np.concatenate([[[5]], tokens_of(task, f"{BITS}={RESPONSE}"), [[5]]], axis=1)
    assert task.find_sources(tokens, 7).tolist() == [[[2, -1], [4, 9], [7, 10], [8, -1]]]


@pytest.mark.parametrize("task", [SparseParityScratchpad(), SparseParityScratchpad(k=5)], ids=str)
def test_rule(task: SparseParityScratchpad) -> None:
    for text in written(task, task.sample(Stream(seed=3), 0, 300, 24)):
        bits, response = text.split("=")
        planted = [bit for bit in bits if bit in "01"]
        assert len(planted) == task.num_planted(24)
        assert response == "".join(str(planted[: j + 1].count("1") % 2) for j in range(len(planted)))


def test_two_modes() -> None:
    """By density the number of planted bits grows with the length and the gaps do not; with k it is the reverse."""
    density, fixed = SparseParityScratchpad(), SparseParityScratchpad(k=4)
    assert [density.num_planted(n) for n in (1, 5, 16, 18, 160)] == [1, 1, 4, 5, 40]
    assert [fixed.num_planted(n) for n in (4, 16, 160)] == [4, 4, 4]
    gaps = {}
    for task in (density, fixed):
        for length in (16, 160):
            batch = task.sample(Stream(), 0, 2000, length)
            assert batch.sources is not None
            places = batch.sources[:, length + 1 : -2, 0]
            gaps[task, length] = float((places[:, 1:] - places[:, :-1]).double().mean())
    # The mean gap of m uniform places in l is (l + 1) / (m + 1).
    assert gaps[density, 16] == pytest.approx(17 / 5, rel=0.03)
    assert gaps[density, 160] == pytest.approx(161 / 41, rel=0.03)
    assert gaps[fixed, 160] == pytest.approx(161 / 5, rel=0.03)


def test_all_planted_is_the_parity_scratchpad() -> None:
    batch = SparseParityScratchpad(density=1.0).sample(Stream(), 0, 100, 9)
    assert (batch.tokens[:, 1:10] < 2).all()
    assert batch.position_ids is not None
    assert batch.position_ids[0, 0].tolist() == [0, *range(2, 11), *range(2, 12), 0]


def test_other_tokens_are_not_judged() -> None:
    task = SparseParityScratchpad(k=3)
    batch = task.sample(Stream(), 0, 3, 9)
    place = int((batch.tokens[0, 1:10] > 1).nonzero()[0]) + 1
    batch.tokens[0, place] = 0  # a fourth planted bit
    with pytest.raises(ValueError, match="not sequences of"):
        task.log_posterior(batch)


def clumped(self: SparseParityScratchpad, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """In some sequences the planted bits come first."""
    SparseParityScratchpad.draw_prompts(self, stream, start, out, length)
    rows = np.arange(start, start + len(out)) % 5 == 0
    out[rows] = np.take_along_axis(out[rows], np.argsort(out[rows] > 1, axis=1, kind="stable"), axis=1)


def parity_of_ones_in_all(self: SparseParityScratchpad, prompts: np.ndarray, length: int) -> np.ndarray:
    """Distractor bits left of the first planted one count."""
    first = np.take_along_axis(prompts, np.maximum(np.argmax(prompts < 2, axis=1) - 1, 0)[:, None], axis=1)
    return SparseParityScratchpad.respond(self, prompts, length) ^ (first == 3)


def the_other_kind(self: SparseParityScratchpad, tokens: np.ndarray, length: int) -> np.ndarray:
    return SparseParityScratchpad(k=self.k, look_ahead=False).find_position_ids(tokens, length)


def a_bit_that_follows(
    self: SparseParityScratchpad, stream: Stream, start: int, out: np.ndarray, length: int
) -> None:
    """The second planted bit repeats the first in some sequences, so the second answer is 0 more often."""
    SparseParityScratchpad.draw_prompts(self, stream, start, out, length)
    rows = np.flatnonzero(np.arange(start, start + len(out)) % 4 == 0)
    places = np.nonzero(out < 2)[1].reshape(len(out), -1)
    out[rows, places[rows, 1]] = out[rows, places[rows, 0]]


@pytest.mark.parametrize(
    ("method", "broken", "check"),
    [
        ("draw_prompts", clumped, "source_places"),
        ("draw_prompts", a_bit_that_follows, "label_balance"),
        ("respond", parity_of_ones_in_all, "rule"),
        ("find_position_ids", the_other_kind, "position_ids"),
    ],
)
def test_mutants(method: str, broken: object, check: str) -> None:
    task = mutant(SparseParityScratchpad(k=3), **{method: broken})  # type: ignore[arg-type]
    assert catches(check, task)
