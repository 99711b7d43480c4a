"""PaddedMixture: each sequence is one of its forms, padded; published lengths, truth by enumeration, and mutants."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from generators.mutants import catches, mutant

from sparsity_lab.generators import (
    Addition,
    Copy,
    MultipleAddition,
    PaddedMixture,
    ParityScratchpad,
    Planted,
    Stream,
    WordProblem,
)
from sparsity_lab.settings import SettingError

PUBLISHED = PaddedMixture(tasks=(Addition(operand_digits="published"),), power=2.0)
OPERANDS = PaddedMixture(tasks=tuple(MultipleAddition(num_operands=n, base=4) for n in (2, 3, 4)), shortest=2)


def unpadded(task: PaddedMixture, row: list[int]) -> list[str]:
    names = [task.vocabulary.names[token] for token in row]
    end = names.index("BOS/EOS", names.index("="))
    assert set(names[end:]) == {"BOS/EOS"}
    return names[1:end]


@pytest.mark.parametrize("task", [PUBLISHED, OPERANDS], ids=["lengths", "operands and lengths"])
def test_each_sequence_is_one_of_its_form(task: PaddedMixture) -> None:
    batch = task.sample(Stream(seed=3), 0, 200, 5)
    seen = set()
    for row in range(len(batch)):
        text = "".join(unpadded(task, batch.tokens[row].tolist()))
        prompt, response = text.split("=")
        operands = prompt.split("+")
        base = 10 if task is PUBLISHED else 4
        sums = [int(one[::-1], base) for one in response.split(">")]
        values = [int(one, base) for one in operands]
        assert sums == ([sum(values)] if task is PUBLISHED else [0, *itertools.accumulate(values)])
        seen.add((len(operands), len(operands[0])))
        scored = batch.scored[row].nonzero()[:, 0].tolist()
        assert scored == list(range(len(prompt) + 1, len(text) + 1))
        assert batch.position_ids is not None
        assert (batch.position_ids[row, :, len(text) + 1 :] == 0).all()
    assert len(seen) == (5 if task is PUBLISHED else 12)


def test_widths_are_those_of_the_longest_of_two_numbers() -> None:
    """The published code draws both numbers of digits uniformly from 1 to L, and pads to the longer one."""
    batch = PUBLISHED.sample(Stream(seed=5), 0, 20_000, 4)
    digits = Counter()  # type: ignore[var-annotated]
    for row in batch.tokens.tolist():
        prompt = "".join(unpadded(PUBLISHED, row)).split("=")[0]
        digits[tuple(len(number.lstrip("0")) or 1 for number in prompt.split("+"))] += 1
    # Each pair of numbers of digits is as likely: 1250 times, with a standard deviation of 34.
    assert set(digits) == set(itertools.product(range(1, 5), repeat=2))
    assert all(abs(count - 1250) < 6 * 35 for count in digits.values())


def test_truth_by_enumeration() -> None:
    task = PaddedMixture(tasks=(Copy(alphabet_size=2),))
    truth = task.truth(3)
    rows = {n: list(itertools.product((0, 1), repeat=n)) for n in (1, 2, 3)}
    marginals = np.zeros((9, 4))
    for words in rows.values():
        for word in words:
            tokens = [3, *word, 2, *word, 3]
            tokens += [3] * (9 - len(tokens))
            marginals[range(9), tokens] += 1 / 3 / len(words)
    assert truth.token_marginals == pytest.approx(marginals)
    assert np.asarray(truth.num_targets) == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])
    # Slot 2 is EOS if n = 1, else a symbol; slot 4 is EOS.
    assert truth.label_distribution == pytest.approx(
        np.array([[1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 0, 1 / 3], [1 / 4, 1 / 4, 0, 1 / 2], [0, 0, 0, 1]])
    )
    # Of n = 1: a half and a third; of 2: a half, a third, a half; of 3: a half, a third, a half and one; ties to 0.
    first = [1 / 2, 0.0]
    second, third = [1 / 2, 1 / 2, 1.0], [1 / 2, 1 / 2, 0.0, 1.0]
    assert truth.chance_accuracy == pytest.approx(np.mean([np.mean(first), np.mean(second), np.mean(third)]))


def test_a_sequence_does_not_depend_on_its_neighbors_forms() -> None:
    whole = OPERANDS.sample(Stream(), 0, 300, 5)
    for start in (0, 7, 250):
        part = OPERANDS.sample(Stream(), start, 3, 5)
        assert torch.equal(part.tokens, whole.tokens[start : start + 3])
        assert part.sources is not None
        assert whole.sources is not None
        most = part.sources.shape[2]
        assert torch.equal(part.sources, whole.sources[start : start + 3, :, :most])


def test_refusals() -> None:
    for make, message in [
        (lambda: PaddedMixture(tasks=()), "tasks: expected at least one task"),
        (
            lambda: PaddedMixture(tasks=(Planted(),)),
            r"tasks\[0\]: expected a task with the layout BOS prompt = response",
        ),
        (
            lambda: PaddedMixture(tasks=(Copy(), Copy(alphabet_size=4))),
            r"tasks\[1\]: expected a task with the vocabulary",
        ),
        (lambda: PaddedMixture(tasks=(Copy(),), power=0.0), "power: expected a number above 0 and at most 100"),
        (
            lambda: PaddedMixture(tasks=(Copy(),), shortest=4).truth(3),
            "length: expected from 4 to 515 for PaddedMixture",
        ),
        (
            lambda: PaddedMixture(tasks=(ParityScratchpad(), ParityScratchpad(reverse=True))).truth(3),
            "tasks: expected tasks whose prompts tell which of them they are of",
        ),
        (lambda: PaddedMixture(tasks=(WordProblem(),)).truth(0), "length: expected from 1 to 512"),
    ]:
        with pytest.raises(SettingError, match=message):
            make()


def test_mutants() -> None:
    task = PaddedMixture(tasks=(Addition(base=3, operand_digits="published"),), power=2.0)

    def uniform(task: PaddedMixture, stream: Stream, start: int, count: int, length: int) -> object:
        return task.replace(power=1.0).sample(stream, start, count, length)

    assert catches("target_counts", mutant(task, uniform))  # type: ignore[arg-type]
    assert catches("token_marginals", mutant(task, uniform))  # type: ignore[arg-type]


def test_small_batches_are_parts_of_large_ones_and_own_what_they_hold() -> None:
    """They are cut out of kept blocks, of 2048 sequences here."""
    whole = PUBLISHED.sample(Stream(seed=8), 0, 2300, 4)
    for start, count in [(0, 64), (2047, 2), (2000, 300), (64, 0)]:
        part = PUBLISHED.sample(Stream(seed=8), start, count, 4)
        assert torch.equal(part.tokens, whole.tokens[start : start + count])
        assert torch.equal(part.targets, whole.targets[start : start + count])
        assert part.position_ids is not None
        assert whole.position_ids is not None
        assert torch.equal(part.position_ids, whole.position_ids[start : start + count])
        part.tokens.fill_(-1)
    assert torch.equal(PUBLISHED.sample(Stream(seed=8), 0, 64, 4).tokens, whole.tokens[:64])
