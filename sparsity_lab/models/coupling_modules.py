"""What a decoder learns of coupled position IDs: their embedding, and heads that predict the next ones.

Shapes: B batch, T positions, C kinds, P largest ID, N rows.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from sparsity_lab.settings import SettingError

__all__ = ["CoupledEmbedding", "PositionIdHeads"]


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
    """Logits of the next token's IDs, of each kind.

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
