"""Find the padding of sequences if it is obvious, and remove it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.settings import SettingError, counted

Tokens = NDArray[np.integer[Any]]

Pad = int | Literal["auto", "none"]
"""The padding ID. ``"auto"`` finds it if it is obvious, and ``"none"`` keeps everything as data."""

NO_TOKEN = -100
"""The value that marks unscored targets. It is never a token."""

_SHARE = 0.1  # least share of sequences with such an end
_TIMES = 3.0  # least ratio to the length of runs inside


class Unpadded(NamedTuple):
    """Sequences without their padding, which no model should see.

    Attributes:
        sequences: the remaining sequences; some may be empty.
        inside: the range of each within the original sequence.
        note: a readable note on what was removed; empty if nothing was.
    """

    sequences: list[Tokens]
    inside: list[slice]
    note: str


def without_padding(sequences: Sequence[Tokens], pad: Pad) -> Unpadded:
    """Remove padding at the ends of sequences.

    Raises:
        SettingError: -100 inside a sequence.
    """
    fill = obvious_padding(sequences) if pad == "auto" else None if pad == "none" else pad
    inside = [_inside(own, fill) for own in sequences]
    kept = [own[part] for own, part in zip(sequences, inside, strict=True)]
    for i, own in enumerate(kept):
        if own.dtype.kind == "i" and (own == NO_TOKEN).any():
            raise SettingError(f"sequence {i + 1}", f"padding ({NO_TOKEN}) may appear only at the ends")
    shorter = sum(len(one) < len(own) for one, own in zip(kept, sequences, strict=True))
    if not shorter:
        return Unpadded(kept, inside, "")
    gone = sum(len(own) for own in sequences) - sum(len(own) for own in kept)
    what = f"{NO_TOKEN}" if fill is None else f"{fill}"
    note = " (--pad none keeps it as data)" if pad == "auto" and fill not in (None, NO_TOKEN) else ""
    ends = f"the ends of {counted(shorter, 'sequence')}, {counted(gone, 'token')}"
    words = f"{what} fills {ends}: taken as padding{note}"
    return Unpadded(kept, inside, words)


def _inside(own: Tokens, fill: int | None) -> slice:
    """The start and end of the part that is not padding."""
    data = np.flatnonzero((own != NO_TOKEN) & ((own != fill) if fill is not None else True))
    return slice(int(data[0]), int(data[-1]) + 1) if len(data) else slice(0, 0)


def obvious_padding(sequences: Sequence[Tokens]) -> int | None:
    """The obvious padding token, or None. At least a tenth of the sequences end (or begin) with a run of more than
    two of it. These runs are three times as long as its runs elsewhere."""
    if len(sequences) < 4:
        return None
    for at in (-1, 0):
        ends = Counter(int(own[at]) for own in sequences if len(own) > 2)
        for token, count in ends.most_common(2):
            if count < max(2, _SHARE * len(sequences)):
                continue
            outer, inner = [], []
            for own in sequences:
                runs = _runs(own[:: -1 if at else 1] == token)
                at_end = bool(len(own)) and int(own[at]) == token
                outer += runs[:1] if at_end else []
                inner += runs[1:] if at_end else runs
            typical = float(np.mean(inner)) if inner else 0.0
            long = [run for run in outer if run > 2]
            if len(long) >= _SHARE * len(sequences) and np.mean(outer) >= max(3.0, _TIMES * typical):
                return token
    return None


def _runs(is_token: NDArray[np.bool_]) -> list[int]:
    """The lengths of runs of True, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_token, [False]])))
    return [int(size) for size in edges[1::2] - edges[::2]]
