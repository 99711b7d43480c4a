"""One layer of the decoder, and dropout.

Shapes: B batch, T positions, H query heads, G heads of keys and values, D head size, N kept rows, d = H D.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from sparsity_lab.models.norm import RMSNorm

NORM_EPS = 2.0**-23
"""The eps of float32. PyTorch's own is that of the dtype of x: a copy of a model in another dtype would compute
something else."""

MlpKind = Literal["gelu", "swiglu"]

Mix = Callable[..., Tensor]
"""What moves between positions: un-rotated q (B, H, T, D), k and v (B, G, T, D), to the output (B, H, T, D). A block
with gates also gives it ``gates``, their logits (B, H, T) by name."""


def dropout(x: Float[Tensor, "*shape"], share: float, generator: torch.Generator | None) -> Float[Tensor, "*shape"]:
    """Each number is 0 with this probability, and else divided by one minus it (Srivastava et al. 2014).

    Args:
        generator: what is drawn from; None is torch's own.
    """
    return x * torch.empty_like(x).bernoulli_(1 - share, generator=generator) / (1 - share) if share else x


class Block(nn.Module):
    """Pre-norm layer: x + W_o attention(norm(x)), then x + W_down gelu(W_up norm(x)), or with ``"swiglu"``
    x + W_down (silu(W_mlp_gate norm(x)) W_up norm(x)), element by element. No biases. In training mode what is added
    to x has dropout.

    With the output gate, the attention output is multiplied by silu(W_g norm(x)) before W_o. Gates that the attention
    mechanism declares are one linear map of norm(x) to a logit for each name, head and position.

    Attributes:
        gates: their names.
        kernel_params: trainable parts of the layer's attention mechanism, if it has any.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        d_model: int,
        d_ff: int,
        output_gate: bool,
        gates: tuple[str, ...] = (),
        mlp: MlpKind = "gelu",
        norm_eps: float = NORM_EPS,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gates, self.dropout = gates, dropout
        self.head_dim = d_model // num_heads
        self.qkv_widths = [d_model, num_kv_heads * self.head_dim, num_kv_heads * self.head_dim]
        self.attention_norm = RMSNorm(d_model, eps=norm_eps)
        self.qkv = nn.Linear(d_model, sum(self.qkv_widths), bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False) if output_gate else None
        self.gate_projection = nn.Linear(d_model, len(gates) * num_heads, bias=False) if gates else None
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.mlp_norm = RMSNorm(d_model, eps=norm_eps)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.mlp_gate = nn.Linear(d_model, d_ff, bias=False) if mlp == "swiglu" else None
        self.down = nn.Linear(d_ff, d_model, bias=False)
        self.kernel_params: nn.Module | None = None

    def projections(self) -> dict[str, dict[str, int]]:
        """The linear maps by attribute, each with its parts by name and their numbers of outputs: queries, keys and
        values are parts of one map, the others are whole."""
        maps = {name: module for name, module in self.named_children() if isinstance(module, nn.Linear)}
        whole = {name: {name: linear.out_features} for name, linear in maps.items()}
        return whole | {"qkv": dict(zip("qkv", self.qkv_widths, strict=True))}

    def forward(
        self,
        x: Float[Tensor, "B T d"],
        mix: Mix,
        rows: Int64[Tensor, " N"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*rows d"]:
        """(B, T, d), or (N, d) where only some ``rows`` of the flattened (B T, d) are wanted. The ``generator`` is of
        dropout.

        Attention needs the keys of all positions, but what follows it is done on the wanted rows alone.
        """
        normed = self.attention_norm(x)
        parts = self.qkv(normed).split(self.qkv_widths, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        attended = mix(q, k, v, **self._gate_logits(normed)).transpose(1, 2).flatten(2)
        if rows is not None:
            x, attended = _take(x, rows), _take(attended, rows)
        if self.gate is not None:
            attended = attended * functional.silu(self.gate(normed if rows is None else _take(normed, rows)))
        share = self.dropout if self.training else 0.0
        x = x + dropout(self.output(attended), share, generator)
        return x + dropout(self.down(self._hidden_units(self.mlp_norm(x))), share, generator)

    def _hidden_units(self, normed: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d_ff"]:
        if self.mlp_gate is None:
            return functional.gelu(self.up(normed))
        units: Tensor = functional.silu(self.mlp_gate(normed)) * self.up(normed)
        return units

    def _gate_logits(self, normed: Float[Tensor, "B T d"]) -> dict[str, dict[str, Float[Tensor, "B H T"]]]:
        """The argument ``gates`` of ``mix``; none where the mechanism declares none."""
        if self.gate_projection is None or not self.gates:
            return {}
        logits = self.gate_projection(normed).unflatten(-1, (len(self.gates), -1))
        return {"gates": dict(zip(self.gates, logits.permute(2, 0, 3, 1), strict=True))}


def _take(x: Float[Tensor, "B T d"], rows: Int64[Tensor, " N"]) -> Float[Tensor, "N d"]:
    x = x.flatten(0, 1)
    return x if len(rows) == len(x) else x.index_select(0, rows)  # all of them need no copy
