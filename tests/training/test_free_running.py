"""Free-running evaluation of coupled models."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsity_lab.generators import IGNORE, Batch
from sparsity_lab.models import Decoder, NoPE, Oracle, Predicted, Shuffled
from sparsity_lab.training.free_running import free_running

# Prompts of 3 and of 2 tokens; the last target is what follows the sequence.
TOKENS = torch.tensor([[1, 5, 2, 7, 4], [3, 3, 6, 4, 0], [2, 1, 2, 7, 7]])
IDS = torch.tensor([[[0, 1, 2, 1, 2]], [[0, 1, 2, 3, 1]], [[0, 2, 1, 1, 2]]])


def batch_of(answers: Tensor) -> Batch:
    targets = torch.full((3, 5), IGNORE)
    targets[0, 2:], targets[1, 1:4], targets[2, 2:] = answers[0, 2:], answers[1, 1:4], answers[2, 2:]
    return Batch(TOKENS, targets, IDS)


def words(batch_size: int = 3) -> np.ndarray:
    return np.full((batch_size, 1), 2**63, dtype=np.uint64)


def answers_of(model: Decoder) -> tuple[Tensor, list[int]]:
    """Greedy answers by running the whole prefix again, of prompts that end at the first scored position."""
    answers, starts = torch.full((3, 5), -1), [2, 1, 2]
    for row, start in enumerate(starts):
        tokens, ids = TOKENS[row : row + 1, : start + 1], IDS[row : row + 1, :, : start + 1]
        for t in range(start, 5):
            answers[row, t] = model(tokens, ids)[0, -1].argmax()
            following = model.predict(tokens, ids)[1][:, -1, :, None]
            tokens, ids = torch.cat([tokens, answers[row : row + 1, t : t + 1]], 1), torch.cat([ids, following], 2)
    return answers, starts


def test_exact_match_of_free_running_answers() -> None:
    """Targets are the model's own answers, but one token of the last sequence."""
    model = Decoder.Config(coupling=Predicted(max_id=9), position=NoPE()).build(1).double().eval()
    answers, _ = answers_of(model)
    answers[2, 3] = (answers[2, 3] + 1) % 16
    values = free_running(model, batch_of(answers), IDS, words())
    assert values["free_exact_match"].tolist() == [1.0, 1.0, 0.0]
    predicted = model.predict(TOKENS, IDS)[1][:, :, 0]
    right = predicted == torch.cat([IDS[:, 0, 1:], torch.zeros(3, 1, dtype=torch.int64)], 1)
    expected = [right[0, 2:].double().mean(), right[1, 1:4].double().mean(), right[2, 2:].double().mean()]
    assert values["id_accuracy"] == pytest.approx([float(x) for x in expected])


def test_offset_agreement_needs_the_table() -> None:
    """A table of equal rows cannot tell offsets apart; one of large random rows does. Oracles are given their IDs."""
    for coupling in (Predicted(max_id=9), Oracle(max_id=9)):
        model = Decoder.Config(coupling=coupling, position=NoPE()).build(1).eval()
        batch = batch_of(torch.zeros(3, 5, dtype=torch.int64))
        with torch.no_grad():
            weight = model.coupling_embedding.weight
            weight.copy_(weight[:, :1].expand_as(weight))
            if model.id_heads is not None:
                model.id_heads.weight.zero_()
            assert free_running(model, batch, IDS, words())["offset_agreement"].tolist() == [1.0, 1.0, 1.0]
            weight.normal_(0.0, 30.0, generator=torch.Generator().manual_seed(0))
        values = free_running(model, batch, IDS, words())
        assert values["offset_agreement"].min() == 0.0
        assert ("free_exact_match" in values) == isinstance(coupling, Predicted)


def test_nothing_without_a_coupling() -> None:
    assert free_running(Decoder.Config().build(0), batch_of(TOKENS), IDS, words()) == {}


def test_shuffled_ids_are_measured_too() -> None:
    model = Decoder.Config(coupling=Shuffled(max_id=9)).build(0).eval()
    assert set(free_running(model, batch_of(TOKENS), IDS, words())) == {"offset_agreement"}
