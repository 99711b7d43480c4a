"""What every trainable model's setting offers to training."""

from abc import abstractmethod

from torch import nn

from sparsity_lab.settings import Setting

__all__ = ["ModelConfig"]


class ModelConfig(Setting, family="model"):
    """The setting of a trainable model."""

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of the linear maps that an adapter can be put on."""
        return ()

    @abstractmethod
    def build(self, seed: int, vocab_size: int | None = None) -> nn.Module:
        """The model, a pure function of the setting, the seed and the vocabulary's size."""

    @abstractmethod
    def check_length(self, longest: int, *, trained: int | None = None) -> None:
        """Raise ``SettingError`` if the model cannot serve sequences of ``longest`` tokens, or be trained on
        sequences of ``trained`` tokens."""

    @abstractmethod
    def check_position_ids(self, largest: int, num_kinds: int) -> None:
        """Raise ``SettingError`` if the model cannot serve coupled position IDs of so many kinds up to ``largest``
        (0: none)."""
