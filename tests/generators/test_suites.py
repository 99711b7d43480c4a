"""Suites: every offered task is possible at its published lengths, and the peers' own words come out."""

import pytest
import torch
from generators.written import written

from sparsity_lab.generators import IGNORE, AssociativeRecall, ResponseTask, Stream, suite
from sparsity_lab.settings import SettingError

NAMES = ("chomsky", "mad", "zoology", "rasp-l", "position-coupling")


@pytest.mark.parametrize("name", NAMES)
def test_each_task_is_offered_at_its_lengths_or_has_a_reason(name: str) -> None:
    found = suite(name)
    assert len({one.name for one in found.tasks}) == len(found.tasks)
    assert found.offered
    assert found.missing
    for one in found.tasks:
        assert (one.task is None) == bool(one.reason)
        if one.task is not None:
            for length in one.lengths or one.task.certified_lengths[:1]:
                one.task.check_length(length)
            longest = max(one.lengths or one.task.certified_lengths)
            assert len(one.task.sample(Stream(), 0, 2, longest)) == 2
    assert all(one.name in repr(found) and one.name in found._repr_html_() for one in found.tasks)


def peer(name: str, task: str) -> ResponseTask:
    offered = suite(name).offered[task]
    assert isinstance(offered, ResponseTask)
    return offered


def test_chomsky_by_the_peers_definitions() -> None:
    navigation = peer("chomsky", "cycle_navigation")
    moves = {"12345": 0, "23451": 1, "51234": -1}
    batch = navigation.sample(Stream(seed=1), 0, 100, 12)
    for row in batch.tokens.tolist():
        names = [navigation.vocabulary.names[token] for token in row]
        place = sum(moves[name] for name in names[1:13]) % 5
        assert names[14] == "".join(str((i + place) % 5 + 1) for i in range(5))
    sort = peer("chomsky", "bucket_sort")
    for text in written(sort, sort.sample(Stream(), 0, 20, 9)):
        assert "".join(sorted(text.split("=")[0])) == text.split("=")[1]
        assert set(text) <= set("01234=")
    reverse = peer("chomsky", "reverse_string")
    for text in written(reverse, reverse.sample(Stream(), 0, 20, 9)):
        assert text.split("=")[0][::-1] == text.split("=")[1]


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (128, 8), (256, 16)])
def test_zoology_in_the_published_form(length: int, pairs: int) -> None:
    """Keys 1 .. V / 2 - 1, values from V / 2, blanks 0; answers are scored at repeated keys and do not follow."""
    task = suite("zoology").offered["multiquery_ar"]
    assert isinstance(task, AssociativeRecall)
    batch = task.sample(Stream(), 0, 100, length)
    assert ((batch.targets != IGNORE).sum(dim=1) == pairs).all()
    keys, values = batch.tokens[:, : 2 * pairs : 2], batch.tokens[:, 1 : 2 * pairs : 2]
    assert ((keys >= 1) & (keys < 4096)).all()
    assert ((values >= 4096) & (values < 8192)).all()
    rest, scored = batch.tokens[:, 2 * pairs :], batch.scored[:, 2 * pairs :]
    assert (rest[~scored] == 0).all()
    assert (rest[scored] > 0).all()
    # Of gaps with weights g^-0.99 the first is by far the likeliest.
    share = scored[:, ::2].double().mean(dim=0)
    assert share[0] > 2 * share[pairs]
    assert torch.equal(scored[:, 1::2], torch.zeros_like(scored[:, 1::2]))


def test_position_coupling_draws_lengths_and_numbers_of_operands() -> None:
    """One batch holds sums of two to five numbers, with one to ten digits."""
    task = suite("position-coupling").offered["multiple_addition_scratchpad"]
    tokens = task.sample(Stream(), 0, 200, 10).tokens
    operands = (tokens == task.vocabulary.token("+")).sum(dim=1) + 1
    assert set(operands.tolist()) == {2, 3, 4, 5}
    assert len(set((tokens == task.vocabulary.token("=")).int().argmax(dim=1).tolist())) > 20


def test_a_suite_that_nobody_has() -> None:
    with pytest.raises(
        SettingError, match=r"suite: expected a peer's set of tasks .*got 'chomski'; did you mean 'chomsky'"
    ):
        suite("chomski")
