"""``TextBytes``: real text, byte by byte, from any files."""

from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators.batch import Batch, Vocabulary
from sparsity_lab.generators.corpus import END_OF_FILE, Corpus, read_corpus
from sparsity_lab.generators.file_task import FileTask
from sparsity_lab.generators.query_layout import rows_of_chunks
from sparsity_lab.generators.stream import Floats, Ints, Stream, open_unit, whole
from sparsity_lab.generators.task import Draw, NotComputable, Step, Truth
from sparsity_lab.settings import SettingError, register

Bytes = NDArray[np.uint8]

_BYTES = 256
_TELLING = 32  # first bytes of a window, which identify it
_RANGES = 16
_NEAR_THE_END = 14  # powers of two; the last windows have one cell for each range of distances to the end


@register
class TextBytes(FileTask):
    """Windows of l + 1 bytes of text. Each byte after the first is a target. T = l, and tokens are bytes.

    The stream named ``train`` draws from the training part of the corpus, all others from its evaluation part. The
    evaluation part is one file in ten, by the hash of its content, or one block in ten if there are few files. A
    window starts anywhere in its part with equal probability. Byte 0 separates files and blocks.

    The declared law of a single byte, by position, is that of the evaluation part. There is no rule. So there are no
    sources, and no exact optimum to compare a model with.

    >>> TextBytes().vocabulary.names[97:100]
    ('a', 'b', 'c')

    Attributes:
        path: a file, a folder, a pattern such as ``"logs/*.txt"``, or several of them. Files are read unchanged. None
            is the source of Python's standard library. The text is opened only when data are made.
        corpus_hash: hash of the text. Leave it empty: ``train`` and ``run_sweep`` set it when they plan a run, and it
            is checked when data are made. A run with a hash does not have the path in its id, so the text may be
            moved. The hash of the standard library is not in the id either, so ids are the same for every Python.
    """

    path: str | tuple[str, ...] | None = None
    corpus_hash: str = ""

    def checked_length(self, length: int) -> int:
        length = super().checked_length(length)
        most = min(len(self.corpus.train), len(self.corpus.evaluation)) - 1
        if length > most:
            expected = f"from 1 to {most}, the number of bytes in the smaller part of the corpus"
            raise SettingError("length", expected, length)
        return length

    @property
    def found_hash(self) -> str:
        return self.corpus.hash

    @cached_property
    def corpus(self) -> Corpus:
        """The text: name, number of files and bytes, hash.

        Raises:
            SettingError: the text cannot be read, is too short for two parts, or does not have the ``corpus_hash``.
        """
        corpus = read_corpus(self.path)
        if self.corpus_hash not in ("", corpus.hash):
            expected = f"{corpus.hash}, the hash of {self.path or corpus.name} ({corpus.num_bytes} bytes)"
            raise SettingError("corpus_hash", expected, self.corpus_hash)
        return corpus

    @property
    def record(self) -> dict[str, object]:
        corpus = self.corpus
        sizes = {"corpus": corpus.name, "files": corpus.files, "bytes": corpus.num_bytes}
        return sizes | {"hash": corpus.hash, "by": corpus.by}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        named = {END_OF_FILE: "END", 9: "\\t", 10: "\\n", 13: "\\r", 32: "\u2423"}
        names = [named.get(b, chr(b) if 32 < b < 127 else f"x{b:02x}") for b in range(_BYTES)]
        return Vocabulary(names=tuple(names), roles=("special",) + ("data",) * (_BYTES - 1))

    @cached_property
    def _evaluation(self) -> bytes:
        return self.corpus.evaluation.tobytes()

    def _part(self, stream: Stream) -> Bytes:
        return self.corpus.train if stream.name == "train" else self.corpus.evaluation

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        length = self.checked_length(length)
        count, text = whole("count", count, 0), self._part(stream)
        windows = np.lib.stride_tricks.sliding_window_view(text, length + 1)
        first = open_unit(stream.words("positions", length, start, count, 1)[:, 0]) * len(windows)
        tokens = np.empty((count, length), dtype=np.int64)
        targets = np.empty((count, length), dtype=np.int64)
        for rows, _ in rows_of_chunks(0, count, length):
            window = windows[first[rows].astype(np.int64)]
            tokens[rows], targets[rows] = window[:, :-1], window[:, 1:]
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), vocabulary=self.vocabulary)

    def truth(self, length: int) -> Truth:
        length = self.checked_length(length)
        labels = _law_of_bytes(self.corpus.evaluation, length)[1:]
        return Truth.of_labels(labels, num_targets=length, build_marginals=partial(self._token_marginals, length))

    def _token_marginals(self, length: int) -> Floats:
        return _law_of_bytes(self.corpus.evaluation, length)[:-1]

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        """The place of the window in its part, or that of the first equal passage. The draws are its range out of 16
        equal ones, its distance to the end, and whether it is even."""
        passages, cells, law = _passages(self.corpus, name == "train", tokens.shape[1])
        seen = fingerprints(tokens[:, :_TELLING].T)
        where = np.searchsorted(passages, seen).clip(0, len(passages) - 1)
        if not np.array_equal(passages[where], seen):
            raise ValueError("no passage of the text")
        return {"values": Draw(cells[where][:, None], law=law)}

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        """Every token is a target, if the tokens are a passage of the evaluation part."""
        if bytes(tokens) not in self._evaluation:
            raise ValueError("no passage of the text")
        return tuple(Step(t) for t in range(len(tokens)))

    def log_posterior(self, batch: Batch) -> Float[Tensor, "scored V"]:
        raise NotComputable("the distribution of natural text is unknown")


def fingerprints(windows: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """A 64-bit hash of each column."""
    number = np.zeros(windows.shape[1], dtype=np.uint64)
    for one in windows:
        number *= np.uint64(0x9E3779B97F4A7C15)
        number += one.astype(np.uint64) + np.uint64(1)
        number ^= number >> np.uint64(29)
    return number


@lru_cache(maxsize=8)
def _passages(corpus: Corpus, training: bool, T: int) -> tuple[NDArray[np.uint64], Ints, Floats]:
    """For one part: fingerprints of all passages, ascending; the cell where each occurs first; and the law of the
    cell for a window of T + 1 bytes."""
    text = corpus.train if training else corpus.evaluation
    n, W = len(text) - T, min(T, _TELLING)
    windows = np.lib.stride_tricks.sliding_window_view(text[: n - 1 + W], W).T
    passages, first, which = np.unique(fingerprints(windows), return_index=True, return_inverse=True)
    from_end = n - first
    near = from_end < 1 << _NEAR_THE_END
    cells = 2 * np.where(near, np.log2(from_end).astype(np.int64), _NEAR_THE_END + first * _RANGES // n) + first % 2
    return passages, cells, np.bincount(cells[which], minlength=2 * (_NEAR_THE_END + _RANGES)) / n


def _law_of_bytes(text: Bytes, length: int) -> Floats:
    """(l + 1, 256): probability of each byte at each place of a window."""
    windows = len(text) - length
    counts = np.empty((length + 1, _BYTES))
    counts[0] = np.bincount(text[:windows], minlength=_BYTES)
    # At the next position, one byte leaves the range and one enters it.
    steps = np.eye(_BYTES)[text[windows:]] - np.eye(_BYTES)[text[:length]]
    counts[1:] = counts[0] + np.cumsum(steps, axis=0)
    return counts / windows
