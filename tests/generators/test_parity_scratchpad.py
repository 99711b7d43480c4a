"""ParityScratchpad, ParityAnswer and EvenPairs: the sheet's fixture, the rules, IDs by hand, and mutants."""

import numpy as np
import pytest
import torch
from generators.mutants import catches, mutant
from generators.written import answered, ids_between, written

from sparsity_lab.generators import EvenPairs, ParityAnswer, ParityScratchpad, Stream, Task
from sparsity_lab.settings import SettingError


def test_fixture() -> None:
    assert answered(ParityScratchpad(), "1011", 4) == "1011=1101"
    assert ids_between(ParityScratchpad(), 4, start=1) == [[2, 3, 4, 5, 1, 2, 3, 4, 5]]


def test_reversed_by_hand() -> None:
    """From the last bit on; a bit and the parity that it enters share an ID, as in ``Reverse``."""
    task = ParityScratchpad(reverse=True)
    assert answered(task, "1011", 4) == "1011=1001"
    assert ids_between(task, 4, start=1) == [[1, 2, 3, 4, 5, 4, 3, 2, 1]]
    assert task.slot_sources(3) == [[3], [2, 5], [1, 6], [0]]
    for text in written(task, task.sample(Stream(seed=2), 0, 100, 13)):
        bits, parities = text.split("=")
        assert parities == "".join(str(bits[-j:].count("1") % 2) for j in range(1, 14))


def test_answer_by_hand() -> None:
    """All bits s, ``=`` s + 1, answer s: the dense control, whose IDs say nothing of places."""
    assert answered(ParityAnswer(), "1011", 4) == "1011=1"
    assert answered(ParityAnswer(), "1001", 4) == "1001=0"
    assert ids_between(ParityAnswer(), 4, start=3) == [[3, 3, 3, 3, 4, 3]]


def test_even_pairs_by_hand() -> None:
    """Pairs of unequal neighbors are counted; only the ends matter."""
    assert answered(EvenPairs(), "001110", 6) == "001110=0"
    assert answered(EvenPairs(), "0101001", 7) == "0101001=1"
    assert EvenPairs().slot_sources(5) == [[1, 5], [6]]
    for text in written(EvenPairs(), EvenPairs().sample(Stream(seed=2), 0, 300, 13)):
        bits, answer = text.split("=")
        assert answer == str((bits.count("01") + bits.count("10")) % 2)
    with pytest.raises(SettingError, match="length: expected at least 2 for EvenPairs"):
        EvenPairs().truth(1)


def last_of_all_but_one(self: EvenPairs, prompts: np.ndarray, length: int) -> np.ndarray:
    """The last bit is not read."""
    return prompts[:, :1] ^ prompts[:, -2:-1]


def test_mutants_of_even_pairs() -> None:
    assert catches("rule", mutant(EvenPairs(), respond=last_of_all_but_one))
    nearer = mutant(EvenPairs(), slot_sources=lambda self, length: [[1, length - 1], [length + 1]])
    assert catches("second_answer", nearer)


def test_rules() -> None:
    scratchpad, answer = ParityScratchpad(), ParityAnswer()
    texts = written(scratchpad, scratchpad.sample(Stream(seed=2), 0, 300, 13))
    for text in texts:
        bits, prefixes = text.split("=")
        assert prefixes == "".join(str(bits[: j + 1].count("1") % 2) for j in range(13))
    for text, other in zip(written(answer, answer.sample(Stream(seed=2), 0, 300, 13)), texts, strict=True):
        bits, parity = text.split("=")
        assert parity == str(bits.count("1") % 2)
        assert other.startswith(bits)  # both see the same bits


def test_sparse_in_steps_and_dense_at_once() -> None:
    assert [ParityScratchpad().truth(n).k for n in (2, 20, 100)] == [2, 2, 2]
    assert [ParityAnswer().truth(n).k for n in (2, 20, 100)] == [2, 20, 100]
    assert ParityScratchpad().slot_sources(3) == [[1], [2, 5], [3, 6], [4]]
    assert ParityAnswer().slot_sources(3) == [[1, 2, 3], [4]]


def test_levels() -> None:
    truth = ParityScratchpad().truth(3)
    assert truth.chance_accuracy == (3 * 0.5 + 1) / 4
    assert truth.chance_loss == pytest.approx(0.75 * np.log(2))
    assert ParityAnswer().truth(3).chance_accuracy == 0.75


def biased_bits(self: Task, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    type(self).__mro__[1].draw_prompts(self, stream, start, out, length)  # type: ignore[attr-defined]
    out[(np.arange(start, start + len(out)) % 8 == 0)[:, None] & (out == 1)] = 0


def even_answers(self: Task, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """The last bit settles the parity in half of the sequences; every single bit is still fair."""
    type(self).__mro__[1].draw_prompts(self, stream, start, out, length)  # type: ignore[attr-defined]
    rows = np.arange(start, start + len(out)) % 2 == 0
    out[rows, -1] = out[rows, :-1].sum(axis=1) % 2


def without_the_first(self: Task, prompts: np.ndarray, length: int) -> np.ndarray:
    """The scratchpad starts with the second bit."""
    return ParityScratchpad.respond(self, prompts, length) ^ prompts[:, :1]  # type: ignore[arg-type]


def ids_of_the_answer(self: Task, start: int, length: int) -> list[list[int]]:
    (ids,) = ParityScratchpad.ids_from(self, start, length)  # type: ignore[arg-type]
    return [[max(0, i - 1) if t <= length else i for t, i in enumerate(ids)]]


@pytest.mark.parametrize(
    ("task", "methods", "check"),
    [
        (ParityScratchpad(), {"draw_prompts": biased_bits}, "token_marginals"),
        (ParityScratchpad(), {"draw_prompts": even_answers}, "label_balance"),
        (ParityScratchpad(), {"respond": without_the_first}, "rule"),
        (ParityScratchpad(), {"ids_from": ids_of_the_answer}, "position_ids"),
        (ParityAnswer(), {"draw_prompts": biased_bits}, "token_marginals"),
        (ParityAnswer(), {"draw_prompts": even_answers}, "label_balance"),
    ],
    ids=lambda value: next(iter(value.values())).__name__ if isinstance(value, dict) else str(value),
)
def test_mutants(task: Task, methods: dict[str, object], check: str) -> None:
    assert catches(check, mutant(task, **methods))  # type: ignore[arg-type]


def two_bits_of_three(self: Task, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """The third bit is 0 more often than not, so the first two predict the parity, and the scratchpad its next."""
    type(self).__mro__[1].draw_prompts(self, stream, start, out, length)  # type: ignore[attr-defined]
    out[np.arange(start, start + len(out)) % 3 == 0, 2] = 0


@pytest.mark.parametrize("task", [ParityScratchpad(), ParityAnswer()], ids=str)
def test_a_shortcut_is_caught(task: Task) -> None:
    assert catches("subset_shortcut", mutant(task, draw_prompts=two_bits_of_three))


def test_length_one() -> None:
    assert torch.equal(
        ParityScratchpad().sample(Stream(), 0, 50, 1).tokens, ParityAnswer().sample(Stream(), 0, 50, 1).tokens
    )
