"""Batches and what tasks declare can be pickled, copied, saved, collated, and served by loaders with workers."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generators.datasets import Batches, Sequences
from generators.mutants import EXAMPLES
from torch import Tensor
from torch.utils.data import DataLoader

from sparsity_lab.generators import (
    Addition,
    AssociativeRecall,
    Batch,
    Copy,
    InductionHeads,
    Mixture,
    Planted,
    SparseMarkov,
    Stream,
    Task,
    TextBytes,
)
from sparsity_lab.settings import SettingError

SECONDS = 120  # a loader whose workers cannot send a batch would wait for ever


def through_a_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def through_a_file(folder: Path, value: Any) -> Any:
    torch.save(value, folder / "saved.pt")
    return torch.load(folder / "saved.pt", weights_only=False)


def same(first: Any, second: Any) -> bool:
    """Of tensors, arrays, laws, and what is made of them."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second, equal_nan=True)
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if hasattr(first, "order_pmf"):
        return type(first) is type(second) and same(first.order_pmf(), second.order_pmf())
    return first == second


def contents(batch: Batch) -> tuple[Any, ...]:
    return batch.tokens, batch.targets, batch.position_ids, batch.sources, batch.vocabulary


COPIES: dict[str, Callable[[Path, Any], Any]] = {
    "pickle": lambda folder, value: through_a_pickle(value),
    "deepcopy": lambda folder, value: copy.deepcopy(value),
    "file": through_a_file,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_a_batch_is_the_same_after_its_travels(task: Task, how: str, tmp_path: Path) -> None:
    """Whether its sources were built before or not."""
    batch = task.sample(Stream(), 3, 7, task.certified_lengths[0])
    early = COPIES[how](tmp_path, batch)
    expected = contents(batch)
    assert same(contents(early), expected)
    assert same(contents(COPIES[how](tmp_path, batch)), expected)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_what_is_declared_is_the_same_after_its_travels(task: Task, how: str, tmp_path: Path) -> None:
    truth = task.truth(task.certified_lengths[0])
    other = COPIES[how](tmp_path, truth)
    lazy = {"build_joint", "build_marginals"}
    names = {field.name for field in dataclasses.fields(truth)} - lazy | {"token_label_joint", "token_marginals"}
    assert [name for name in names if not same(getattr(truth, name), getattr(other, name))] == []
    assert repr(other) == repr(truth)


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_a_batch_travels_as_it_came(task: Task) -> None:
    """Unbuilt sources are a few words: no text, no table that the task worked out goes along with each batch."""
    batch = task.sample(Stream(name="evaluation"), 0, 2, task.certified_lengths[0])
    task.solve(tuple(batch.tokens[0].tolist()))  # what a task works out, it keeps
    tensors = pickle.dumps((batch.tokens, batch.targets, batch.position_ids, batch.vocabulary))
    assert len(pickle.dumps(batch)) < len(tensors) + 2000


def test_sources_are_built_on_first_use_only() -> None:
    built = []

    def sources() -> Tensor:
        built.append(True)
        return torch.zeros(1, 2, 1, dtype=torch.int64)

    tokens = torch.zeros(1, 2, dtype=torch.int64)
    batch = Batch(tokens, tokens, None, sources)
    moved = batch.to("cpu")
    assert batch.has_sources
    assert moved.has_sources
    assert built == []
    assert batch.sources is batch.sources
    assert built == [True]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_serves_batches(workers: int) -> None:
    data = Batches((Planted(k=2, coupled=True), Addition(), AssociativeRecall(num_pairs=2), SparseMarkov()), 16)
    options: dict[str, Any] = {"multiprocessing_context": "spawn", "timeout": SECONDS} if workers else {}
    served = list(DataLoader(data, batch_size=None, num_workers=workers, **options))
    assert len(served) == len(data.tasks)
    # Two workers take turns, so the order is that of one.
    for i, (task, batch) in enumerate(zip(data.tasks, served, strict=True)):
        assert same(contents(batch), contents(task.sample(Stream(), i * data.size, data.size, data.length)))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loader_serves_single_sequences(workers: int) -> None:
    task = Addition()
    options: dict[str, Any] = {"multiprocessing_context": "spawn", "timeout": SECONDS} if workers else {}
    data = Sequences(task, 20)
    served = list(DataLoader(data, batch_size=16, collate_fn=Batch.collate, num_workers=workers, **options))
    assert [len(batch) for batch in served] == [16, 16, 8]
    for i, batch in enumerate(served):
        assert same(contents(batch), contents(task.sample(Stream(), 16 * i, len(batch), 20)))


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_collated_sequences_are_the_batch(task: Task) -> None:
    length = task.certified_lengths[0]
    single = [task.sample(Stream(), i, 1, length) for i in range(5)]
    _ = single[2].sources  # some are built, some are not
    assert same(contents(Batch.collate(single)), contents(task.sample(Stream(), 0, 5, length)))


def test_what_does_not_fit_is_not_collated() -> None:
    short, long = (Planted().sample(Stream(), 0, 1, length) for length in (9, 10))
    with pytest.raises(
        SettingError, match=r"batches\[1\].positions: expected the same as in batches\[0\], 11, got 12"
    ):
        Batch.collate([short, long])
    with pytest.raises(SettingError, match=r"batches\[1\].vocabulary: expected the same as in batches\[0\]"):
        Batch.collate([short, Planted(vocab_size=8).sample(Stream(), 0, 1, 9)])
    with pytest.raises(SettingError, match=r"batches\[2\].kinds of position ID: .* 0, got 1"):
        Batch.collate([short, short, Planted(coupled=True).sample(Stream(), 0, 1, 9)])
    with pytest.raises(SettingError, match=r"batches\[1\].has_sources: .* True, got False"):
        Batch.collate([short, Batch(short.tokens, short.targets, vocabulary=short.vocabulary)])
    with pytest.raises(SettingError, match="batches: give at least one batch"):
        Batch.collate([])


@pytest.mark.parametrize("task", [Planted(coupled=True), InductionHeads(), Copy(), TextBytes()], ids=str)
def test_a_batch_moves_with_its_sources(task: Task) -> None:
    batch = task.sample(Stream(), 0, 3, 12)
    moved = batch.to("meta")
    assert len(moved) == 3
    parts = [part for part in contents(moved)[:4] if part is not None]
    assert {part.device.type for part in parts} == {"meta"}
    assert [part.shape for part in parts] == [part.shape for part in contents(batch)[:4] if part is not None]
    assert same(contents(through_a_pickle(batch.to("cpu"))), contents(batch))
    assert moved.vocabulary == batch.vocabulary


def test_sources_of_several_sizes_are_padded() -> None:
    """Components of a mixture have rules of other sizes."""
    parts = Mixture(tasks=(Planted(k=1), Planted(k=3))).tasks
    batches = [task.sample(Stream(), 0, 1, 8) for task in parts]
    sources = Batch.collate(batches).sources
    assert sources is not None
    assert sources.shape == (2, 10, 3)
    assert sources[0, -1].tolist() == [*batches[0].sources[0, -1].tolist(), -1, -1]  # type: ignore[index]


def test_a_function_that_cannot_be_sent_is_named_when_it_is_sent() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(Batch(tokens, tokens, None, lambda: tokens[..., None]))
    assert pickle.dumps(Batch(tokens, tokens, None, partial(torch.unsqueeze, tokens, 2)))
