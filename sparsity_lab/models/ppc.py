"""Predictive Position Coupling (PPC) and position coupling with given IDs: the embedding of IDs, the heads that
predict them and their loss, the settings, and how IDs move in training.

Position coupling (Cho et al., arXiv 2405.20671): tokens that belong together share a position ID, which is embedded
and added at the input. PPC (Golowich et al., arXiv 2502.16792): the model also predicts the IDs of the next token, so
that coupling serves tasks whose IDs depend on the input. ``Oracle`` is position coupling, ``Predicted`` is PPC;
``Shuffled`` and ``Ignored`` are controls.

IDs come in C kinds, each with its own table; 0 means none. A random offset in training teaches all rows of a table,
so that the IDs of longer sequences are not new. In each sequence, every nonzero ID of one kind moves by the same
amount, uniform among those that keep the largest ID in the table. At inference nothing moves.

Under an offset alone, two IDs that are further apart than training sequences are long never meet in a sequence.
Spread out at random they do. That keeps the order of IDs but not their distances, so it suits rules that ask for the
same ID or for the next one in order.

Shapes: B batch, T positions, C kinds, P largest ID, W words of a sequence, N rows.
"""

from abc import abstractmethod
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional

from sparsity_lab.models.initial import EMBEDDING_STD
from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError, check_least, register
from sparsity_lab.settings.words import Words, bounded

# --- what is learned: the embedding of IDs, and the heads that predict the next ones


class CoupledEmbedding(nn.Module):
    """Sum over kinds of the embedding of each ID.

    Attributes:
        weight: (C, P, d_model), row i - 1 for ID i. ID 0 has no row: it adds zero and is never trained.

    Raises:
        SettingError: another number of kinds, or, on the CPU, an ID outside 0 .. P.
    """

    def __init__(self, max_id: int, num_kinds: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_kinds, max_id, d_model))

    def initialize(self, generator: torch.Generator) -> None:
        """As the token embedding."""
        self.weight.normal_(0.0, EMBEDDING_STD, generator=generator)

    def forward(self, position_ids: Int64[Tensor, "B C T"]) -> Float[Tensor, "B T d_model"]:
        num_kinds, max_id, _ = self.weight.shape
        if position_ids.shape[1] != num_kinds:
            raise SettingError("position_ids", f"{num_kinds} kinds of position ID", position_ids.shape[1])
        # A GPU would have to stop for a look at the numbers, and a compiled graph would end there: see below.
        looks = position_ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if looks and position_ids.numel():
            smallest, largest = (int(bound) for bound in position_ids.aminmax())
            if smallest < 0 or largest > max_id:
                given = smallest if smallest < 0 else largest
                raise SettingError("position_ids", f"position IDs 0 .. {max_id}", given)
        # The tables of all kinds, one after the other.
        first = torch.arange(0, num_kinds * max_id, max_id, device=position_ids.device).unsqueeze(1)
        rows = (position_ids - 1).clamp(min=0) + first
        if not looks:
            # An ID that is too large must not read the next kind's table; behind the last row there is nothing.
            rows = rows.masked_fill(position_ids > max_id, num_kinds * max_id)
        embedded = functional.embedding(rows, self.weight.flatten(0, 1))
        return (embedded * (position_ids > 0).unsqueeze(-1)).sum(1)


class PositionIdHeads(nn.Module):
    """The heads of PPC: logits of the next token's IDs, of each kind.

    Attributes:
        weight: (C, P + 1, d_model), a row for each ID, 0 included.
        loss_weight: of ``loss``.
    """

    def __init__(self, max_id: int, num_kinds: int, d_model: int, loss_weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_kinds, max_id + 1, d_model))
        self.loss_weight = loss_weight

    def initialize(self, generator: torch.Generator) -> None:
        """As the token head: normal with variance 1 / d_model."""
        self.weight.normal_(0.0, self.weight.shape[-1] ** -0.5, generator=generator)

    def forward(self, hidden: Float[Tensor, "N d_model"]) -> Float[Tensor, "N C ids"]:
        logits = functional.linear(hidden, self.weight.flatten(0, 1))
        return logits.view(len(hidden), *self.weight.shape[:2])

    def loss(self, hidden: Float[Tensor, "N d_model"], next_ids: Int64[Tensor, "N C"]) -> Float[Tensor, ""]:
        """loss_weight Σ_c mean over rows of the cross-entropy of the next ID of kind c, in nats."""
        logits = self(hidden)
        per_kind = functional.cross_entropy(logits.flatten(0, 1), next_ids.flatten())
        weighted: Tensor = self.loss_weight * logits.shape[1] * per_kind
        return weighted


