"""Batches of sampled sequences.

Shapes: B batch, T sequence positions, C kinds of position ID, K sources of a target.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import methodcaller
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators.stream import Ints
from sparsity_lab.generators.token_view import LONGEST_SHOWN, TokenView, legend_html, sequence_html, sequence_text
from sparsity_lab.settings import SettingError

IGNORE = -100
"""Target at positions that are not scored: the default of ``torch.nn.functional.cross_entropy``."""

_SHOWN = 6  # sequences

Sources = Int64[Tensor, "B T K"]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a task.

    >>> Vocabulary(names=("0", "1", "="), roles=("data", "data", "query")).size
    3

    Attributes:
        names: printable name of each token; its index is the token.
        roles: role of each token, one of ``"planted"``, ``"background"``, ``"data"`` (one alphabet for both),
            ``"cue"``, ``"query"``, ``"special"``, ``"unused"``.
    """

    names: tuple[str, ...]
    roles: tuple[str, ...]

    @classmethod
    @cache
    def numbered(cls, size: int) -> "Vocabulary":
        """A vocabulary whose names are the token numbers."""
        return _Numbered(names=tuple(map(str, range(size))), roles=("data",) * size)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """V, the number of tokens."""
        return len(self.names)

    def token(self, name: str) -> int:
        """The token with this name; ``SettingError`` lists the names if there is none."""
        if name not in self.names:
            raise SettingError("token", "a token of this vocabulary", name, self.names)
        return self.names.index(name)


class _Numbered(Vocabulary):
    """Pickles as its size only."""

    def __reduce__(self) -> tuple[Callable[[int], Vocabulary], tuple[int]]:
        return Vocabulary.numbered, (self.size,)


