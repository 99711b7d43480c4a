"""``TokenFile``: your own files of tokens."""

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NoReturn, Self

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray

from sparsity_lab.generators.batch import IGNORE, Batch, Vocabulary
from sparsity_lab.generators.corpus import find_files, hash_of, split, states_of
from sparsity_lab.generators.file_task import FileTask
from sparsity_lab.generators.format_recognition import Format
from sparsity_lab.generators.padding import Pad, without_padding
from sparsity_lab.generators.stream import Floats, Ints, Stream, open_unit, whole
from sparsity_lab.generators.task import Draw, NotComputable, Step, Truth
from sparsity_lab.generators.text_bytes import fingerprints
from sparsity_lab.generators.token_formats import Tokens, read_sequences
from sparsity_lab.settings import SettingError, Shown, check_least, counted, register

_TELLING = 32  # first tokens of a window, which identify it
_RANGES = 16
_WINDOWS = 2**18  # at a time
_SHOWN = 8  # of all files
_EXAMPLE = str(Path(sysconfig.get_path("stdlib")) / "asyncio" / "*.py")


@dataclass(frozen=True, eq=False)
class TokenPart:
    """Sequences, concatenated.

    Attributes:
        tokens: the tokens of all sequences.
        sizes: (N,) the size of each sequence.
    """

    tokens: Tokens
    sizes: Ints

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> Self:
        return cls(np.concatenate(sequences), np.array([len(own) for own in sequences], dtype=np.int64))

    def num_windows(self, length: int) -> Ints:
        """(N,) number of windows of l + 1 tokens in each sequence. A shorter sequence is one padded window."""
        return np.maximum(self.sizes - length, 1)

    def window(self, index: Ints, length: int, size: int) -> tuple[Tokens, NDArray[np.bool_]]:
        """(B, size) the first tokens of some windows of l + 1 tokens, and a mask that is False after a sequence's
        end."""
        ends = np.cumsum(self.num_windows(length))
        which = np.searchsorted(ends, index, side="right")
        last = np.cumsum(self.sizes)
        first = last - self.sizes
        first = first[which] + index - (ends - self.num_windows(length))[which]
        at = first[:, None] + np.arange(size)
        return self.tokens[np.minimum(at, len(self.tokens) - 1)], at < last[which][:, None]


@dataclass(frozen=True, eq=False)
class TokenParts:
    """The contents of token files.

    Attributes:
        hash: hash of the files' contents, in order.
        forms: how each file was read.
        padding: a note on the removed padding; empty if there was none.
        by: ``"files"`` if whole sequences are for evaluation, else ``"blocks"``.
    """

    hash: str
    forms: tuple[str, ...]
    padding: str
    by: str
    train: TokenPart
    evaluation: TokenPart


