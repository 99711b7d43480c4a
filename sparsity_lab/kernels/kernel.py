"""The contract of all attention mechanisms.

Shapes: B batch, T positions, H query heads, G heads of keys and values (G divides H; query head h reads head
h // (H / G)), D head size, R query rows. Queries are (B, H, T, D), keys and values (B, G, T, D), as in
``torch.nn.functional.scaled_dot_product_attention``, and come un-rotated: where a position is applied is the
mechanism's own affair.
"""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsity_lab.kernels.arguments import (
    RowKind,
    check_dtype,
    check_key_mask,
    check_keys,
    check_rows,
    known_device,
)
from sparsity_lab.kernels.cache import KernelState
from sparsity_lab.kernels.context import AuxiliaryOutputs, Context
from sparsity_lab.kernels.position import KernelPosition
from sparsity_lab.settings import Setting, SettingError, Shown

__all__ = ["Kernel"]


class Kernel(Setting, family="kernel"):
    """An attention mechanism.

    A new mechanism is one folder: a class with this base and ``@register`` that names its ``implementations`` and
    defines ``_attend``, ``_weights``, ``_init_state`` and ``_extend``, and ``build`` if it has parameters. The public
    methods here check what comes in, so the mechanism can trust its arguments. ``CachedKernel`` is the shorter way
    for mechanisms that remember keys and values.

    A row that sees no key gives zeros, in value and in gradient.

    Attributes:
        implementations: names of what can run; the first is the dense reference, the last what ``"auto"`` takes.
        grouped: whether the mechanism itself deals with fewer heads of keys and values than of queries. For all
            others keys and values are repeated before it sees them.
        benchmark_inputs: what ``sparsity-lab bench kernels`` measures it on; ``"structured"`` is for mechanisms
            whose work depends on what is attended to.
    """

    implementations: ClassVar[tuple[str, ...]]
    grouped: ClassVar[bool] = False
    benchmark_inputs: ClassVar[tuple[str, ...]] = ("random",)

    # --- what a mechanism defines

    @classmethod
    def examples(cls) -> "tuple[Kernel, ...]":
        """Instances that together show every option, small enough for T = 40; the shared tests run over them."""
        return (cls(),)

    @classmethod
    def benchmarked(cls) -> "tuple[Kernel, ...]":
        """Instances that ``sparsity-lab bench kernels`` measures."""
        return (cls(),)

    @property
    def positions(self) -> frozenset[str]:
        """Kinds of ``KernelPosition`` that the mechanism takes."""
        return frozenset({"rotate", "bias"})

    @property
    def leaks(self) -> bool:
        """Whether a row can depend on later positions in training, although ``causal`` is asked for."""
        return False

    @property
    def at_inference(self) -> "Kernel":
        """The mechanism that runs with ``training=False``, where that has a name of its own."""
        return self

    @property
    def rounding(self) -> float:
        """How many times the mechanism amplifies rounding errors of scores, beside softmax: a power p does p times.
        The tolerances of the shared tests scale with it."""
        return 1.0

    def build(self, num_heads: int, head_dim: int, seed: int) -> nn.Module | None:
        """The trainable parts, to be passed as ``params``, a pure function of the arguments; None: there are none.

        Args:
            num_heads: H; of a ``grouped`` mechanism G.
        """
        return None

    @abstractmethod
    def _init_state(
        self,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> KernelState: ...

    @abstractmethod
    def _attend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T D"], context: Context
    ) -> Float[Tensor, "B H T D"]: ...

    @abstractmethod
    def _weights(
        self, q_rows: Float[Tensor, "B H R D"], k: Float[Tensor, "B G T D"], query_start: int, context: Context
    ) -> Float[Tensor, "B H R T"]: ...

    @abstractmethod
    def _extend(
        self,
        q: Float[Tensor, "B H R D"],
        k: Float[Tensor, "B G R D"],
        v: Float[Tensor, "B G R D"],
        state: Any,
        context: Context,
    ) -> Float[Tensor, "B H R D"]:
        """Add the R tokens at positions ``state.length`` and on to the state; their output rows. The context's key
        mask is of these tokens alone."""

    def _check_call(self, q: Float[Tensor, "B H R D"], k: Float[Tensor, "B G T D"], context: Context) -> None:
        """Raise ``SettingError`` for what the mechanism itself refuses, such as parameters of another kind. It comes
        before anything is written, so that a refused call leaves a decoding state as it was."""

    def _check_params(self, q: Float[Tensor, "B H R D"], k: Float[Tensor, "B G T D"], context: Context) -> None:
        """Refuse parameters on another device than the queries, and what the mechanism itself refuses."""
        for tensor in () if context.params is None else (*context.params.parameters(), *context.params.buffers()):
            if tensor.device != q.device:
                raise SettingError("params", f"parameters on the device of the queries, {q.device}", tensor.device)
        self._check_call(q, k, context)

    def _check_implementation(self, implementation: str, q: Float[Tensor, "B H R D"]) -> None:
        """Raise ``SettingError`` at ``implementation`` if it was asked for and cannot run on queries like these."""

    # --- what others call

    def own_heads(self, num_heads: int, num_kv_heads: int) -> int:
        """How many heads ``build`` and ``init_state`` are to be told: G of a ``grouped`` mechanism, else H."""
        return num_kv_heads if self.grouped else num_heads

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
        auxiliary: AuxiliaryOutputs | None = None,
        implementation: str = "auto",
    ) -> Float[Tensor, "B H T D"]:
        """(B, H, T, D): the attention output of every position.

        Args:
            q: (B, H, T, D), float16, bfloat16, float32 or float64; T >= 1.
            k, v: (B, G, T, D) of the same dtype and device, where G divides H.
            causal: row i sees keys 0 .. i only.
            training: of mechanisms that differ between training and use.
            key_mask: (B, T) bool, True where a key may be seen.
            position: covers at least T positions.
            params: what ``build`` gave.
            generator: of mechanisms that draw at random in training.
            auxiliary: collects auxiliary losses and audit records.
            implementation: ``"auto"`` or one of ``implementations``.

        Raises:
            SettingError: names the argument, what was expected and what came.
        """
        k, v = self._checked(q, k, v)
        self._check_conditions(q, q.shape[2], key_mask, position)
        context = Context(
            implementation=self._resolve(implementation, q),
            causal=causal,
            training=training,
            key_mask=key_mask,
            position=position,
            params=params,
            generator=generator,
            auxiliary=auxiliary,
        )
        self._check_params(q, k, context)
        with _own_precision(q):
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
            k: (B, G, T, D), all un-rotated keys.

        Raises:
            SettingError: names the argument, what was expected and what came.
        """
        check_rows("q_rows", q_rows)
        check_rows("k", k)
        _, num_heads, num_rows, _ = q_rows.shape
        num_keys = k.shape[2]
        check_keys("k", k, "q_rows", q_rows, k.shape[1], num_keys)
        if query_start < 0 or query_start + num_rows > num_keys:
            raise SettingError(
                "query_start", f"0 .. {num_keys - num_rows} ({num_rows} of {num_keys} rows)", query_start
            )
        self._check_conditions(q_rows, num_keys, key_mask, position)
        context = Context(
            implementation=self.implementations[0],
            causal=causal,
            training=training,
            key_mask=key_mask,
            position=position,
            params=params,
        )
        k = self._shared(k, num_heads)
        self._check_params(q_rows, k, context)
        with _own_precision(q_rows):
            return self._weights(q_rows, k, query_start, context)

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
        """An empty decoding state with room for ``capacity`` tokens, for ``prefill`` and ``decode`` of this kernel
        alone.

        Args:
            num_heads: H; of a ``grouped`` mechanism G.
            dtype, device: of the rows that will come; float16, bfloat16, float32 or float64.

        Raises:
            SettingError: a size that is too small, another dtype, a device that is not there, or an option with which
                the mechanism cannot decode.
        """
        sizes = {"batch_size": batch_size, "num_heads": num_heads, "head_dim": head_dim, "capacity": capacity}
        for name, size in sizes.items():
            least = 0 if name == "batch_size" else 1
            if size < least:
                raise SettingError(name, f"at least {least}", size)
        check_dtype("dtype", dtype)
        device = known_device("device", device)
        state = self._init_state(**sizes, dtype=dtype, device=device)
        state.maker, state.takes = self, RowKind(batch_size, num_heads, head_dim, dtype, device)
        return state

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
        auxiliary: AuxiliaryOutputs | None = None,
    ) -> Float[Tensor, "B H R D"]:
        """The rows that a causal ``attend(training=False)`` of the whole sequence would give for the R tokens that
        follow those of the state, which takes them up. A prompt may come in one piece or in several. No gradient
        flows.

        Args:
            q: (B, H, R, D) of the tokens at positions ``state.length .. state.length + R - 1``.
            k, v: (B, G, R, D).
            position: covers the sequence up to these tokens at least; the same object for all calls, or ones that
                agree.
            key_mask: (B, R) bool, False for tokens that nobody may see, now and later.

        Raises:
            SettingError: as ``attend``; or a state that another kernel made, that was made for rows of another batch,
                heads, size, dtype or device, or that is too small. The state is then as it was before.
        """
        k, v = self._checked(q, k, v)
        self._check_state(state, k)
        check_key_mask(key_mask, q, q.shape[2])
        self._check_conditions(q, state.length + q.shape[2], None, position)
        context = Context(
            implementation=self.implementation(q),
            training=False,
            key_mask=key_mask,
            position=position,
            params=params,
            auxiliary=auxiliary,
        )
        self._check_params(q, k, context)
        with _own_precision(q):
            return self._extend(q, k, v, state, context)

    def decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        state: KernelState,
        position: KernelPosition | None = None,
        params: nn.Module | None = None,
        auxiliary: AuxiliaryOutputs | None = None,
    ) -> Float[Tensor, "B H 1 D"]:
        """``prefill`` of one token, which every later token may see.

        Raises:
            SettingError: as ``prefill``; or more than one token.
        """
        if q.ndim == 4 and q.shape[2] != 1:
            raise SettingError("q", "one token, shape (B, H, 1, D)", tuple(q.shape))
        return self.prefill(q, k, v, state=state, position=position, params=params, auxiliary=auxiliary)

    # --- inside

    def _checked(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that fit the queries, as the mechanism takes them."""
        check_rows("q", q)
        check_rows("k", k)
        check_keys("k", k, "q", q, k.shape[1], q.shape[2])
        check_keys("v", v, "q", q, k.shape[1], q.shape[2])
        return self._shared(k, q.shape[1]), self._shared(v, q.shape[1])

    def _check_state(self, state: object, k: Float[Tensor, "B G R D"]) -> None:
        if not isinstance(state, KernelState):
            raise SettingError("state", f"what init_state of {self} gives", Shown(type(state).__name__))
        if state.maker is not self and state.maker != self:
            raise SettingError("state", f"a state made by {self}", Shown(f"one made by {state.maker}"))
        rows = RowKind.of(k)
        if state.takes != rows:
            raise SettingError("state", f"rows of {state.takes}", Shown(rows))
        state.check_room(k.shape[2])

    def _shared(self, x: Float[Tensor, "B G T D"], num_heads: int) -> Float[Tensor, "B heads T D"]:
        """Keys or values, repeated for every query head unless the mechanism deals with groups itself."""
        repeats = num_heads // x.shape[1]
        return x if self.grouped or repeats == 1 else x.repeat_interleave(repeats, dim=1)

    def _check_conditions(
        self, q: Tensor, length: int, key_mask: Tensor | None, position: KernelPosition | None
    ) -> None:
        check_key_mask(key_mask, q, length)
        if position is None:
            return
        self.check_position(position.kind)
        if position.length < length:
            raise SettingError("position", f"indices of at least {length} positions", position.length)
        if position.batch_size not in (1, q.shape[0]):
            raise SettingError("position", f"indices of 1 or {q.shape[0]} sequences", position.batch_size)
        if position.device is not None and position.device != q.device:
            raise SettingError("position", f"one on the device of the queries, {q.device}", position.device)
        position.check_heads(q.shape[1], q.shape[3])

    def _resolve(self, implementation: str, q: Tensor) -> str:
        if implementation == "auto":
            return self.implementation(q)
        if implementation not in self.implementations:
            known = ("auto", *self.implementations)
            raise SettingError("implementation", f"an implementation of {self.kind}", implementation, known)
        self._check_implementation(implementation, q)
        return implementation


def _own_precision(q: Tensor) -> AbstractContextManager[object]:
    """Autocast off: which dtype a step is computed in is the mechanism's own affair, decided by that of its rows."""
    kind = q.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