class Batch:
    """A batch of sequences.

    A batch can be pickled, copied and sent between processes. So a ``torch.utils.data.DataLoader`` can serve it from
    worker processes. Use ``batch_size=None`` for a dataset of batches, or ``collate_fn=Batch.collate`` for a dataset
    of single sequences. ``torch.save`` stores the whole object, which ``torch.load`` reads with
    ``weights_only=False``; to read a file without trusting it, store the tensors.

    >>> batch = Planted(k=2).sample(Stream(seed=0), 0, 4, 8)
    >>> len(batch), tuple(batch.tokens.shape), batch.targets[:, -1].tolist()
    (4, (4, 10), [0, 0, 0, 1])

    Attributes:
        tokens: (B, T) int64.
        targets: (B, T) int64, the next token where scored, ``IGNORE`` elsewhere.
        position_ids: (B, C, T) int64 coupled position IDs, 0 = none; None if the task has no coupling.
        vocabulary: names and roles of the tokens, for display; None shows numbers.
    """

    def __init__(
        self,
        tokens: Int64[Tensor, "B T"],
        targets: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B C T"] | None = None,
        sources: Sources | Callable[[], Sources] | None = None,
        *,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """Make a batch.

        Args:
            sources: the sources, or a function that makes them on first use. It must be possible to pickle the
                function: use a method of the task, or ``functools.partial`` of it, not a lambda.
        """
        self.tokens = tokens
        self.targets = targets
        self.position_ids = position_ids
        self.vocabulary = vocabulary
        self._sources = sources

    @property
    def sources(self) -> Sources | None:
        """(B, T, K) int64: positions in ``tokens`` that enter the rule for a scored target, ascending, padded with
        -1; -1 everywhere else. Built on first use. None for tasks without a rule, such as text."""
        if callable(self._sources):
            self._sources = self._sources()
        return self._sources

    @property
    def has_sources(self) -> bool:
        """Whether there are sources, without building them."""
        return self._sources is not None

    @property
    def scored(self) -> Bool[Tensor, "B T"]:
        """(B, T) bool: where a target is scored."""
        return self.targets != IGNORE

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """A batch with the same contents on another device. It does not build sources."""
        return self._with_each(methodcaller("to", device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """A batch with the same contents in page-locked memory, as ``DataLoader(pin_memory=True)`` asks for."""
        return self._with_each(methodcaller("pin_memory"))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        ids, sources = self.position_ids, self._sources
        return Batch(
            change(self.tokens),
            change(self.targets),
            None if ids is None else change(ids),
            partial(_changed, change, sources) if callable(sources) else None if sources is None else change(sources),
            vocabulary=self.vocabulary,
        )

    @classmethod
    def collate(cls, batches: "Sequence[Batch]") -> "Batch":
        """Join batches of one task and length, in order. This is the ``collate_fn`` for a ``DataLoader`` over single
        sequences, which are batches of one.

        Raises:
            SettingError: there are no batches, or they differ in length, vocabulary or kind of contents.
        """
        if not batches:
            raise SettingError("batches", "give at least one batch")
        first, form = batches[0], batches[0]._form()
        for i, batch in enumerate(batches):
            for what, got in batch._form().items():
                if got != form[what]:
                    raise SettingError(f"batches[{i}].{what}", f"the same as in batches[0], {form[what]!s:.80}", got)
        ids = [batch.position_ids for batch in batches if batch.position_ids is not None]
        sources = [batch._sources for batch in batches]
        return cls(
            torch.cat([batch.tokens for batch in batches]),
            torch.cat([batch.targets for batch in batches]),
            torch.cat(ids) if ids else None,
            partial(_joined, [part for part in sources if part is not None]) if first.has_sources else None,
            vocabulary=first.vocabulary,
        )

    def __getstate__(self) -> dict[str, object]:
        # A loader's worker sends arrays in one piece. Tensors would pass through shared memory, each with a file
        # descriptor of its own, which takes longer than it takes to make a small batch.
        state = dict(self.__dict__)
        if self.targets.device.type == "cpu":
            targets = self.targets.numpy()
            scored = np.flatnonzero(targets != IGNORE)
            if 4 * len(scored) < targets.size:
                state["targets"] = _Scored(targets.shape, scored.astype(np.int32), targets.flat[scored])
        return {name: _packed(value) for name, value in state.items()}

    def __setstate__(self, state: dict[str, object]) -> None:
        if isinstance(scored := state["targets"], _Scored):
            targets = np.full(scored.shape, IGNORE, dtype=np.int64)
            targets.flat[scored.at] = scored.values
            state = state | {"targets": targets}
        self.__dict__.update({name: _unpacked(value) for name, value in state.items()})

    def _form(self) -> dict[str, object]:
        """The properties that batches must share to be joined."""
        kinds = 0 if self.position_ids is None else self.position_ids.shape[1]
        return {
            "positions": self.tokens.shape[1],
            "kinds of position ID": kinds,
            "has_sources": self.has_sources,
            "vocabulary": self.vocabulary,
        }

    def view(self, row: int, vocabulary: Vocabulary | None = None) -> list[TokenView]:
        """A readable form of one sequence. If an answer is not the next token, because it is hidden or at the end, it
        is shown after the token it belongs to.

        If more than nine tenths of the tokens are scored, as in text, no answer is marked, and the sources shown are
        those of the last target.

        Args:
            vocabulary: names of the tokens; the batch's own if None.
        """
        vocabulary = vocabulary or self.vocabulary
        tokens, targets = self.tokens[row].tolist(), self.targets[row].tolist()
        scored = self.scored[row].nonzero()[:, 0].tolist()
        dense = 10 * len(scored) > 9 * len(tokens)
        sources: set[int] = set()
        if self.sources is not None:
            marking = scored[-1:] if dense else scored
            sources = set(self.sources[row, marking].flatten().tolist())
        # An answer that is not the next token is shown after the token it belongs to.
        hidden = {at for at in scored if at + 1 == len(tokens) or tokens[at + 1] != targets[at]}
        answers = set() if dense else {at + 1 for at in scored} - {at + 1 for at in hidden}
        ids = [] if self.position_ids is None else self.position_ids[row].T.tolist()

        def part(at: int, token: int) -> str:
            role = vocabulary.roles[token] if vocabulary else "data"
            # Planted tokens that do not enter the rule are not marked.
            role = "planted alphabet" if role == "planted" else role
            return "answer" if at in answers else "planted" if at in sources else role

        def name(token: int) -> str:
            return vocabulary.names[token] if vocabulary else str(token)

        shown = []
        for at, token in enumerate(tokens):
            shown.append(TokenView(name(token), part(at, token), at, tuple(ids[at]) if ids else ()))
            if at in hidden:
                shown.append(TokenView(name(targets[at]), "answer", at, after=True))
        return shown

    def __repr__(self) -> str:
        if not len(self):
            return self._head()
        short = self.tokens.shape[1] <= LONGEST_SHOWN
        texts = [sequence_text(self.view(row)).plain for row in range(min(_SHOWN, len(self)))] if short else []
        if more := len(self) - len(texts):
            texts.append(f"… {more} more sequences")
        return "\n".join([self._head(), *("  " + line for text in texts for line in text.split("\n"))])

    def _repr_html_(self) -> str:
        count = min(_SHOWN, len(self))
        rows = "".join(sequence_html(self.view(row)) for row in range(count))
        more = f"<p>… {len(self) - count} more sequences</p>" if len(self) > count else ""
        return f"<div><p>{html.escape(self._head())}</p>{legend_html()}{rows}{more}</div>"

    def _head(self) -> str:
        ids = "none" if self.position_ids is None else tuple(self.position_ids.shape)
        return f"Batch(tokens={tuple(self.tokens.shape)}, scored={int(self.scored.sum())}, position_ids={ids})"


class _Scored(NamedTuple):
    """Whether few targets are scored, so that they can be marked."""

    shape: tuple[int, ...]
    at: NDArray[np.int32]
    values: Ints


def _packed(value: object) -> object:
    """A CPU tensor as an array of the narrowest integer type that holds it. Other values are returned unchanged."""
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return value
    array = value.numpy()
    low, high = array.min(initial=0), array.max(initial=0)
    return array.astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))


def _unpacked(value: object) -> object:
    return torch.from_numpy(value.astype(np.int64, copy=False)) if isinstance(value, np.ndarray) else value


def _changed(change: Callable[[Tensor], Tensor], sources: Callable[[], Tensor]) -> Tensor:
    return change(sources())


def _joined(parts: "Sequence[Sources | Callable[[], Sources]]") -> Tensor:
    """The sources of several batches, padded to the largest number of sources."""
    built = [part() if callable(part) else part for part in parts]
    most = max(part.shape[2] for part in built)
    return torch.cat([torch.nn.functional.pad(part, (0, most - part.shape[2]), value=-1) for part in built])
