"""The user's own data: sequences of tokens from files, and marks of the important ones.

A file is read as

- an array (``.npy``): integers (n,), one sequence, or (N, n), N sequences;
- lines of whole numbers, one sequence a line: a ``.txt`` file that holds nothing else;
- bytes, one sequence: any other file.

Labels have the same shape in numbers 0 and 1; those of a file of bytes have a number for each byte. In labeled data
the last token of each sequence is taken as its answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.settings import SettingError, Shown

__all__ = ["TokenData", "read_tokens"]

Ints = NDArray[np.int64]

_MOST_DIFFERENT = 2**16
_TEST_SHARE = 5  # one sequence in so many, or the last of so many parts of each


@dataclass(frozen=True)
class TokenData:
    """Sequences of tokens 0 .. V - 1.

    Attributes:
        sequences: of one dimension each.
        labels: a bool array for each sequence, True for an important token; None without labels.
        vocab_size: V, the number of different tokens; they are numbered in ascending order.
        forms: how each file was read, for people.
    """

    sequences: tuple[Ints, ...]
    labels: tuple[NDArray[np.bool_], ...] | None
    vocab_size: int
    forms: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, sequences: Sequence[Ints], labels: Sequence[Ints] | None = None, forms: Sequence[str] = ()
    ) -> "TokenData":
        """Any integers as token data.

        Raises:
            SettingError: no tokens, fewer than two different ones or more than 65536, or labels that are not 0 and 1
                or not one for each token.
        """
        kept = [np.asarray(sequence) for sequence in sequences if len(sequence)]
        if not kept:
            raise SettingError("tokens", "at least one token", Shown("none"))
        different, tokens = np.unique(np.concatenate(kept), return_inverse=True)
        if not 2 <= len(different) <= _MOST_DIFFERENT:
            raise SettingError("tokens", f"2 to {_MOST_DIFFERENT} different tokens", len(different))
        cuts = np.cumsum([len(sequence) for sequence in kept])[:-1]
        marks = None
        if labels is not None:
            if len(labels) != len(sequences):
                raise SettingError("labels", f"labels of {len(sequences)} sequences", f"{len(labels)}")
            for i, (sequence, own) in enumerate(zip(sequences, labels, strict=True)):
                if len(own) != len(sequence):
                    raise SettingError(f"labels[{i}]", f"{len(sequence)} labels, one a token", len(own))
                if not np.isin(own, (0, 1)).all():
                    raise SettingError(f"labels[{i}]", "labels 0 and 1", int(own[~np.isin(own, (0, 1))][0]))
            marks = tuple(np.asarray(own, dtype=bool) for own in labels if len(own))
        return cls(tuple(np.split(tokens.astype(np.int64), cuts)), marks, len(different), tuple(forms))

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)

    def split(self) -> tuple[list[Ints], list[Ints]]:
        """Training and test sequences: of at least ten, every fifth is for the test; of fewer, the last fifth of
        each."""
        if len(self.sequences) >= 2 * _TEST_SHARE:
            test = [own for i, own in enumerate(self.sequences) if i % _TEST_SHARE == _TEST_SHARE - 1]
            return [own for i, own in enumerate(self.sequences) if i % _TEST_SHARE != _TEST_SHARE - 1], test
        cuts = [len(own) - len(own) // _TEST_SHARE for own in self.sequences]
        pairs = list(zip(self.sequences, cuts, strict=True))
        return [own[:cut] for own, cut in pairs], [own[cut:] for own, cut in pairs]


def read_tokens(paths: Sequence[Path], labels: Sequence[Path] = ()) -> TokenData:
    """The tokens of some files, and their labels.

    Args:
        labels: none, or a file for each of ``paths``.

    Raises:
        SettingError: names the file, what was expected and what came.
    """
    if not paths:
        raise SettingError("paths", "at least one file", Shown("nothing"))
    if labels and len(labels) != len(paths):
        raise SettingError("--labels", f"a file for each of {len(paths)} data files", len(labels))
    sequences: list[Ints] = []
    marks: list[Ints] = []
    forms = []
    for i, path in enumerate(paths):
        own, form = _read(path)
        if not any(len(sequence) for sequence in own):
            raise SettingError(str(path), "a file with tokens", Shown("an empty file"))
        sequences += own
        forms.append(f"{path.name}: {form}, {sum(map(len, own))} tokens")
        if labels:
            marks += _marks(labels[i], own)
    return TokenData.of(sequences, marks if labels else None, forms)


def _marks(path: Path, sequences: Sequence[Ints]) -> list[Ints]:
    own, form = _read(path)
    if form == "bytes":
        raise SettingError(
            str(path), "labels 0 and 1: whole numbers in a .txt file, or an .npy array", Shown("bytes")
        )
    # A flat list of marks is as good as lines of them where there is one sequence.
    if len(sequences) == 1 and len(own) > 1:
        own = [np.concatenate(own)]
    if len(own) != len(sequences):
        raise SettingError(str(path), f"labels of {len(sequences)} sequences", len(own))
    for i, (sequence, marks) in enumerate(zip(sequences, own, strict=True)):
        where = f"{path}, sequence {i + 1}" if len(own) > 1 else str(path)
        if len(marks) != len(sequence):
            raise SettingError(where, f"{len(sequence)} labels, one a token", len(marks))
        if not np.isin(marks, (0, 1)).all():
            raise SettingError(where, "labels 0 and 1", int(marks[~np.isin(marks, (0, 1))][0]))
    return own


def _read(path: Path) -> tuple[list[Ints], str]:
    """Sequences of a file, and how it was read."""
    try:
        if path.suffix.lower() == ".npy":
            return _array(path), "array"
        content = path.read_bytes()
    except OSError as error:
        raise SettingError(str(path), "a file that can be read", Shown(error.strerror or str(error))) from None
    if path.suffix.lower() == ".txt" and (lines := _numbers(content)) is not None:
        return lines, f"{len(lines)} lines of whole numbers"
    return [np.frombuffer(content, dtype=np.uint8).astype(np.int64)], "bytes"


def _array(path: Path) -> list[Ints]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise SettingError(str(path), "an .npy array", Shown(str(error).partition("\n")[0])) from None
    whole = isinstance(array, np.ndarray) and (array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer))
    if not whole or array.ndim not in (1, 2):
        given = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise SettingError(str(path), "integers of shape (n,) or (N, n)", Shown(given))
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise SettingError(str(path), "integers below 2^63", int(array.max()))
    return list(np.atleast_2d(array.astype(np.int64)))


def _numbers(content: bytes) -> list[Ints] | None:
    """Lines of whole numbers, empty ones left out; None if it is something else."""
    lines = [line.split() for line in content.splitlines()]
    try:
        return [np.array([int(word) for word in line], dtype=np.int64) for line in lines if line] or None
    except (ValueError, OverflowError):
        return None