def next_position_ids(position_ids: Int64[Tensor, "B C T"]) -> Int64[Tensor, "B T C"]:
    """The IDs of the token that follows each position; none, 0, after the last, whose target is the end."""
    following = torch.cat([position_ids[:, :, 1:], torch.zeros_like(position_ids[:, :, :1])], dim=2)
    return following.transpose(1, 2)


# --- the settings

OffsetLaw = bool | Literal["clipped", "spread"]
"""How IDs move in training: not at all, by ``moved``, ``clipped`` or ``spread``."""


class Coupling(Setting, family="coupling"):
    """What a model makes of a task's coupled position IDs."""

    largest = LARGEST_SIZE

    @abstractmethod
    def build(self, d_model: int) -> CoupledEmbedding | None:
        """A module from (B, C, T) IDs to the (B, T, d_model) embedding added at the input; None adds nothing."""

    def build_heads(self, d_model: int) -> PositionIdHeads | None:
        """What predicts the next token's IDs; None: nothing does."""
        return None

    def num_words(self, size: int, *, training: bool) -> int:
        """W, the number of 64-bit words that ``arrange`` needs for a sequence of ``size`` tokens; 0 where it would
        change nothing."""
        return 0

    def arrange(
        self, words: UInt64[ndarray, "B W"], position_ids: Int64[ndarray, "B C T"], *, training: bool
    ) -> Int64[ndarray, "B C T"]:
        """The IDs that the model gets, a pure function of the words and the batch's own IDs."""
        return position_ids

    def arranged_ids(
        self, words: Words, position_ids: Int64[Tensor, "B C T"], *, training: bool
    ) -> Int64[Tensor, "B C T"]:
        """The IDs that the model gets, by words of the purpose ``coupling``."""
        num_words = self.num_words(position_ids.shape[2], training=training)
        if not num_words:
            return position_ids
        drawn = words("coupling", per_sequence=num_words)
        return torch.from_numpy(self.arrange(drawn, position_ids.numpy(), training=training))

    @abstractmethod
    def check_ids(self, largest: int, num_kinds: int) -> None:
        """Refuse a task whose IDs have no place.

        Args:
            largest: largest ID of the task at the longest length it will run at; 0 if the task has none.
            num_kinds: C of the task; 0 if it has no IDs.

        Raises:
            SettingError: at ``coupling``, with what the task needs and what there is; or a task without IDs.
        """


@register
class Ignored(Coupling):
    """The model does without the task's IDs: the arm that shows what they are worth. A model whose coupling is None
    is refused with a coupled task, since that is more often forgotten than meant.

    >>> Decoder(coupling=Ignored()).coupling
    Ignored()
    """

    def build(self, d_model: int) -> None:
        return None

    def check_ids(self, largest: int, num_kinds: int) -> None:
        if largest == 0:
            raise SettingError("coupling", "None for a task without coupled position IDs", str(self))


