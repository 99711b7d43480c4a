"""The contract of all attention mechanisms.

Shapes: B batch, T positions, H heads, D head size, R query rows of a tile. Queries, keys and values are
(B, H, T, D), as in ``torch.nn.functional.scaled_dot_product_attention``, and come un-rotated: where a position is
applied is the mechanism's own affair.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparsity_lab.kernels.cache import KernelState
from sparsity_lab.kernels.position import KernelPosition
from sparsity_lab.settings import Setting, SettingError

__all__ = ["Context", "Kernel", "Trace"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Trace:
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
        trace: where auxiliary losses and audit records go.
    """

    implementation: str
    causal: bool = True
    training: bool = True
    key_mask: Bool[Tensor, "B T"] | None = None
    position: KernelPosition | None = None
    params: nn.Module | None = None
    generator: torch.Generator | None = None
    trace: Trace | None = None

    def rotate(self, x: Float[Tensor, "B H R D"], start: int = 0) -> Float[Tensor, "B H R D"]:
        """Rows at positions ``start`` and on, rotated where the position rotates."""
        return x if self.position is None else self.position.rotate(x, start)

    @property
    def has_bias(self) -> bool:
        """Whether scores get a bias."""
        return self.position is not None and self.position.kind == "bias"

    def bias(self, queries: slice, keys: slice) -> Float[Tensor, "#B H R K"] | None:
        """(B or 1, H, R, K) bias of these scores where the position has one."""
        return None if self.position is None else self.position.bias(queries, keys)


