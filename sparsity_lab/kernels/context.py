"""What a call of a kernel is about, beside queries, keys and values."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparsity_lab.kernels.position import KernelPosition
from sparsity_lab.settings import SettingError

__all__ = ["AuxiliaryOutputs", "Context"]


@dataclass
class AuxiliaryOutputs:
    """What a mechanism tells beside its output.

    Attributes:
        losses: differentiable auxiliary losses, scalars; the trainer adds them to its own.
        records: audit records, one mapping for each call that has something to say.
    """

    losses: list[Tensor] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a call of a kernel is about, beside queries, keys and values; checked, and handed on to the mechanism.

    Attributes:
        implementation: what runs, one of the kernel's ``implementations``.
        causal: row i sees keys 0 .. i only.
        training: of mechanisms that differ between training and use.
        key_mask: (B, T), True where a key may be seen; None: all.
        position: covers at least all positions of the call.
        params: what ``build`` gave.
        generator: of mechanisms that draw at random in training.
        auxiliary: where auxiliary losses and audit records go.
    """

    implementation: str
    causal: bool = True
    training: bool = True
    key_mask: Bool[Tensor, "B T"] | None = None
    position: KernelPosition | None = None
    params: nn.Module | None = None
    generator: torch.Generator | None = None
    auxiliary: AuxiliaryOutputs | None = None

    def rotate(self, x: Float[Tensor, "B H R D"], start: int = 0) -> Float[Tensor, "B H R D"]:
        """Rows at positions ``start`` and on, rotated where the position rotates."""
        return x if self.position is None else self.position.rotate(x, start)

    def rotate_both(
        self, q: Float[Tensor, "B H R D"], k: Float[Tensor, "B G R D"], start: int = 0
    ) -> tuple[Float[Tensor, "B H R D"], Float[Tensor, "B G R D"]]:
        """``rotate`` of queries and keys. Single rows go in one piece: there a call costs more than its numbers."""
        if q.shape[2] > 1 or self.position is None or self.position.kind != "rotate":
            return self.rotate(q, start), self.rotate(k, start)
        both = self.rotate(torch.cat([q, k], dim=1), start)
        return both[:, : q.shape[1]], both[:, q.shape[1] :]

    @property
    def has_bias(self) -> bool:
        """Whether scores get a bias."""
        return self.position is not None and self.position.kind == "bias"

    def check_constant_bias(self) -> None:
        """Refuse a bias that wants a gradient, on behalf of a form that has none for it.

        Raises:
            SettingError: at ``implementation``.
        """
        bias = self.bias(slice(0, 1), slice(0, 1))
        if bias is not None and bias.requires_grad:
            raise SettingError("implementation", "'reference', for a bias that wants a gradient", self.implementation)

    def bias(self, queries: slice, keys: slice) -> Float[Tensor, "#B H R K"] | None:
        """(B or 1, H, R, K) bias of these scores where the position has one."""
        return None if self.position is None else self.position.bias(queries, keys)