@register
class TokenFile(FileTask):
    """Windows of l + 1 tokens inside the sequences of a file. Each token after the first is a target. T = l.

    A window starts anywhere with equal probability. A shorter sequence is one window, padded at its end. Padding is
    not scored, and no earlier token can attend to it. Padding in the file is removed. The stream named ``train``
    draws from the training part, all others from the evaluation part. The evaluation part is one sequence in ten, by
    the hash of its content, or one block in ten if there are few sequences.

    Attributes:
        path: a file, a folder, a pattern, or several of them: ``.npy``, ``.npz``, ``.bin``, ``.json``, ``.jsonl``,
            ``.parquet``, or text. It is opened only when data are made. None is an example, the source of Python's
            package ``asyncio``.
        vocab_size: V; all tokens are below it.
        format: ``"auto"`` recognizes the format, and raises an error if two are possible. Others: ``token_formats``.
        column: column of a parquet file, key of the objects of a ``.jsonl``, or array of an ``.npz``.
        pad: the padding ID. ``"auto"`` finds it if it is obvious, and ``"none"`` keeps everything as data. -100 is
            never a token and is always removed.
        corpus_hash: hash of the files' contents, as in ``TextBytes``.
    """

    path: str | tuple[str, ...] | None = None
    vocab_size: int = 256
    format: Format = "auto"
    column: str = ""
    pad: Pad = "auto"
    corpus_hash: str = ""

    @classmethod
    def examples(cls) -> "tuple[TokenFile, ...]":
        return (cls(format="bytes"),)

    def check(self) -> None:
        super().check()
        check_least(2, vocab_size=self.vocab_size)

    def checked_length(self, length: int) -> int:
        length = super().checked_length(length)
        most = min(int(part.sizes.max()) for part in (self.parts.train, self.parts.evaluation)) - 1
        if length > most:
            raise SettingError("length", f"from 1 to {most}, below the longest sequence of each part", length)
        return length

    @property
    def found_hash(self) -> str:
        return self.parts.hash

    @cached_property
    def parts(self) -> TokenParts:
        """The tokens, and how the files were read.

        Raises:
            SettingError: a file cannot be read or has an ambiguous format, a token is outside the vocabulary, or the
                contents do not have the ``corpus_hash``.
        """
        parts = _read(
            states_of(find_files(self.path or _EXAMPLE)), self.vocab_size, self.format, self.column, self.pad
        )
        if self.corpus_hash not in ("", parts.hash):
            expected = f"{parts.hash}, the hash of the tokens at {self.path or _EXAMPLE}"
            raise SettingError("corpus_hash", expected, self.corpus_hash)
        return parts

    @property
    def record(self) -> dict[str, object]:
        parts = self.parts
        more = [f"and {len(parts.forms) - _SHOWN} more"] if len(parts.forms) > _SHOWN else []
        said: dict[str, object] = {"files": [*parts.forms[:_SHOWN], *more], "hash": parts.hash, "by": parts.by}
        return said | ({"padding": parts.padding} if parts.padding else {})

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.numbered(self.vocab_size)

    @property
    def _fill(self) -> int:
        return self.pad if isinstance(self.pad, int) and 0 <= self.pad < self.vocab_size else 0

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length, count = self.checked_length(length), whole("count", count, 0)
        part = self._part(stream.name)
        unit = open_unit(stream.words("positions", length, start, count, 1)[:, 0])
        index = (unit * part.num_windows(length).sum()).astype(np.int64)
        window, there = part.window(index, length, length + 1)
        tokens = np.where(there, window.astype(np.int64), self._fill)[:, :-1]
        targets = np.where(there, window.astype(np.int64), IGNORE)[:, 1:]
        return Batch(
            torch.from_numpy(np.ascontiguousarray(tokens)),
            torch.from_numpy(np.ascontiguousarray(targets)),
            vocabulary=self.vocabulary,
        )

    def _part(self, name: str) -> TokenPart:
        return self.parts.train if name == "train" else self.parts.evaluation

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        """The range of the window, or of the first equal one, out of 16 equal ranges of all windows."""
        passages, cells, law = _passages(self._part(name), tokens.shape[1], self._fill)
        seen = fingerprints(tokens[:, :_TELLING].T)
        where = np.searchsorted(passages, seen).clip(0, len(passages) - 1)
        if not np.array_equal(passages[where], seen):
            raise ValueError("no passage of the tokens")
        return {"values": Draw(cells[where][:, None], law=law)}

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        part = self.parts.evaluation
        counts = np.bincount(
            np.minimum(part.sizes - 1, length), weights=part.num_windows(length), minlength=length + 1
        )
        return Truth(num_targets=length if counts[:-1].sum() == 0 else counts / counts.sum())

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        """Every token that another one of its sequence follows, if the tokens are a passage of the evaluation
        part."""
        window = np.array(tokens, dtype=np.int64)
        filled = len(window) - len(np.trim_zeros(window - self._fill, "b"))
        for used in (len(window), *range(len(window) - filled, len(window))):
            if (passage := window[:used].tobytes()) and self._is_there(passage, whole_one=used < len(window)):
                return tuple(Step(t) for t in range(used if used == len(window) else used - 1))
        raise ValueError("no passage of the tokens")

    def _is_there(self, passage: bytes, whole_one: bool) -> bool:
        if whole_one:
            return passage in self._short
        at = self._evaluation.find(passage)
        while at % 8 > 0:  # between two tokens; -1 % 8 is 7
            if at < 0:
                return False
            at = self._evaluation.find(passage, at + 1)
        return True

    @cached_property
    def _evaluation(self) -> bytes:
        return self.parts.evaluation.tokens.astype(np.int64).tobytes()

    @cached_property
    def _short(self) -> set[bytes]:
        part, most = self.parts.evaluation, 2**12
        sequences = np.split(part.tokens.astype(np.int64), np.cumsum(part.sizes)[:-1])
        return {own.tobytes() for own in sequences if len(own) <= most}

    def log_posterior(self, batch: Batch) -> NoReturn:
        raise NotComputable("the distribution of these tokens is unknown")


@lru_cache(maxsize=8)
def _passages(part: TokenPart, length: int, fill: int) -> tuple[NDArray[np.uint64], Ints, Floats]:
    """Fingerprints of all windows of a part, ascending; the range where each occurs first; and the law of the
    range."""
    size, total = min(length, _TELLING), int(part.num_windows(length).sum())
    found = []
    for first_row in range(0, total, _WINDOWS):
        rows = np.arange(first_row, min(first_row + _WINDOWS, total))
        window, there = part.window(rows, length, size)
        found.append(fingerprints(np.where(there, window.astype(np.int64), fill).T))
    passages, first, which = np.unique(np.concatenate(found), return_index=True, return_inverse=True)
    cells = first * _RANGES // total
    return passages, cells, np.bincount(cells[which], minlength=_RANGES) / total


@lru_cache(maxsize=4)
def _read(
    states: tuple[tuple[Path, int, int], ...], vocab_size: int, form: Format, column: str, pad: Pad
) -> TokenParts:
    files = [file for file, size, _ in states if size]
    sequences, forms = list[Tokens](), list[str]()
    for file in files:
        found = read_sequences(file, form, column)
        sequences += found.sequences
        forms.append(f"{file.name}: {found.form}")
    unpadded = without_padding(sequences, pad)
    sequences = [own for own in unpadded.sequences if len(own) > 1]
    low, high = (int(edge([edge(own) for own in sequences], initial=0)) for edge in (np.min, np.max))
    if low < 0:
        raise SettingError("path", "tokens of at least 0 (set pad if this is the padding value)", low)
    if high >= vocab_size:
        raise SettingError("vocab_size", f"at least {high + 1}, one more than the largest token", vocab_size)
    by, train, evaluation = split(sequences)
    train, evaluation = ([own for own in part if len(own) > 1] for part in (train, evaluation))
    if not train or not evaluation:
        total = counted(sum(map(len, sequences)), "token")
        raise SettingError("path", "enough tokens for a training and an evaluation part", Shown(total))
    of_all = hash_of(np.fromfile(file, dtype=np.uint8) for file in files)
    return TokenParts(of_all, tuple(forms), unpadded.note, by, TokenPart.of(train), TokenPart.of(evaluation))
