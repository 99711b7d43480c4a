"""FlipFlop: the last bit written, the law of where it stands, and mutants."""

import numpy as np
import pytest
import torch
from generators.mutants import catches, edited, mutant
from torch import Tensor

from sparsity_lab.generators import Batch, FlipFlop, Stream, Task
from sparsity_lab.settings import SettingError


def test_the_answer_is_the_last_bit_written() -> None:
    task = FlipFlop(write_share=0.3)
    batch = task.sample(Stream(seed=2), 0, 200, 9)
    assert batch.sources is not None
    for row, answer, sources in zip(
        batch.tokens.tolist(), batch.targets[:, -1].tolist(), batch.sources[:, -1].tolist(), strict=True
    ):
        names = [task.vocabulary.names[token] for token in row]
        memory, at = None, None
        for place in range(1, 19, 2):
            if names[place] == "write":
                memory, at = names[place + 1], place
        assert (names[0], names[1], names[-1]) == ("BOS", "write", "read")
        assert (str(answer), sources) == (memory, [at, at + 1])  # type: ignore[operator]


def test_the_distance_is_geometric() -> None:
    law = FlipFlop(write_share=0.25).truth(4).position_law
    assert law is not None
    assert not isinstance(law, tuple)
    first = law.order_pmf()[0]
    assert first[[1, 3, 5, 7]].tolist() == pytest.approx([0.75**3, 0.25 * 0.75**2, 0.25 * 0.75, 0.25])
    assert first.sum() == pytest.approx(1.0)


def test_other_tokens_are_refused() -> None:
    task = FlipFlop()
    for place, token in ((0, 0), (1, 3), (2, 4), (3, 1), (-1, 2)):
        batch = task.sample(Stream(), 0, 3, 5)
        batch.tokens[1, place] = token
        with pytest.raises(ValueError, match="not sequences of FlipFlop"):
            task.log_posterior(batch)
    with pytest.raises(ValueError, match="not sequences of FlipFlop"):
        task.log_posterior(Batch(torch.zeros((1, 5), dtype=torch.int64), torch.full((1, 5), -100)))


def test_refusals() -> None:
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(SettingError, match="write_share: expected a number between 0 and 1"):
            FlipFlop(write_share=share)
    with pytest.raises(SettingError, match="length: expected at least 1"):
        FlipFlop().check_length(0)


@edited
def first_bit(task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor) -> None:
    targets[rows, -1] = tokens[rows, 2]


@edited
def writes_come_in_pairs(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    tokens[rows, 7] = tokens[rows, 5]


@edited
def ignored_bits_tell(
    task: Task, rows: Tensor, tokens: Tensor, targets: Tensor, sources: Tensor, ids: Tensor
) -> None:
    """The last bit, where it is ignored, is the answer in half of the sequences."""
    ignored = rows & (tokens[:, -3] == 3)
    tokens[ignored, -2] = targets[ignored, -1]


def test_mutants() -> None:
    assert catches("rule", mutant(FlipFlop(), first_bit))
    assert catches("products", mutant(FlipFlop(write_share=0.5), writes_come_in_pairs))
    assert catches("targets", mutant(FlipFlop(write_share=0.5), ignored_bits_tell))
    assert np.isclose(FlipFlop().truth(5).chance_accuracy, 0.5)  # type: ignore[arg-type]
