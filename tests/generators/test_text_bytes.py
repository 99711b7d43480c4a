"""TextBytes: where its bytes come from, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from generators.mutants import catches, mutant

from sparsity_lab.generators import Batch, NotComputable, Stream, Task, TextBytes
from sparsity_lab.settings import SettingError

TEXTS = [f"file {i} " + "abc" * i for i in range(1, 40)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i:02d}.txt").write_text(text)
    (tmp_path / ".hidden").write_text("never" * 100)
    return tmp_path


def test_every_window_is_text_of_its_part_alone(folder: Path) -> None:
    task = TextBytes(path=str(folder))
    parts = {}
    for name in ("train", "evaluation", "another"):
        batch = task.sample(Stream(name=name), 0, 5000, 9)
        windows = torch.cat([batch.tokens, batch.targets[:, -1:]], dim=1)
        assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
        assert batch.sources is None
        parts[name] = {bytes(window) for window in windows.to(torch.uint8).numpy()}
    train, evaluation = ("".join(chr(b) for b in text) for text in (task.corpus.train, task.corpus.evaluation))
    assert set((train + evaluation).split("\0")) == {*TEXTS, ""}
    assert all(window.decode() in train for window in parts["train"])
    assert all(window.decode() in evaluation for window in parts["evaluation"])
    assert parts["another"] == parts["evaluation"]
    # Every window of the part is drawn: 5000 draws of a few hundred.
    assert len(parts["evaluation"]) == len({evaluation[i : i + 10] for i in range(len(evaluation) - 9)})


def test_the_split_goes_by_content(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("renamed")
    for i, text in enumerate(reversed(TEXTS)):
        (other / f"{i:02d}.txt").write_text(text)
    first, second = TextBytes(path=str(folder)).corpus, TextBytes(path=str(other)).corpus
    split = [sorted(bytes(corpus.evaluation).split(b"\0")) for corpus in (first, second)]
    assert split[0] == split[1]
    assert first.hash != second.hash
    assert (first.files, first.num_bytes) == (39, sum(map(len, TEXTS)))


def test_the_law_of_bytes_is_that_of_all_windows(folder: Path) -> None:
    task = TextBytes(path=str(folder))
    windows = np.lib.stride_tricks.sliding_window_view(task.corpus.evaluation, 8)
    truth = task.truth(7)
    assert truth.token_marginals is not None
    assert truth.label_distribution is not None
    for t in range(7):
        assert truth.token_marginals[t] == pytest.approx(np.bincount(windows[:, t], minlength=256) / len(windows))
        share = np.bincount(windows[:, t + 1], minlength=256) / len(windows)
        assert truth.label_distribution[t] == pytest.approx(share)


def test_the_standard_library_is_the_default() -> None:
    record = TextBytes().record
    assert str(record["corpus"]).startswith("the standard library of Python 3")
    assert isinstance(record["bytes"], int)
    assert record["bytes"] > 5_000_000
    assert len(str(record["hash"])) == 32
    with pytest.raises(NotComputable, match="the law of text"):
        TextBytes().log_posterior(TextBytes().sample(Stream(), 0, 1, 8))


def leaking_part(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Evaluation windows come from the training part."""
    return task.sample(Stream(seed=stream.seed, name="train"), start, count, length)


def shuffled_bytes(task: Task, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Each byte has its law; together they are no text."""
    assert isinstance(task, TextBytes)
    text = task.corpus.evaluation
    places = stream.words("shuffled", length, start, count, length + 1) % np.uint64(len(text))
    tokens = torch.from_numpy(text[places.astype(np.int64)].astype(np.int64))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def test_shuffled_bytes_are_caught(folder: Path) -> None:
    task = TextBytes(path=str(folder))
    assert not catches("second_answer", task)
    assert catches("second_answer", mutant(task, shuffled_bytes))


def test_a_leaking_split_is_caught() -> None:
    assert catches("token_marginals", mutant(TextBytes(), leaking_part))


def test_what_files_and_folders_are_called(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SettingError, match="path: expected a folder with text, got ''"):
        TextBytes(path="")
    assert TextBytes(path=".").record["corpus"] == folder.name
    with pytest.raises(SettingError, match="path: expected a folder with text, got '~nobody-at-all/x'"):
        TextBytes(path="~nobody-at-all/x")
    other = folder / "other"
    other.mkdir()
    try:
        (other / os.fsdecode(b"\xff.txt")).write_text("any name")
    except OSError:
        pytest.skip("the file system takes no such name")
    for text in TEXTS:
        (other / text[:7]).write_bytes(text.encode() + b"\xff")
    assert TextBytes(path=str(other)).record["files"] == 1 + len(TEXTS)


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SettingError, match=r"path: .* can be read, got '.*01\.txt \(Permission denied\)'|00\.txt"):
        TextBytes(path=str(folder))


def test_refusals(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SettingError, match=r"path: expected a folder with text, got '/no/such/folder'"):
        TextBytes(path="/no/such/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match=r"path: expected .* files for the training part .* \(0 files\)"):
        TextBytes(path=str(tmp_path / "empty"))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a").write_text("abc")
    with pytest.raises(SettingError, match=r"path: expected a folder with files for the \w+ part .* \(1 files\)"):
        TextBytes(path=str(tmp_path / "one"))
    task = TextBytes(path=str(folder))
    with pytest.raises(SettingError, match="length: expected from 1 to"):
        task.sample(Stream(), 0, 1, 10_000)
