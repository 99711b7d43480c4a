"""Batches for other people's loops: no sequence twice, the same ones for any number of workers and processes."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from generators import ddp
from generators.mutants import EXAMPLES
from torch.utils.data import DataLoader

from sparsity_lab.generators import Batch, Planted, Stream, Task
from sparsity_lab.settings import SettingError
from sparsity_lab.training import FixedLength, GrowingLength, MixedLengths, UniformLength

SECONDS = 120

# On a machine with fewer processors than workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
CURRICULUM = UniformLength(low=6, high=12)


class Halving:
    """No lengths."""

    def at(self, stream: Stream, step: int, steps: int | None) -> float:
        return 4.5


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = itertools.zip_longest(first, second)
    return all(
        torch.equal(a.tokens, b.tokens) and torch.equal(a.targets, b.targets) and a.vocabulary == b.vocabulary
        for a, b in pairs
    )


def served(data: Any, workers: int, **options: Any) -> list[Batch]:
    options |= {"timeout": SECONDS} if workers else {}
    return list(DataLoader(data, batch_size=None, num_workers=workers, **options))


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_step_s_is_the_s_th_block_of_the_stream(task: Task) -> None:
    length = task.certified_lengths[0]
    for step, batch in enumerate(task.dataset(Stream(seed=2), length, 3, steps=3)):
        assert same([batch], [task.sample(Stream(seed=2), 3 * step, 3, length)])


def test_a_curriculum_gives_the_lengths_of_a_run() -> None:
    data = Planted().dataset(Stream(seed=5), CURRICULUM, 2, steps=40)
    lengths = [batch.tokens.shape[1] - 2 for batch in data]
    assert lengths == [CURRICULUM.at(Stream(seed=5), step, 40) for step in range(40)]
    assert set(lengths) == set(range(6, 13))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches(workers: int) -> None:
    """Ten steps, which three workers cannot share equally; forked ones, which take no time to start."""
    data = Planted(k=2).dataset(Stream(), CURRICULUM, 4, steps=10)
    assert len(data) == 10
    assert same(served(data, workers), list(data))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_its_own_gives_the_same_batches_in_each_pass(workers: int) -> None:
    """More steps than one message holds."""
    data = Planted(k=2).dataset(Stream(), CURRICULUM, 4, steps=80, start=3)
    loader = data.loader(workers)
    assert same(list(loader), list(data))
    assert same(list(loader), list(data))


@pytest.mark.slow
def test_persistent_workers_that_start_anew_give_them_in_each_pass() -> None:
    data = Planted(k=2).dataset(Stream(), CURRICULUM, 4, steps=5, rank=1, world_size=2)
    options = {"persistent_workers": True, "multiprocessing_context": "spawn", "timeout": SECONDS}
    loader = DataLoader(data, batch_size=None, num_workers=2, **options)  # type: ignore[arg-type]
    assert same(list(loader), list(data))
    assert same(list(loader), list(data))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_see_together_what_one_sees(world_size: int) -> None:
    ranks = [
        Planted().dataset(Stream(), CURRICULUM, 4, steps=6, rank=r, world_size=world_size) for r in range(world_size)
    ]
    whole = list(Planted().dataset(Stream(), CURRICULUM, 4 * world_size, steps=6))
    assert same([Batch.collate(parts) for parts in zip(*ranks, strict=True)], whole)
    assert all(same(served(data, 2), list(data)) for data in ranks)
    sequences = torch.cat([batch.tokens[:, -6:] for data in ranks for batch in data])
    assert len(sequences.unique(dim=0)) > len(sequences) - 5  # 16^4 are possible


def test_a_loop_goes_on_where_it_was_interrupted() -> None:
    whole = list(Planted().dataset(Stream(), CURRICULUM, 4, steps=9))
    assert same(list(Planted().dataset(Stream(), CURRICULUM, 4, steps=9, start=5)), whole[5:])


def test_without_a_number_of_steps_there_is_no_end() -> None:
    data = Planted().dataset(Stream(), MixedLengths(curricula=(FixedLength(length=5), CURRICULUM)), 2)
    assert len(list(itertools.islice(data, 50))) == 50
    with pytest.raises(TypeError, match="is infinite"):
        len(data)
    assert Planted().dataset(Stream(), GrowingLength(), 2, steps=3)
    with pytest.raises(
        SettingError, match="steps: expected a number of steps, over which the length grows, got None"
    ):
        Planted().dataset(Stream(), GrowingLength(), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 1}, "length: expected at least"),
        ({"length": 2.5}, "length: expected a whole number, got 2.5"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"steps": 2, "start": 3}, "steps: expected a whole number of at least 3, got 2"),
        ({"rank": 0}, "world_size: give both rank and world_size, or neither"),
        ({"rank": 2, "world_size": 2}, "rank: expected below world_size = 2, got 2"),
        ({"rank": -1, "world_size": 2}, "rank: expected a whole number of at least 0, got -1"),
        ({"rank": 0, "world_size": 0}, "world_size: expected a whole number of at least 1, got 0"),
        ({"length": -9}, "length: expected at least"),
        ({"length": True}, "length: expected a whole number, got True"),
        ({"length": "9"}, "length: expected a whole number, got '9'"),
        ({"length": [9, 10]}, "length: expected a whole number, got .9, 10."),
        ({"length": UniformLength}, "length: expected a whole number, or a curriculum, got "),
        (
            {"length": pandas.DataFrame({"length": [9]})},
            "length: expected a whole number, or a curriculum, got DataFrame",
        ),
        ({"length": UniformLength(low=1, high=9)}, "length: expected at least"),
        ({"length": Halving()}, "length: expected a whole number, got 4.5"),
        ({"batch_size": -2}, "batch_size: expected a whole number of at least 1, got -2"),
        ({"batch_size": 2.0}, "batch_size: expected a whole number of at least 1, got 2.0"),
        ({"batch_size": None}, "batch_size: expected a whole number of at least 1, got None"),
        ({"batch_size": 2**70}, "batch_size: expected at most 2147483648"),
        ({"steps": -1}, "steps: expected a whole number of at least 0, got -1"),
        ({"steps": 1.5}, "steps: expected a whole number of at least 0, got 1.5"),
        ({"start": -1}, "start: expected a whole number of at least 0, got -1"),
        ({"start": 2**70}, "start: expected at most 2147483648"),
        ({"stream": "train"}, r"stream: expected a Stream, got 'train'; did you mean 'Stream\(seed=0\)'"),
        ({"stream": 0}, "stream: expected a Stream, got 0"),
        ({"stream": Stream}, "stream: expected a Stream, got "),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        Planted(k=3).dataset(**{"stream": Stream(), "length": 9, "batch_size": 2, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_workers": -1}, "num_workers: expected a whole number of at least 0, got -1"),
        ({"num_workers": "2"}, "num_workers: expected a whole number of at least 0, got '2'"),
        ({"num_workers": 0, "prefetch_factor": 2}, "options: expected options of a DataLoader, got prefetch_factor"),
        (
            {"num_workers": 0, "persistent_workers": True},
            "options: expected options of a DataLoader, got persistent_wor",
        ),
        ({"workers": 2}, "options: expected options of a DataLoader, got .*'workers'"),
        ({"batch_size": 2}, "options: expected options of a DataLoader, got .*'batch_size'"),
        ({"shuffle": True}, "options: expected options of a DataLoader, got .*shuffle"),
        ({"timeout": -1}, "options: expected options of a DataLoader, got timeout"),
        ({"multiprocessing_context": "threads"}, "options: expected options of a DataLoader, got "),
    ],
)
def test_refusals_of_a_loader(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        Planted(k=3).dataset(Stream(), 9, 2).loader(**change)
    assert "\n" not in str(error.value)


def test_more_workers_than_messages_give_each_batch_once() -> None:
    data = Planted().dataset(Stream(), 9, 2, steps=3)
    assert same(list(data.loader(8)), list(data))
    assert list(Planted().dataset(Stream(), 9, 2, steps=0).loader(2)) == []


def test_a_small_batch_is_sent_in_few_bytes() -> None:
    """A byte a token, what is scored, and no file descriptors."""
    batch = Planted().sample(Stream(), 0, 64, 62)
    assert len(pickle.dumps(batch)) < batch.tokens.numel() + 2000
    wide = Batch(torch.tensor([[0, 2**40]]), torch.tensor([[-100, -(2**33)]]))
    again = pickle.loads(pickle.dumps(wide))
    assert again.tokens.tolist() == [[0, 2**40]]
    assert again.targets.tolist() == [[-100, -(2**33)]]
    assert again.tokens.dtype == torch.int64


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """A user's own loop with ``DistributedDataParallel``, fed by loaders with two workers each. All targets count
    alike, so the mean over processes is the mean over the whole batch."""
    torch.multiprocessing.spawn(ddp.process, (2, tmp_path), nprocs=2)
    (first, weights), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = ddp.model()
    whole = ddp.loop(alone, batch_size=16, workers=0)
    for batch, *halves in zip(whole, first, second, strict=True):
        assert torch.equal(torch.cat(halves), batch.tokens)
    for name, value in alone.state_dict().items():
        assert torch.equal(weights[name], others[name])
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(weights["token_embedding.weight"], ddp.model().state_dict()["token_embedding.weight"])