class EmbeddedCoupling(Coupling):
    """A coupling with a table of IDs for each kind.

    Attributes:
        max_id: P, the largest ID; a learned table cannot leave its range, so choose it from the longest test length.
        num_kinds: C, the number of kinds of ID; their embeddings are added.
        random_offset: move the IDs of each training sequence by a random amount. ``"clipped"``: 0 and the largest
            amount are more frequent than others, so that no ID is rare (see ``clipped``). ``"spread"``: the amount
            grows with the ID, so that the n IDs become a random ascending subset of 1 .. P (see ``spread``).
    """

    max_id: int
    num_kinds: int
    random_offset: OffsetLaw

    @classmethod
    def examples(cls) -> "tuple[Self, ...]":
        return (cls(max_id=40),)  # type: ignore[call-arg]

    def check(self) -> None:
        check_least(1, max_id=self.max_id, num_kinds=self.num_kinds)

    def build(self, d_model: int) -> CoupledEmbedding:
        return CoupledEmbedding(self.max_id, self.num_kinds, d_model)

    def check_ids(self, largest: int, num_kinds: int) -> None:
        if largest == 0:
            raise SettingError("coupling", "None for a task without coupled position IDs", str(self))
        if largest > self.max_id:
            raise SettingError("coupling.max_id", f"at least {largest}, the task's largest position ID", self.max_id)
        if num_kinds != self.num_kinds:
            raise SettingError("coupling.num_kinds", f"{num_kinds}, the task's kinds of position ID", self.num_kinds)


class _Moving(EmbeddedCoupling):
    """A coupling that moves IDs in training and does nothing else to them."""

    def num_words(self, size: int, *, training: bool) -> int:
        if not training or not self.random_offset:
            return 0
        return self.num_kinds * (self.max_id + 2 if self.random_offset == "spread" else 1)

    def arrange(
        self, words: UInt64[ndarray, "B W"], position_ids: Int64[ndarray, "B C T"], *, training: bool
    ) -> Int64[ndarray, "B C T"]:
        if not self.num_words(1, training=training):
            return position_ids
        law = {True: moved, "clipped": clipped, "spread": spread}[self.random_offset]
        return law(words, position_ids, self.max_id)


@register
class Oracle(_Moving):
    """The task's own position IDs, in training and at inference: position coupling."""

    version = 2

    max_id: int
    num_kinds: int = 1
    random_offset: OffsetLaw = True


@register
class Predicted(_Moving):
    """Predictive Position Coupling, PPC (Golowich et al., arXiv 2502.16792): the model predicts the next token
    and its IDs.

    In training the IDs of the batch are given, as the tokens are. The auxiliary loss ``position_ids`` of the model's
    output is loss_weight Σ_c CE_c, where CE_c is the cross-entropy of the next token's ID of kind c at scored
    positions. Free-running decoding feeds back the predicted token with its predicted IDs. Heads, loss and table size
    are this lab's design: the paper's are not known here.

    Attributes:
        loss_weight: λ of the IDs' loss; the tokens' has weight 1.
    """

    max_id: int
    num_kinds: int = 1
    random_offset: OffsetLaw = True
    loss_weight: float = 1.0

    def check(self) -> None:
        super().check()
        if self.loss_weight <= 0:
            raise SettingError("loss_weight", "a positive number", self.loss_weight)

    def build_heads(self, d_model: int) -> PositionIdHeads:
        return PositionIdHeads(self.max_id, self.num_kinds, d_model, self.loss_weight)


@register
class Shuffled(EmbeddedCoupling):
    """The control of coupling, shuffled IDs: the same IDs on the same tokens, but dealt out at random in every
    sequence, in training and at inference. What still works with it does not come from the coupling."""

    max_id: int
    num_kinds: int = 1
    random_offset: bool = True

    def num_words(self, size: int, *, training: bool) -> int:
        return size + (self.num_kinds if training and self.random_offset else 0)

    def arrange(
        self, words: UInt64[ndarray, "B W"], position_ids: Int64[ndarray, "B C T"], *, training: bool
    ) -> Int64[ndarray, "B C T"]:
        size = position_ids.shape[2]
        keys = words[:, :size]
        shuffled = np.zeros_like(position_ids)
        for kind in range(self.num_kinds):
            ids = position_ids[:, kind]
            # Tokens that carry an ID come first in both orders: by place, and by random key.
            by_place = np.argsort(ids == 0, axis=1, kind="stable")
            by_key = np.lexsort((keys, ids == 0), axis=1)
            np.put_along_axis(shuffled[:, kind], by_place, np.take_along_axis(ids, by_key, axis=1), axis=1)
        if training and self.random_offset:
            shuffled = moved(words[:, size:], shuffled, self.max_id)
        return shuffled


