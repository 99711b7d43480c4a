"""Couplings: tokens that belong together share a position ID, which is embedded and added at the input."""

from abc import abstractmethod

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from sparsity_lab.settings import Setting, SettingError, register

__all__ = ["Coupling", "Oracle"]


class Coupling(Setting, family="coupling"):
    """Where coupled position IDs come from and how large they may be. ID 0 means none."""

    max_id: int
    num_kinds: int

    def check(self) -> None:
        for name in ("max_id", "num_kinds"):
            if getattr(self, name) < 1:
                raise SettingError(name, "at least 1", getattr(self, name))

    @abstractmethod
    def build(self, d_model: int) -> nn.Module:
        """A module from (B, C, T) IDs to the (B, T, d_model) embedding added at the input."""

    def check_largest_id(self, largest: int, path: str = "coupling.max_id") -> None:
        """Refuse a task whose largest position ID has no place.

        Args:
            largest: of the task at the longest length it will run at; 0 if the task has no IDs.

        Raises:
            SettingError: at ``path``, with the ID needed and the largest there is; or a task without IDs.
        """
        if largest == 0:
            raise SettingError(path.rpartition(".")[0], "None for a task without coupled position IDs", str(self))
        if largest > self.max_id:
            raise SettingError(path, f"at least {largest}, the task's largest position ID", self.max_id)


@register
class Oracle(Coupling):
    """The batch's own IDs, embedded by one table for each kind; ID 0 adds nothing.

    Attributes:
        max_id: the largest ID; a learned table cannot leave its range, so choose it from the longest test length.
        num_kinds: C, the number of kinds of ID; their embeddings are added.
    """

    max_id: int
    num_kinds: int = 1

    def build(self, d_model: int) -> nn.Module:
        return CoupledEmbedding(self.max_id, self.num_kinds, d_model)


class CoupledEmbedding(nn.Module):
    """Sum over kinds of the embedding of each ID.

    Attributes:
        weight: (C, max_id, d_model), row i - 1 for ID i. ID 0 has no row: it adds zero and is never trained.
    """

    def __init__(self, max_id: int, num_kinds: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_kinds, max_id, d_model))

    def forward(self, position_ids: Int64[Tensor, "B C T"]) -> Float[Tensor, "B T d_model"]:
        num_kinds = self.weight.shape[0]
        if position_ids.shape[1] != num_kinds:
            raise SettingError("position_ids", f"{num_kinds} kinds of position ID", position_ids.shape[1])
        rows = (position_ids - 1).clamp(min=0).unbind(1)
        kinds = zip(rows, self.weight.unbind(0), strict=True)
        embedded = torch.stack([functional.embedding(ids, table) for ids, table in kinds], dim=1)
        return (embedded * (position_ids > 0).unsqueeze(-1)).sum(1)
