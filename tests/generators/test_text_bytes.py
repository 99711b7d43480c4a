"""TextBytes: where its bytes come from, and what is refused."""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generators.mutants import catches, mutant

from sparsity_lab.generators import Batch, Mixture, NotComputable, Stream, Task, TextBytes
from sparsity_lab.generators.corpus import Corpus
from sparsity_lab.settings import SettingError, identifier

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
    with pytest.raises(NotComputable, match="the distribution of natural text"):
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
    for nothing in ("", (), ("a", "")):
        with pytest.raises(SettingError, match="path: expected a file, a folder with files, or a pattern of files"):
            TextBytes(path=nothing)
    assert TextBytes(path=".").record["corpus"] == folder.name
    with pytest.raises(SettingError, match="path: expected a file, .*, got '~nobody-at-all/x'"):
        opened("~nobody-at-all/x")
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
        opened(folder)


def opened(path: Any) -> Corpus:
    return TextBytes(path=path).corpus


def test_refusals(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SettingError, match=r"path: expected a file, a folder .* got '/no/such/folder'"):
        opened("/no/such/folder")
    with pytest.raises(SettingError, match=rf"got '{folder}/01.tx'; did you mean '{folder}/01.txt'"):
        opened(folder / "01.tx")
    with pytest.raises(SettingError, match=r"path: expected a pattern that matches a file, got '.*/\*.log'"):
        opened(folder / "*.log")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        SettingError, match=r"path: expected at least 20 bytes of text, .* got 0 bytes in 0 files of empty"
    ):
        opened(tmp_path / "empty")
    with pytest.raises(SettingError, match="corpus_hash: expected 32 hexadecimal digits, or an empty string"):
        TextBytes(corpus_hash="abc")
    task = TextBytes(path=str(folder))
    with pytest.raises(SettingError, match="length: expected from 1 to"):
        task.sample(Stream(), 0, 1, 10_000)
    (tmp_path / "log.gz").write_bytes(gzip.compress(BOOK.encode()))
    with pytest.raises(SettingError, match=r"path: .*log.gz is compressed with"):
        opened(tmp_path / "log.gz")
    (tmp_path / "wide.txt").write_text(BOOK, encoding="utf-16")
    with pytest.raises(SettingError, match=r"path: .*wide.txt is UTF-16; convert it"):
        opened(tmp_path / "wide.txt")


# --- files, and how they are split

BOOK = "".join(f"Line {i} of a book, and {i * i % 97}.\n" for i in range(4000))


def test_a_file_a_folder_a_pattern_and_several_of_them(folder: Path) -> None:
    everything = opened(folder)
    assert opened(folder / "*.txt").hash == everything.hash
    assert opened((folder / "0*.txt", str(folder / "[1-3]*.txt"))).hash == everything.hash
    assert opened((folder, folder / "01.txt")).files == 39  # each once
    assert str(TextBytes(path=folder)) == f"TextBytes(path='{folder}')"
    (folder / "deep").mkdir()
    (folder / "deep" / "more.txt").write_text("more")
    assert opened(folder / "**" / "*.txt").files == opened(folder).files == 40


def test_few_files_are_split_by_blocks(tmp_path: Path) -> None:
    """No byte is lost or in both parts, and what lies between two blocks in the text is not in one window."""
    (tmp_path / "book").write_text(BOOK)
    corpus = opened(tmp_path / "book")
    assert (corpus.by, corpus.files, corpus.num_bytes) == ("blocks", 1, len(BOOK))
    train, evaluation = (bytes(part).split(b"\0")[:-1] for part in (corpus.train, corpus.evaluation))
    assert len(evaluation) == len(train + evaluation) // 10
    order = [train.pop(0) if i % 10 != 9 else evaluation.pop(0) for i in range(len(train) + len(evaluation))]
    assert b"".join(order).decode() == BOOK
    assert {len(block) for block in order} <= {4081, 4082}


@pytest.mark.parametrize("count", [2, 17])
def test_a_few_files_of_any_number_have_both_parts(tmp_path: Path, count: int) -> None:
    for i in range(count):
        (tmp_path / f"{i}.log").write_text(f"{i}\n" + BOOK[: 9000 + 100 * i])
    corpus = opened(tmp_path)
    share = len(corpus.evaluation) / (len(corpus.evaluation) + len(corpus.train))
    assert 1 / 40 < share < 1 / 3


# --- the hash as a field


def test_the_hash_is_of_the_contents_in_their_order(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(BOOK)
    first, second = (TextBytes(path=tmp_path / name).planned() for name in ("one", "two"))
    assert len(first.corpus_hash) == 32
    assert identifier(first) == identifier(second) != identifier(TextBytes())
    (tmp_path / "two").write_text(BOOK + ".")
    assert identifier(TextBytes(path=tmp_path / "two").planned()) != identifier(first)
    # Without a hash the path is all that tells them apart, and the id is that of earlier releases.
    assert identifier(TextBytes(path="one")) != identifier(TextBytes(path="two"))


def test_the_hash_of_the_standard_library_is_a_field_and_no_part_of_the_id() -> None:
    """With another Python the ids are the same, and what was made with this one says so."""
    typed, planned = TextBytes(), TextBytes().planned()
    assert planned.corpus_hash == typed.record["hash"]
    assert identifier(planned) == identifier(typed) == identifier(typed.replace(corpus_hash="0" * 32))
    assert planned.unplanned() == typed
    with pytest.raises(SettingError, match=r"expected \w{32}, the hash of the standard library of Python 3"):
        typed.replace(corpus_hash="0" * 32).sample(Stream(), 0, 1, 8)


def test_another_text_than_the_hash_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "book").write_text(BOOK)
    task = TextBytes(path=tmp_path / "book").planned((4000,))
    assert task.planned() is task
    (tmp_path / "book").write_text(BOOK.replace("7", "8"))
    again = task.replace()
    with pytest.raises(SettingError, match=rf"expected \w{{32}}, the hash of .*book .* got '{task.corpus_hash}'"):
        again.sample(Stream(), 0, 1, 8)
    with pytest.raises(SettingError, match="length: expected from 1 to"):
        TextBytes(path=tmp_path / "book").planned((90_000,))


def test_a_mixture_is_planned_with_its_parts(tmp_path: Path) -> None:
    (tmp_path / "book").write_text(BOOK)
    mixture = Mixture(tasks=(TextBytes(path=tmp_path / "book"), TextBytes()))
    assert not mixture.is_planned
    planned = mixture.planned()
    assert planned.is_planned
    assert planned.tasks == (TextBytes(path=tmp_path / "book").planned(), TextBytes().planned())
    assert planned.unplanned() == mixture
    assert len(Mixture(tasks=(TextBytes(path="/nowhere"), TextBytes(path="/gone"))).tasks) == 2
