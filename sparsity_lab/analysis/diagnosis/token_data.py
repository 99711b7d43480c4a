"""The user's own data: sequences of tokens from files, and marks of the important ones.

Files are read as ``TokenFile`` reads them: ``token_formats`` lists the forms, ``padding`` says what is taken away.
Labels have the same shape in numbers 0 and 1; those of a text have a number for each token. In labeled data the last
token of each sequence is taken as its answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.padding import Pad, without_padding
from sparsity_lab.generators.token_formats import Tokens, read_sequences
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
        cls, sequences: Sequence[Tokens], labels: Sequence[Tokens] | None = None, forms: Sequence[str] = ()
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


def read_tokens(
    paths: Sequence[Path],
    labels: Sequence[Path] = (),
    *,
    format: str = "auto",
    column: str = "",
    tokenizer: Path | None = None,
    pad: Pad = "auto",
) -> TokenData:
    """The tokens of some files, and their labels.

    Args:
        labels: none, or a file for each of ``paths``.
        format, column, tokenizer: as ``token_formats.read_sequences`` has them.
        pad: the ID that fills sequences up; ``"auto"`` finds it where it is obvious, ``"none"`` keeps all as data.

    Raises:
        SettingError: names the file, what was expected and what came; also where it could be two things.
    """
    if not paths:
        raise SettingError("paths", "at least one file", Shown("nothing"))
    if labels and len(labels) != len(paths):
        raise SettingError("--labels", f"a file for each of {len(paths)} data files", len(labels))
    sequences: list[Tokens] = []
    marks: list[Tokens] = []
    forms = []
    for i, path in enumerate(paths):
        found = read_sequences(path, format, column, tokenizer)
        if not any(len(sequence) for sequence in found.sequences):
            raise SettingError(str(path), "a file with tokens", Shown("no tokens"))
        sequences += found.sequences
        forms.append(f"{path.name}: {found.form}, {sum(map(len, found.sequences))} tokens")
        if labels:
            marks += _marks(labels[i], found.sequences)
    unpadded = without_padding(sequences, pad)
    marks = [own[part] for own, part in zip(marks, unpadded.inside, strict=True)] if labels else []
    return TokenData.of(unpadded.sequences, marks if labels else None, [*forms, *filter(None, [unpadded.note])])


def _marks(path: Path, sequences: Sequence[Tokens]) -> list[Tokens]:
    found = read_sequences(path)
    own = found.sequences
    if found.of_text:
        raise SettingError(str(path), "labels 0 and 1: whole numbers in a text, or an .npy array", Shown(found.form))
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
