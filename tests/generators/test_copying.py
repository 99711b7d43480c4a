"""Copy, Reverse and OddsFirst: the sheet's fixture, the rule, IDs by hand, and mutants."""

import numpy as np
import pytest
from generators.mutants import catches, mutant
from generators.written import answered, ids_between, written

from sparsity_lab.generators import Copy, OddsFirst, Reverse, Stream
from sparsity_lab.settings import SettingError


def test_fixture() -> None:
    assert answered(Copy(), "471", 3) == "471=471"
    assert ids_between(Copy(), 3, start=1) == [[2, 3, 4, 1, 2, 3, 4]]


def test_reverse_by_hand() -> None:
    """Inputs s .. s + n - 1, ``=`` s + n, response s + n - 1 down to s."""
    assert answered(Reverse(), "471", 3) == "471=174"
    assert ids_between(Reverse(), 3, start=5) == [[5, 6, 7, 8, 7, 6, 5]]


def test_copies_and_odd_places_by_hand() -> None:
    twice = Copy(alphabet_size=2, copies=2)
    assert answered(twice, "101", 3) == "101=101101"
    assert ids_between(twice, 3, start=1) == [[2, 3, 4, 1, 2, 3, 4, 2, 3, 4]]
    assert twice.slot_sources(2) == [[1], [2], [1], [2], [3]]
    assert answered(OddsFirst(), "00110101", 8) == "00110101=01000111"
    assert answered(OddsFirst(), "110", 3) == "110=101"
    assert ids_between(OddsFirst(), 3, start=5) == [[6, 7, 8, 5, 6, 8, 7]]
    assert OddsFirst().slot_sources(4) == [[1], [3], [2], [4], [5]]
    for text in written(OddsFirst(), OddsFirst().sample(Stream(seed=1), 0, 300, 11)):
        prompt, response = text.split("=")
        assert response == prompt[::2] + prompt[1::2]


def test_rules() -> None:
    for text in written(Copy(), Copy().sample(Stream(seed=1), 0, 300, 11)):
        prompt, response = text.split("=")
        assert response == prompt
    for text in written(Reverse(), Reverse().sample(Stream(seed=1), 0, 300, 11)):
        prompt, response = text.split("=")
        assert response == "".join(reversed(prompt))


def test_the_source_is_the_token_itself_and_equal_ids_mark_it() -> None:
    """In Copy a token and its source share an ID; so they do in Reverse, where BOS is the source of EOS."""
    for task in (Copy(), Reverse()):
        batch = task.sample(Stream(), 0, 5, 7)
        assert batch.sources is not None
        assert batch.position_ids is not None
        ids = batch.position_ids[0, 0].tolist()
        for j, source in enumerate(batch.sources[0, 8:-1, 0].tolist()[:-1]):
            assert ids[source] == ids[9 + j]
            assert (batch.tokens[:, source] == batch.tokens[:, 9 + j]).all()
    assert Copy().slot_sources(3) == [[1], [2], [3], [4]]
    assert Reverse().slot_sources(3) == [[3], [2], [1], [0]]


def test_chance_is_a_digit_for_each_symbol_and_certainty_for_eos() -> None:
    truth = Copy().truth(4)
    assert truth.num_targets == 5
    assert truth.chance_accuracy == pytest.approx((4 * 0.1 + 1) / 5)
    assert truth.chance_loss == pytest.approx(4 * np.log(10) / 5)
    assert (truth.bayes_accuracy, truth.bayes_loss) == (1.0, 0.0)


@pytest.mark.parametrize("ngram", [1, 2, 3, 5])
def test_an_ngram_comes_once_and_what_is_shorter_comes_again(ngram: int) -> None:
    task = Copy(alphabet_size=30, distinct=True, ngram=ngram)
    for row in task.sample(Stream(seed=3), 0, 100, 24).tokens[:, 1:25].tolist():
        grams = {n: [tuple(row[i : i + n]) for i in range(25 - n)] for n in (ngram - 1, ngram)}
        assert len(set(grams[ngram])) == len(grams[ngram])
        if ngram > 1:
            # As often as there are blocks.
            most = max(grams[ngram - 1].count(gram) for gram in grams[ngram - 1])
            assert most >= 24 // ngram


def test_ngrams_that_cannot_be() -> None:
    for make, message in [
        (lambda: Copy(ngram=2), "ngram: expected 1 where symbols are not distinct, got 2"),
        (lambda: Copy(distinct=True, ngram=11), "ngram: expected at most alphabet_size = 10, got 11"),
        (lambda: Copy(distinct=True, ngram=3).truth(27), "length: expected at most 26 for Copy"),
        (lambda: Reverse(distinct=True, ngram=0), "ngram: expected a whole number of at least 1, got 0"),
    ]:
        with pytest.raises(SettingError, match=message):
            make()
    with pytest.raises(SettingError, match="copies: expected a whole number of at least 1, got 0"):
        Copy(copies=0)
    assert Copy(distinct=True, ngram=3).truth(26).k == 1


def last_two_swapped(self: Copy, prompts: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([prompts[:, :-2], prompts[:, :-3:-1]], axis=1)


def repeated_symbol(self: Copy, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """The second symbol repeats the first in half of the sequences: each tells the other."""
    Copy.draw_prompts(self, stream, start, out, length)
    rows = np.arange(start, start + len(out)) % 2 == 0
    out[rows, 1] = out[rows, 0]


def ids_one_short(self: Copy, start: int, length: int) -> list[list[int]]:
    """The response counts from ``=`` on, and not past it."""
    (ids,) = Copy.ids_from(self, start, length)
    return [[*ids[: length + 2], *(i - 1 for i in ids[length + 2 : -1]), 0]]


def test_mutants() -> None:
    for methods, check in [
        ({"respond": last_two_swapped}, "rule"),
        ({"draw_prompts": repeated_symbol}, "bystanders"),
        ({"ids_from": ids_one_short}, "position_ids"),
    ]:
        assert catches(check, mutant(Copy(), **methods))  # type: ignore[arg-type]


def evens_first(self: OddsFirst, prompts: np.ndarray, length: int) -> np.ndarray:
    """As the published code has it."""
    return np.concatenate([prompts[:, 1::2], prompts[:, ::2]], axis=1)


def first_copy_alone(self: Copy, length: int) -> list[list[int]]:
    """In the second copy each symbol counts the one before it as its source."""
    return [[t] for t in [*range(1, length + 1), length, *range(1, length), length + 1]]


def test_mutants_of_orders_and_copies() -> None:
    assert catches("rule", mutant(OddsFirst(), respond=evens_first))
    assert catches("second_answer", mutant(Copy(alphabet_size=2, copies=2), slot_sources=first_copy_alone))


def other_prefix(self: Copy, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """In some sequences the second block begins with another symbol."""
    Copy.draw_prompts(self, stream, start, out, length)
    rows = np.arange(start, start + len(out)) % 10 == 0
    out[rows, 3] = (out[rows, 3] + 1) % self.alphabet_size


def test_mutants_of_ngrams() -> None:
    task = Copy(alphabet_size=12, distinct=True, ngram=3)
    assert catches("bayes", mutant(task, draw_prompts=other_prefix))
