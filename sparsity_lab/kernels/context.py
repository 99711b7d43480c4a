"""The arguments of a kernel in addition to queries, keys and values, and the shapes of all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sparsity_lab.kernels.parts.masking import counts_in_documents, visible_keys
from sparsity_lab.kernels.position import KernelPosition
from sparsity_lab.settings import SettingError

Queries = Float[Tensor, "B H R D"]
"""R query rows of H heads."""

Keys = Float[Tensor, "B G K D"]
"""K keys of G heads; G is H unless the kernel is ``grouped``."""

Values = Float[Tensor, "B G K E"]
"""Values of the same keys; their width E need not be D."""

Outputs = Float[Tensor, "B H R E"]
"""One output for each query row."""

Weights = Float[Tensor, "B H R K"]
"""The weight of each key in each row."""

Seen = tuple[Bool[Tensor, "#B 1 R K"], Float[Tensor, "#B #H #R K"] | None]
"""True where a row sees a key, and the bias of these scores, None without one."""


@dataclass
class AuxiliaryOutputs:
    """What a mechanism tells in addition to its output.

    >>> outputs = AuxiliaryOutputs()
    >>> outputs.losses, outputs.records
    ([], [])

    Attributes:
        losses: differentiable auxiliary losses, scalars; the trainer adds them to its own.
        records: audit records, one mapping for each call that has something to say.
    """

    losses: list[Tensor] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Context:
    """The arguments of a kernel in addition to queries, keys and values. The public methods check them.

    Attributes:
        implementation: what runs, one of the kernel's ``implementations``.
        causal: a row sees keys up to its own position only.
        training: of mechanisms that differ between training and inference.
        query_start: the position of the first query row; keys begin at 0.
        key_mask: (B, K), True where a key may be seen; None: all.
        document_ids: (B, K), a row sees only keys of its own document; None: there is one document.
        gates: (B, H, K) logits by name, one for each of the kernel's ``gates``.
        position: covers at least all positions of the call.
        params: what ``build`` gave.
        generator: of mechanisms that draw at random in training.
        auxiliary: where auxiliary losses and audit records go.
    """

    implementation: str = "reference"
    causal: bool = True
    training: bool = True
    query_start: int = 0
    key_mask: Bool[Tensor, "B K"] | None = None
    document_ids: Int64[Tensor, "B K"] | None = None
    gates: Mapping[str, Float[Tensor, "B H K"]] = field(default_factory=dict)
    position: KernelPosition | None = None
    params: nn.Module | None = None
    generator: torch.Generator | None = None
    auxiliary: AuxiliaryOutputs | None = None

    def at(self, query_start: int) -> "Context":
        """The same for rows that begin elsewhere."""
        return replace(self, query_start=query_start)

    # --- which keys a row sees

    @property
    def hides(self) -> bool:
        """Whether keys are hidden from a row by more than causality."""
        return self.key_mask is not None or self.document_ids is not None

    def visible(self, q: Queries, k: Keys) -> Bool[Tensor, "#B 1 R K"]:
        """True where a row sees a key: the one place where causality, padding and documents meet."""
        return visible_keys(
            self.query_start,
            q.shape[2],
            k.shape[2],
            causal=self.causal,
            key_mask=self.key_mask,
            document_ids=self.document_ids,
            device=q.device,
        )

    def visible_and_bias(self, q: Queries, k: Keys) -> Seen:
        """``visible``, and the bias that the position adds to these scores, None without one."""
        rows = slice(self.query_start, self.query_start + q.shape[2])
        return self.visible(q, k), self.bias(rows, slice(0, k.shape[2]))

    def counts(self, q: Queries, k: Keys) -> Int64[Tensor, "#B 1 R"]:
        """n_i, how many keys each row sees, itself included; 1 where it sees none, so that log n_i and 1 / n_i are
        finite. Padding and other documents change nothing; in decoding all tokens so far count."""
        return self.counts_of(q.shape[2], k.shape[2], q.device, self.query_start)

    def counts_of(
        self, num_rows: int, num_keys: int, device: torch.device, query_start: int = 0
    ) -> Int64[Tensor, "#B 1 R"]:
        """The same of rows that begin elsewhere."""
        rows, mask = slice(query_start, query_start + num_rows), self.key_mask
        if self.document_ids is not None:
            seen = torch.ones_like(self.document_ids) if mask is None else mask.long()
            ids = self.document_ids[:, :num_keys]
            counts = counts_in_documents(ids, seen[:, :num_keys], causal=self.causal)[:, rows]
        elif mask is not None:
            seen = mask[:, :num_keys].long()
            counts = seen.cumsum(1)[:, rows] if self.causal else seen.sum(1, keepdim=True).expand(-1, num_rows)
        elif self.causal:
            return torch.arange(query_start + 1, query_start + num_rows + 1, device=device)[None, None]
        else:
            return torch.full((1, 1, num_rows), num_keys, device=device)
        return counts.clamp_min(1).unsqueeze(1)

    # --- positions

    def rotate(self, x: Float[Tensor, "B H R D"], start: int = 0) -> Float[Tensor, "B H R D"]:
        """Rows at positions ``start`` and on, rotated where the position rotates."""
        return x if self.position is None else self.position.rotate(x, start)

    def rotate_both(self, q: Queries, k: Keys, key_start: int = 0) -> tuple[Queries, Keys]:
        """``rotate`` of queries, and of keys at ``key_start`` and on. The single rows of a decoding step go in one
        piece: there a call costs more than its numbers."""
        single = q.shape[2] == 1 and k.shape[2] == 1 and key_start == self.query_start
        if self.position is None or self.position.kind != "rotate" or not single:
            return self.rotate(q, self.query_start), self.rotate(k, key_start)
        both = self.rotate(torch.cat([q, k], dim=1), key_start)
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
            raise SettingError(
                "implementation", "'reference', since the bias requires a gradient", self.implementation
            )

    def bias(self, queries: slice, keys: slice) -> Float[Tensor, "#B H R K"] | None:
        """(B or 1, H, R, K) bias of these scores where the position has one."""
        return None if self.position is None else self.position.bias(queries, keys)

    def bias_at(self, queries: slice, places: Int64[Tensor, "#B K"]) -> Float[Tensor, "#B H R K"] | None:
        """The same of keys at other positions in each sequence."""
        return None if self.position is None else self.position.bias_at(queries, places)
