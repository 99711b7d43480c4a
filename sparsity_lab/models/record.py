"""What a decoder's layer did with one batch, for analysis."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparsity_lab.kernels import Kernel, KernelPosition
from sparsity_lab.models.block import Block


class Layer(NamedTuple):
    """A layer, on sequences with certain indices. It computes ``block(x, mix)``, where ``mix`` is the kernel's
    ``attend`` with this position and the block's ``kernel_params``, or something else in its place."""

    block: Block
    kernel: Kernel
    position: KernelPosition | None


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """Queries and keys of one layer, and all that is needed to compute its weights tile by tile.

    >>> model = Decoder(num_layers=1, num_heads=2, d_model=16, vocab_size=8).build(seed=0)
    >>> record = model.record(torch.zeros(1, 5, dtype=torch.int64))[0]
    >>> record.q.shape, record.weights(0, 5).shape
    (torch.Size([1, 2, 5, 8]), torch.Size([1, 2, 5, 5]))

    Attributes:
        q, k: (B, H, T, D) and (B, G, T, D), as projected, before any position.
        rotated_q, rotated_k: the same, rotated where the position rotates, else equal to ``q`` and ``k``.
        gates: (B, H, T) logits by name, where the mechanism has any.
        kernel, position, params: what the layer ran with.
        name: what a model of others calls the layer; None in a decoder of the lab, whose layers have numbers.
        key_mask: (B, T), False for padding, which comes after each sequence and is not measured; None: there is none.
    """

    q: Float[Tensor, "B H T D"]
    k: Float[Tensor, "B G T D"]
    rotated_q: Float[Tensor, "B H T D"]
    rotated_k: Float[Tensor, "B G T D"]
    kernel: Kernel
    position: KernelPosition | None
    params: nn.Module | None
    gates: Mapping[str, Float[Tensor, "B H T"]] = field(default_factory=dict)
    name: str | None = None
    key_mask: Bool[Tensor, "B T"] | None = None

    def weights(self, start: int, stop: int) -> Float[Tensor, "B H R T"]:
        """(B, H, stop - start, T): reference attention weights of query rows ``start .. stop - 1`` at inference."""
        return self.kernel.weights(
            self.q[:, :, start:stop],
            self.k,
            query_start=start,
            training=False,
            position=self.position,
            params=self.params,
            gates=self.gates,
        )


def recorded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layer: Layer,
    records: list[LayerRecord],
    gates: Mapping[str, Float[Tensor, "B H T"]] | None = None,
) -> Tensor:
    """The layer's own attention. It appends a record to ``records``."""
    block, kernel, position = layer
    rotated_q, rotated_k = (q, k) if position is None else (position.rotate(q), position.rotate(k))
    records.append(
        LayerRecord(
            q=q,
            k=k,
            rotated_q=rotated_q,
            rotated_k=rotated_k,
            kernel=kernel,
            position=position,
            params=block.kernel_params,
            gates=gates or {},
        )
    )
    return kernel.attend(q, k, v, training=False, position=position, params=block.kernel_params, gates=gates)
