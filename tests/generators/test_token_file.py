"""TokenFile: windows inside sequences, and nothing scored where they have ended."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsity_lab.generators import IGNORE, Stream, TokenFile
from sparsity_lab.models import Decoder
from sparsity_lab.settings import SettingError, identifier

SIZES = np.random.default_rng(0).integers(3, 30, 80)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Sequence i counts from 100 i on, filled up with 0."""
    table = np.zeros((80, 30), dtype=np.uint16)
    for i, size in enumerate(SIZES):
        table[i, :size] = 100 * (i + 1) + np.arange(size)
    np.save(tmp_path / "rows.npy", table)
    return tmp_path / "rows.npy"


@pytest.mark.parametrize("name", ["train", "evaluation"])
def test_windows_are_of_one_sequence_each_and_filled_up_at_the_end(rows: Path, name: str) -> None:
    task = TokenFile(path=rows, vocab_size=9000)
    batch = task.sample(Stream(name=name), 0, 3000, 12)
    assert (batch.tokens.shape, batch.targets.shape) == ((3000, 12), (3000, 12))
    there = batch.tokens != 0
    steps = batch.tokens[:, 1:] - batch.tokens[:, :-1]
    assert (steps[there[:, 1:]] == 1).all()
    assert torch.equal(batch.targets[batch.scored], batch.tokens[batch.scored] + 1)
    # The last token of a short sequence has nothing after it.
    ends = there & ~torch.nn.functional.pad(there[:, 1:], (0, 1), value=True)
    assert not batch.scored[ends].any()
    assert not batch.scored[~there].any()
    part = task.parts.train if name == "train" else task.parts.evaluation
    windows = {
        (int(first), int(last)) for first, last in zip(batch.tokens[:, 0], batch.tokens.max(1).values, strict=True)
    }
    assert len(windows) == part.num_windows(12).sum()
    counts = task.truth(12).num_targets
    assert isinstance(counts, np.ndarray)
    if name == "evaluation":
        seen = np.bincount(batch.scored.sum(1), minlength=13) / 3000
        assert np.abs(seen - counts).max() < 5 * np.sqrt(0.25 / 3000)


def test_both_parts_hold_all_sequences_and_none_twice(rows: Path) -> None:
    parts = TokenFile(path=rows, vocab_size=9000).parts
    assert parts.by == "files"
    assert sorted([*parts.train.sizes, *parts.evaluation.sizes]) == sorted(SIZES)
    assert len(np.intersect1d(parts.train.tokens, parts.evaluation.tokens)) == 0
    assert parts.forms == ("rows.npy: array",)
    assert parts.padding == (
        f"0 fills the ends of {sum(SIZES < 30)} sequences, {2400 - SIZES.sum()} tokens: taken as padding "
        "(--pad none keeps it as data)"
    )


@pytest.mark.parametrize("files", [1, 8, 9, 20])
def test_the_record_says_the_padding_of_any_number_of_files(rows: Path, files: int) -> None:
    paths = tuple(str(rows.with_name(f"{i}.npy")) for i in range(files))
    for i, path in enumerate(paths):
        np.save(path, np.load(rows) + 9 * i * (np.load(rows) > 0))
    task = TokenFile(path=paths, vocab_size=9000)
    shown = [f"{i}.npy: array" for i in range(min(files, 8))]
    assert task.record["files"] == [*shown, *([f"and {files - 8} more"] if files > 8 else [])]
    assert task.record["padding"] == task.parts.padding != ""


def test_no_token_can_attend_to_what_fills_up(rows: Path) -> None:
    """Whatever the fill is, the logits at scored positions are the same."""
    task = TokenFile(path=rows, vocab_size=9000)
    batch = task.sample(Stream(), 0, 200, 25)
    model = Decoder(num_layers=1, d_model=16, num_heads=2).build(0, vocab_size=9000).eval()
    other = torch.where(batch.tokens == 0, 5, batch.tokens)
    assert not torch.equal(other, batch.tokens)
    first, second = (model(tokens, scored=batch.scored).logits for tokens in (batch.tokens, other))
    assert torch.equal(first, second)


def test_one_long_sequence_as_nano_gpt_writes_it(tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, 50_257, 100_000).astype(np.uint16)
    tokens.tofile(tmp_path / "train.bin")
    task = TokenFile(path=tmp_path / "train.bin", vocab_size=50_304).planned((512,))
    assert task.record["files"] == ["train.bin: numbers of 16 bits"]
    assert task.record["by"] == "blocks"
    batch = task.sample(Stream(name="evaluation"), 0, 50, 512)
    assert bool(batch.scored.all())
    row = batch.tokens[0].numpy().astype(np.uint16).tobytes()
    assert row in tokens.tobytes()
    assert identifier(task) == identifier(task.replace(path="/elsewhere"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 300}, "vocab_size: expected at least 80[0-9]*, one more than the largest token, got 300"),
        ({"vocab_size": 1}, "vocab_size: expected at least 2, got 1"),
        ({"path": "/no/where.npy"}, "path: expected a file, .* got '/no/where.npy'"),
        ({"format": "jsonl"}, "rows.npy: found bytes that are not UTF-8 text"),
        ({"format": "npu"}, "format: expected 'auto'"),
        ({"pad": "some"}, "pad: expected"),
        ({"corpus_hash": "0" * 32}, "the hash of the tokens at"),
    ],
)
def test_refusals(rows: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        TokenFile(**{"path": rows, "vocab_size": 9000, **change}).sample(Stream(), 0, 1, 8)
    with pytest.raises(SettingError, match="length: expected from 1 to 2[0-9], below the longest sequence"):
        TokenFile(path=rows, vocab_size=9000).sample(Stream(), 0, 1, 30)


def test_the_fill_is_the_padding_that_is_given(rows: Path) -> None:
    batch = TokenFile(path=rows, vocab_size=9000, pad=0).sample(Stream(), 0, 100, 25)
    assert set(batch.tokens[~batch.scored & (batch.tokens < 100)].tolist()) == {0}
    assert int((batch.targets == IGNORE).sum()) > 0