class Kernel(Setting, family="kernel"):
    """An attention mechanism.

    A new mechanism is one folder: a class with this base and ``@register`` that names its ``implementations`` and
    defines ``_attend``, ``_weights``, ``init_state``, ``_prefill`` and ``_decode``, and ``build`` if it has
    parameters. The public methods here check what comes in, so the mechanism can trust its arguments.

    A row that sees no key gives zeros, in value and in gradient.

    Attributes:
        implementations: names of what can run; the first is the dense reference, the last what ``"auto"`` takes.
        positions: kinds of ``KernelPosition`` that the mechanism takes.
    """

    implementations: ClassVar[tuple[str, ...]]
    positions: ClassVar[frozenset[str]] = frozenset({"rotate", "bias"})

    # --- what a mechanism defines

    def build(self, num_heads: int, head_dim: int, seed: int) -> nn.Module | None:
        """The trainable parts, to be passed as ``params``, a pure function of the arguments; None: there are none."""
        return None

    @abstractmethod
    def init_state(
        self,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> KernelState:
        """An empty decoding state with room for ``capacity`` tokens. ``prefill`` and ``decode`` write into it."""

    @abstractmethod
    def _attend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"], context: Context
    ) -> Float[Tensor, "B H T D"]: ...

    @abstractmethod
    def _weights(
        self, q_rows: Float[Tensor, "B H R D"], k: Float[Tensor, "B H T D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R T"]: ...

    @abstractmethod
    def _prefill(
        self,
        q: Float[Tensor, "B H T D"],
        k: Float[Tensor, "B H T D"],
        v: Float[Tensor, "B H T D"],
        state: Any,
        context: Context,
    ) -> Float[Tensor, "B H T D"]: ...

    @abstractmethod
    def _decode(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"],
        v: Float[Tensor, "B H 1 D"],
        state: Any,
        context: Context,
    ) -> Float[Tensor, "B H 1 D"]: ...

    # --- what others call

    def implementation(self, q: Tensor) -> str:
        """What ``implementation="auto"`` runs for queries like these: float64 runs the reference."""
        return self.implementations[0 if q.dtype == torch.float64 else -1]

    def check_position(self, kind: str | None, path: str = "position") -> None:
        """Refuse a kind of position that the mechanism does not take; None, no position, is always taken.

        Raises:
            SettingError: at ``path``.
        """
        if kind is not None and kind not in self.positions:
            takes = " or ".join(f"{name!r}" for name in sorted(self.positions)) or "none"
            raise SettingError(path, f"a position of a kind that {self.kind} takes ({takes}) or none", kind)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = True,
        training: bool = True,
        key_mask: Tensor | None = None,
        position: KernelPosition | None = None,
        params: nn.Module | None = None,
        generator: torch.Generator | None = None,
        trace: Trace | None = None,
        implementation: str = "auto",
    ) -> Float[Tensor, "B H T D"]:
        """(B, H, T, D): the attention output of every position.

        Args:
            q, k, v: (B, H, T, D) of one dtype, float16, bfloat16, float32 or float64; T >= 1.
            causal: row i sees keys 0 .. i only.
            training: of mechanisms that differ between training and use.
            key_mask: (B, T) bool, True where a key may be seen.
            position: covers at least T positions.
            params: what ``build`` gave.
            generator: of mechanisms that draw at random in training.
            trace: collects auxiliary losses and audit records.
            implementation: ``"auto"`` or one of ``implementations``.

        Raises:
            SettingError: names the argument, what was expected and what came.
        """
        _check_rows("q", q)
        _check_like("k", k, "q", q)
        _check_like("v", v, "q", q)
        _check_key_mask(key_mask, q.shape[0], q.shape[2])
        self._check_cover(position, q.shape[0], q.shape[2])
        context = Context(
            implementation=self._resolve(implementation, q),
            causal=causal,
            training=training,
            key_mask=key_mask,
            position=position,
            params=params,
            generator=generator,
            trace=trace,
        )
        return self._attend(q, k, v, context)

    def weights(
        self,
        q_rows: Tensor,
        k: Tensor,
        *,
        query_start: int = 0,
        causal: bool = True,
        training: bool = True,
        key_mask: Tensor | None = None,
        position: KernelPosition | None = None,
        params: nn.Module | None = None,
    ) -> Float[Tensor, "B H R T"]:
        """(B, H, R, T): the dense reference weights of a tile of query rows, in any dtype.

        ``weights(q, k) @ v`` is what ``attend(q, k, v)`` gives. Analysis streams tiles of a few rows, so that no
        (T, T) map is ever stored.

        Args:
            q_rows: (B, H, R, D), the un-rotated queries of rows ``query_start .. query_start + R - 1``.
            k: (B, H, T, D), all un-rotated keys.

        Raises:
            SettingError: names the argument, what was expected and what came.
        """
        _check_rows("q_rows", q_rows)
        _check_rows("k", k)
        batch_size, num_heads, num_rows, head_dim = q_rows.shape
        num_keys = k.shape[2]
        _check_like("k", k, "q_rows", q_rows, (batch_size, num_heads, num_keys, head_dim))
        if query_start < 0 or query_start + num_rows > num_keys:
            raise SettingError(
                "query_start", f"0 .. {num_keys - num_rows} ({num_rows} of {num_keys} rows)", query_start
            )
        _check_key_mask(key_mask, batch_size, num_keys)
        self._check_cover(position, batch_size, num_keys)
        context = Context(
            implementation=self.implementations[0],
            causal=causal,
            training=training,
            key_mask=key_mask,
            position=position,
            params=params,
        )
        return self._weights(q_rows, k, query_start, context)

    @torch.no_grad()
    def prefill(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        state: KernelState,
        position: KernelPosition | None = None,
        key_mask: Tensor | None = None,
        params: nn.Module | None = None,
        trace: Trace | None = None,
    ) -> Float[Tensor, "B H T D"]:
        """``attend(training=False)`` of a whole prompt, causal, that also fills an empty state. No gradient flows.

        Args:
            position: covers at least the prompt; the same object as for the steps that follow, or one that agrees.

        Raises:
            SettingError: as ``attend``; or a state that is not empty or too small.
        """
        _check_rows("q", q)
        _check_like("k", k, "q", q)
        _check_like("v", v, "q", q)
        if state.length:
            raise SettingError("state", "an empty state", f"a state of {state.length} tokens")
        return self._prefill(
            q, k, v, state, self._context(q, state, position, key_mask=key_mask, params=params, trace=trace)
        )

    @torch.no_grad()
    def decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        state: KernelState,
        position: KernelPosition | None = None,
        params: nn.Module | None = None,
        trace: Trace | None = None,
    ) -> Float[Tensor, "B H 1 D"]:
        """One step: the row that ``attend(training=False)`` of the whole sequence would give. No gradient flows.

        Args:
            q, k, v: (B, H, 1, D) of the token at position ``state.length``, which every later token may see.
            position: covers the sequence up to this token at least.

        Raises:
            SettingError: as ``attend``; or a state that is full.
        """
        _check_rows("q", q)
        _check_like("q", q, "q", q, (q.shape[0], q.shape[1], 1, q.shape[3]))
        _check_like("k", k, "q", q)
        _check_like("v", v, "q", q)
        context = self._context(q, state, position, params=params, trace=trace)
        return self._decode(q, k, v, state, context)

    # --- inside

    def _context(
        self,
        q: Tensor,
        state: KernelState,
        position: KernelPosition | None,
        *,
        key_mask: Tensor | None = None,
        params: nn.Module | None,
        trace: Trace | None,
    ) -> Context:
        _check_key_mask(key_mask, q.shape[0], q.shape[2])
        self._check_cover(position, q.shape[0], state.length + q.shape[2])
        return Context(
            implementation=self.implementation(q),
            training=False,
            key_mask=key_mask,
            position=position,
            params=params,
            trace=trace,
        )

    def _resolve(self, implementation: str, q: Tensor) -> str:
        if implementation == "auto":
            return self.implementation(q)
        if implementation not in self.implementations:
            known = ("auto", *self.implementations)
            raise SettingError("implementation", f"an implementation of {self.kind}", implementation, known)
        return implementation

    def _check_cover(self, position: KernelPosition | None, batch_size: int, length: int) -> None:
        if position is None:
            return
        self.check_position(position.kind)
        if position.length < length:
            raise SettingError("position", f"indices of at least {length} positions", position.length)
        if position.batch_size not in (1, batch_size):
            raise SettingError("position", f"indices of 1 or {batch_size} sequences", position.batch_size)


def _check_rows(name: str, x: Tensor) -> None:
    if x.dtype not in _DTYPES:
        raise SettingError(name, "float16, bfloat16, float32 or float64", x.dtype)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise SettingError(name, "shape (B, H, T, D) with H, T and D at least 1", tuple(x.shape))


def _check_like(name: str, x: Tensor, other: str, like: Tensor, shape: Sequence[int] | None = None) -> None:
    shape = tuple(like.shape if shape is None else shape)
    if tuple(x.shape) != shape:
        raise SettingError(name, f"shape {shape}", tuple(x.shape))
    if x.dtype != like.dtype:
        raise SettingError(name, f"the dtype of {other}, {like.dtype}", x.dtype)


def _check_key_mask(key_mask: Tensor | None, batch_size: int, length: int) -> None:
    if key_mask is None:
        return
    if key_mask.dtype != torch.bool:
        raise SettingError("key_mask", "bool, True where a key may be seen", key_mask.dtype)
    if tuple(key_mask.shape) != (batch_size, length):
        raise SettingError("key_mask", f"shape {(batch_size, length)}", tuple(key_mask.shape))