# --- how IDs move in training


def moved(
    words: UInt64[ndarray, "B C"], position_ids: Int64[ndarray, "B C T"], max_id: int, *, least: Literal[0, 1] = 0
) -> Int64[ndarray, "B C T"]:
    """IDs but 0 moved by an offset for each sequence and kind, uniform on least .. max_id - largest ID; by 0 where
    the largest ID is max_id."""
    room = max_id - position_ids.max(axis=2)
    offset = np.minimum(least + bounded(words, (room + 1 - least).astype(np.uint64)), room)
    return _shifted(position_ids, offset)


def clipped(
    words: UInt64[ndarray, "B C"], position_ids: Int64[ndarray, "B C T"], max_id: int
) -> Int64[ndarray, "B C T"]:
    """IDs but 0 moved by an offset for each sequence and kind under which no ID of the table is rare.

    Under a uniform offset, IDs at the ends of the table are rare. ID 1 needs offset 0, but an ID in the middle occurs
    with n offsets, where n is the largest ID. Here u is uniform on 1 - n .. max_id - 1, and the offset is u, but 0
    below 0 and max_id - n above that. So every ID comes with at least n values of u, if 1 .. n are all used.
    """
    return _shifted(position_ids, _clipped_offset(words, position_ids.max(axis=2), max_id))


def _clipped_offset(words: UInt64[ndarray, "*of"], n: Int64[ndarray, "*of"], max_id: int) -> Int64[ndarray, "*of"]:
    u = bounded(words, np.maximum(max_id + n - 1, 1).astype(np.uint64)) + 1 - n
    offset: Int64[ndarray, "*of"] = np.clip(u, 0, max_id - n)
    return offset


def _shifted(position_ids: Int64[ndarray, "B C T"], offset: Int64[ndarray, "B C"]) -> Int64[ndarray, "B C T"]:
    """IDs but 0, each higher by the offset of its sequence and kind."""
    shifted_ids: Int64[ndarray, "B C T"] = np.where(position_ids > 0, position_ids + offset[:, :, None], 0)
    return shifted_ids


def spread(
    words: UInt64[ndarray, "B W"], position_ids: Int64[ndarray, "B C T"], max_id: int
) -> Int64[ndarray, "B C T"]:
    """IDs 1 .. n of each sequence and kind, n the largest, become a random ascending n-subset of a window of
    1 .. max_id; 0 stays.

    The window's size m is uniform on n .. max_id, the n-subset uniform. An offset drawn as in ``clipped`` places the
    window. So IDs at the ends of the table, where evaluation begins, and pairs of neighbors among them are not much
    rarer than in the middle. W = C (max_id + 2).
    """
    B, C, _ = position_ids.shape
    drawn = words.reshape(B, C, max_id + 2)
    n = position_ids.max(axis=2, keepdims=True)
    window = n + bounded(drawn[..., :1], (max_id + 1 - n).astype(np.uint64))
    start = _clipped_offset(drawn[..., 1:2], window, max_id)
    # The n smallest keys of the window are a random n-subset; sorting by whether they are chosen keeps their order.
    keys = np.where(np.arange(max_id) < window, drawn[..., 2:] >> np.uint64(1), np.uint64(2**63))
    rank = keys.argsort(axis=2, kind="stable").argsort(axis=2, kind="stable")
    chosen = (rank >= n).argsort(axis=2, kind="stable")
    places = np.take_along_axis(chosen, np.maximum(position_ids - 1, 0), axis=2) + 1 + start
    spread_ids: Int64[ndarray, "B C T"] = np.where(position_ids > 0, places, 0)
    return spread_ids
