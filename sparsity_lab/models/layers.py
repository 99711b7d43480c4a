"""A model layer by layer: what decoding with caches, records and analysis need of it.

Shapes: B batch, T positions, C kinds of position ID, d width.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparsity_lab.kernels import Kernel, KernelPosition
from sparsity_lab.models.block import Block
from sparsity_lab.models.ppc import PositionIdHeads


class Layer(NamedTuple):
    """A layer, on sequences with certain indices. It computes ``block(x, mix)``, where ``mix`` is the kernel's
    ``attend`` with this position and the block's ``kernel_params``, or something else in its place."""

    block: Block
    kernel: Kernel
    position: KernelPosition | None


@runtime_checkable
class LayerByLayer(Protocol):
    """A model that can be run layer by layer, as ``DecoderModel`` can: ``embed``, the ``layers``, ``final_norm`` and
    ``head``.

    Attributes:
        id_heads: what predicts position IDs; None: nothing does.
    """

    final_norm: nn.RMSNorm
    head: nn.Linear
    id_heads: PositionIdHeads | None

    def sequence_indices(
        self, tokens: Int64[Tensor, "B T"], indices: Int64[Tensor, "#B T"] | None
    ) -> Int64[Tensor, "#B T"]:
        """The given indices, or 0 .. T - 1, within the limits of the position schemes."""
        ...

    def embed(
        self,
        tokens: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B C T"] | None,
        indices: Int64[Tensor, "#B T"],
    ) -> Float[Tensor, "B T d"]:
        """The input of the first layer."""
        ...

    def layers(self, indices: Int64[Tensor, "#B T"]) -> list[Layer]:
        """The layers, each with its own position for these indices."""
        ...
