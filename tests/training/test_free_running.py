"""Free-running evaluation of coupled models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training.small_runs import SMALL_MODEL, small_run

from sparsity_lab.generators import IGNORE, Addition, Batch, ParityScratchpad
from sparsity_lab.models import Decoder, DecoderModel, NoPE, Oracle, Predicted, Shuffled
from sparsity_lab.models.generation import free_run
from sparsity_lab.training import Evaluation, FixedLength, Training, evaluate, train
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


def answers_of(model: DecoderModel) -> tuple[Tensor, list[int]]:
    """Greedy answers by running the whole prefix again, of prompts that end at the first scored position."""
    answers, starts = torch.full((3, 5), -1), [2, 1, 2]
    for row, start in enumerate(starts):
        tokens, ids = TOKENS[row : row + 1, : start + 1], IDS[row : row + 1, :, : start + 1]
        for t in range(start, 5):
            answers[row, t] = model(tokens, ids).logits[0, -1].argmax()
            following = model.predict(tokens, ids)[1][:, -1, :, None]
            tokens, ids = torch.cat([tokens, answers[row : row + 1, t : t + 1]], 1), torch.cat([ids, following], 2)
    return answers, starts


def test_exact_match_of_free_running_answers() -> None:
    """Targets are the model's own answers, but one token of the last sequence."""
    model = Decoder(coupling=Predicted(max_id=9), position=NoPE()).build(1).double().eval()
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
        model = Decoder(coupling=coupling, position=NoPE()).build(1).eval()
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


@pytest.mark.parametrize(("max_id", "num_kinds", "compared"), [(2, 1, 0), (3, 1, 2), (3, 2, 3), (4, 1, 3)])
def test_no_agreement_is_claimed_where_ids_cannot_move(max_id: int, num_kinds: int, compared: int) -> None:
    """The largest IDs are 2, 3 and 2, of the second kind 1. Only sequences with room for some kind count, and they
    do move, although the smallest words would give an offset of 0."""
    ids = torch.cat([IDS, IDS // 2], dim=1)[:, :num_kinds].clamp(max=max_id)
    model = Decoder(coupling=Oracle(max_id=max_id, num_kinds=num_kinds), position=NoPE()).build(1).eval()
    with torch.no_grad():
        model.coupling_embedding.weight.normal_(0.0, 30.0, generator=torch.Generator().manual_seed(0))
    values = free_running(model, batch_of(TOKENS), ids, np.zeros((3, num_kinds), dtype=np.uint64))
    agreement = values.get("offset_agreement", np.empty(0))
    assert len(agreement) == compared
    assert not compared or agreement.min() == 0.0


def test_agreement_is_null_where_the_table_ends() -> None:
    config = small_run(
        task=ParityScratchpad(),
        model=SMALL_MODEL.replace(coupling=Oracle(max_id=9)),
        evaluation=Evaluation(lengths=(4, 8), sequences=4),
    )
    near, far = evaluate(config.model.build(0, 4), config).iter_rows(named=True)
    assert near["offset_agreement"] is not None
    assert far["exact_match"] is not None
    assert far["offset_agreement"] is far["offset_agreement_se"] is None


def test_own_answers_with_own_ids_are_all_right() -> None:
    """Where all IDs are predicted right, free running is teacher forcing."""
    model = Decoder(coupling=Predicted(max_id=9, num_kinds=2), position=NoPE()).build(4).double().eval()
    prompt_ids = torch.randint(0, 10, (3, 2, 3), generator=torch.Generator().manual_seed(0))
    written, ids = free_run(model, TOKENS[:, :3], 8, prompt_ids)
    targets = torch.full((3, 10), IGNORE)
    targets[:, 2:] = written[:, 3:]
    batch = Batch(written[:, :-1], targets, ids[:, :, :-1])
    values = free_running(model, batch, batch.position_ids, words(3).repeat(2, axis=1))
    assert values["free_exact_match"].tolist() == [1.0] * 3
    # The ID that follows the last position is not in the batch; by its convention it is none.
    last = (ids[:, :, -1] == 0).all(1).numpy()
    assert values["id_accuracy"] == pytest.approx((7 + last) / 8)
    assert torch.equal(model(batch.tokens, batch.position_ids).logits.argmax(-1)[batch.scored], targets[batch.scored])


def test_two_kinds_of_ids_are_learned_and_measured(tmp_path: Path) -> None:
    """Running sums: kind 1 is the place, kind 2 the number of the sum."""
    task = Addition(num_operands=3, base=2)
    largest = task.largest_position_id(3)
    config = small_run(
        task=task,
        model=SMALL_MODEL.replace(coupling=Predicted(max_id=largest, num_kinds=2)),
        training=Training(steps=120, batch_size=16, learning_rate=1e-2, curriculum=FixedLength(length=1)),
        evaluation=Evaluation(lengths=(1, 3), sequences=16),
    )
    trained = train(config, tmp_path).evaluation
    untrained = train(config.replace(training=config.training.replace(steps=0)), tmp_path).evaluation
    near, far = trained.iter_rows(named=True)
    assert near["id_accuracy"] > 0.9 > 0.2 > untrained["id_accuracy"][0]
    for row in (near, far):
        # Places fill the table at the longest length, but numbers of sums do not.
        assert None not in (row["free_exact_match"], row["exact_match"], row["accuracy"], row["offset_agreement"])


def test_nothing_without_a_coupling() -> None:
    assert free_running(Decoder().build(0), batch_of(TOKENS), IDS, words()) == {}


def test_shuffled_ids_are_measured_too() -> None:
    model = Decoder(coupling=Shuffled(max_id=9)).build(0).eval()
    assert set(free_running(model, batch_of(TOKENS), IDS, words())) == {"offset_agreement"}
