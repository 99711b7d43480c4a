"""The contract of trainable models: what their setting offers to training, and what their modules return."""

from abc import abstractmethod
from typing import NamedTuple

from jaxtyping import Int64
from torch import Tensor, nn

from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError, Shown
from sparsity_lab.settings.words import Words


class ModelOutput(NamedTuple):
    """What a model returns. The loss to be trained is that of the logits plus the sum of the auxiliary losses.

    >>> ModelOutput(torch.zeros(1, 5, 8), {}).auxiliary_losses
    {}

    Attributes:
        logits: of the next token, (B, T, V), or (N, V) of the scored positions in row-major order.
        auxiliary_losses: differentiable scalars by name, weighted already; empty where the model has none, and when
            it is not in training mode.
    """

    logits: Tensor
    auxiliary_losses: dict[str, Tensor]

    @classmethod
    def checked(cls, output: object) -> "ModelOutput":
        """What a module returned.

        Raises:
            SettingError: it is something else, such as logits alone.
        """
        if not isinstance(output, cls):
            expected = "a module whose forward returns ModelOutput(logits, auxiliary_losses)"
            raise SettingError("model", expected, Shown(f"a module that returns {type(output).__name__}"))
        return output


class ModelConfig(Setting, family="model"):
    """The setting of a trainable model.

    The module that ``build`` makes is called as ``module(tokens, position_ids, indices=..., scored=...,
    generator=...)`` and returns a ``ModelOutput``:

    - tokens, (B, T) int64, and position_ids, (B, C, T) int64 or None, come from the batch;
    - indices, (B, T) int64, are given where the setting samples them, else None;
    - scored, (B, T) bool, says where logits are wanted;
    - generator is for what the module draws at random in training.

    Evaluation gives tokens, position_ids and scored alone.
    """

    largest = LARGEST_SIZE

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of the linear maps that an adapter can be put on."""
        return ()

    @abstractmethod
    def build(self, seed: int, vocab_size: int | None = None) -> nn.Module:
        """The model, a pure function of the setting, the seed and the vocabulary's size."""

    def num_bytes(self, num_tokens: int, vocab_size: int, *, training: bool) -> int:
        """Memory that a pass over so many tokens takes at least, an estimate from the setting alone; 0, as here, if
        the model has none. With it, what no machine can hold is refused before anything is made.

        Args:
            training: with gradients, moments of the optimizer, and all that a backward pass reads.
        """
        return 0

    def check_length(self, longest: int, *, trained: int | None = None) -> None:
        """Raise ``SettingError`` if the model cannot serve sequences of ``longest`` tokens, or be trained on
        sequences of ``trained`` tokens. Here it serves all."""

    def check_position_ids(self, largest: int, num_kinds: int) -> None:
        """Raise ``SettingError`` if the model cannot serve coupled position IDs of so many kinds up to ``largest``
        (0: none). Here it serves none."""
        if largest:
            raise SettingError("", "a model that accepts the task's coupled position IDs", str(self))

    def sampled_indices(self, words: Words, size: int) -> Int64[Tensor, "B T"] | None:
        """Indices of training sequences of ``size`` tokens, a pure function of the words; None, as here: no others
        than 0 .. size - 1."""
        return None

    def arranged_ids(
        self, words: Words, position_ids: Int64[Tensor, "B C T"] | None, *, training: bool
    ) -> Int64[Tensor, "B C T"] | None:
        """The position IDs that the module gets, a pure function of the words and the batch's own IDs; here these."""
        return position_ids
