"""The user's own data: sequences of tokens from files, and marks of the important ones.

Files are read as ``TokenFile`` reads them: ``token_formats`` lists the forms, ``padding`` says what is taken away.
Labels have the same shape, with 0 or 1 for each token. The last token of each sequence is then its only target, and
it needs the tokens marked 1. For other targets, labels are JSON lines (``.jsonl``), one per sequence. A line lists
the targets. Each target is a list of its own position and the positions it needs, counted from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.padding import Pad, without_padding
from sparsity_lab.generators.token_formats import Tokens, json_lines, read_sequences
from sparsity_lab.settings import SettingError, Shown, counted

Ints = NDArray[np.int64]
Targets = tuple[tuple[int, ...], ...]
"""Of a sequence: positions of a target and of what it needs, in this order."""
Labels = NDArray[np.bool_] | Targets

_MOST_DIFFERENT = 2**16
_TEST_SHARE = 5  # one sequence in so many, or the last of so many parts of each


@dataclass(frozen=True)
class TokenData:
    """Sequences of tokens 0 .. V - 1.

    >>> TokenData.of([np.array([5, 7, 5, 9])]).vocab_size
    3

    Attributes:
        sequences: of one dimension each.
        labels: for each sequence a bool array, True for an important token of the last one, or its targets, each
            with what it needs (see ``needs``); None without labels.
        vocab_size: V, the number of different tokens; they are numbered in ascending order.
        forms: how each file was read, for people.
    """

    sequences: tuple[Ints, ...]
    labels: tuple[Labels, ...] | None
    vocab_size: int
    forms: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, sequences: Sequence[Tokens], labels: Sequence[Tokens | Labels] | None = None, forms: Sequence[str] = ()
    ) -> "TokenData":
        """Any integers as token data.

        Raises:
            SettingError: there are no tokens, fewer than two different ones or more than 65536. Or labels are not 0
            and 1, one per token. Or a target needs a token that does not precede it.
        """
        kept = [np.asarray(sequence) for sequence in sequences if len(sequence)]
        if not kept:
            raise SettingError("tokens", "there are no tokens")
        different, tokens = np.unique(np.concatenate(kept), return_inverse=True)
        if not 2 <= len(different) <= _MOST_DIFFERENT:
            raise SettingError("tokens", f"2 to {_MOST_DIFFERENT} different tokens", len(different))
        cuts = np.cumsum([len(sequence) for sequence in kept])[:-1]
        marks = None
        if labels is not None:
            if len(labels) != len(sequences):
                raise SettingError("labels", f"labels of {counted(len(sequences), 'sequence')}", f"{len(labels)}")
            checked = [
                _checked(own, len(sequence), f"labels[{i}]")
                for i, (sequence, own) in enumerate(zip(sequences, labels, strict=True))
            ]
            marks = tuple(own for own, sequence in zip(checked, sequences, strict=True) if len(sequence))
        return cls(tuple(np.split(tokens.astype(np.int64), cuts)), marks, len(different), tuple(forms))

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)

    def needs(self) -> list[Targets]:
        """The labeled targets of each sequence."""
        assert self.labels is not None
        return [
            own if isinstance(own, tuple) else ((len(own) - 1, *np.flatnonzero(own[:-1]).tolist()),)
            for own in self.labels
        ]

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

    >>> path = Path("tokens.txt")
    >>> _ = path.write_text("1 2 3 1 2 3")
    >>> data = read_tokens([path])
    >>> data.vocab_size, data.forms
    (3, ('tokens.txt: 1 line of whole numbers, 6 tokens',))

    Args:
        labels: none, or a file for each of ``paths``.
        format, column, tokenizer: as ``token_formats.read_sequences`` has them.
        pad: the ID that fills sequences up; ``"auto"`` finds it where it is obvious, ``"none"`` keeps all as data.

    Raises:
        SettingError: names the file, what was expected and what came; also where it could be two things.
    """
    if not paths:
        raise SettingError("paths", "missing; give at least one file")
    if labels and len(labels) != len(paths):
        raise SettingError("--labels", f"a file for each of {len(paths)} data files", len(labels))
    sequences: list[Tokens] = []
    marks: list[Labels] = []
    forms = []
    for i, path in enumerate(paths):
        found = read_sequences(path, format, column, tokenizer)
        if not any(len(sequence) for sequence in found.sequences):
            raise SettingError(str(path), "the file has no tokens")
        sequences += found.sequences
        forms.append(f"{path.name}: {found.form}, {counted(sum(map(len, found.sequences)), 'token')}")
        if labels:
            marks += _marks(labels[i], found.sequences)
    unpadded = without_padding(sequences, pad)
    marks = [_cut(own, part) for own, part in zip(marks, unpadded.inside, strict=True)] if labels else []
    return TokenData.of(unpadded.sequences, marks if labels else None, [*forms, *filter(None, [unpadded.note])])


def _marks(path: Path, sequences: Sequence[Tokens]) -> list[Labels]:
    """The labels of a file's sequences."""
    own: list[Tokens | Targets]
    if path.suffix.lower() == ".jsonl":
        own = [_targets(value, f"{path}, sequence {i}") for i, value in enumerate(json_lines(path), 1)]
    else:
        found = read_sequences(path)
        if found.of_text:
            expected = "labels 0 and 1: whole numbers in a text, or an .npy array"
            raise SettingError(str(path), expected, Shown(found.form))
        # A flat list of marks is as good as lines of them where there is one sequence.
        joined = len(sequences) == 1 and len(found.sequences) > 1
        own = [np.concatenate(found.sequences)] if joined else [*found.sequences]
    if len(own) != len(sequences):
        raise SettingError(str(path), f"labels of {counted(len(sequences), 'sequence')}", len(own))
    where = [f"{path}, sequence {i}" if len(own) > 1 else str(path) for i in range(1, len(own) + 1)]
    return [_checked(labels, len(tokens), at) for labels, tokens, at in zip(own, sequences, where, strict=True)]


def _targets(value: object, where: str) -> Targets:
    lists = isinstance(value, list) and all(
        isinstance(one, list) and one and all(type(place) is int for place in one) for one in value
    )
    if not lists:
        raise SettingError(where, "a list of targets, each [position, needed, needed, ..]", str(value)[:60])
    return tuple(tuple(one) for one in cast("list[list[int]]", value))


def _checked(labels: Tokens | Labels, length: int, where: str) -> Labels:
    """Labels of a sequence of so many tokens."""
    if isinstance(labels, tuple):
        for target, *needed in labels:
            if not 0 <= target < length:
                raise SettingError(where, f"targets from 0 to {length - 1}", target)
            for place in needed:
                if not 0 <= place < target:
                    raise SettingError(where, f"positions before target {target}", place)
        return labels
    if len(labels) != length:
        raise SettingError(where, f"{counted(length, 'label')}, one a token", len(labels))
    if not np.isin(labels, (0, 1)).all():
        raise SettingError(where, "labels 0 and 1", int(labels[~np.isin(labels, (0, 1))][0]))
    return np.asarray(labels, dtype=bool)


def _cut(labels: Labels, part: slice) -> Labels:
    """The labels of a part of a sequence."""
    if not isinstance(labels, tuple):
        return labels[part]
    moved = [tuple(place - part.start for place in one) for one in labels]
    return tuple(one for one in moved if min(one) >= 0 and one[0] < part.stop - part.start)
