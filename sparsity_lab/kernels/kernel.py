"""The contract of all attention mechanisms.

Shapes: B batch, T positions, H query heads, G key and value heads (G divides H; query head h reads head h // (H /
G)). Also R query rows, K keys, D head size, E value width. Queries are (B, H, R, D), keys (B, G, K, D) and values (B,
G, K, E), as in ``torch.nn.functional.scaled_dot_product_attention``. They come un-rotated: a mechanism applies
positions itself.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparsity_lab.kernels.cache import KernelState, KeyValueCache
from sparsity_lab.kernels.context import AuxiliaryOutputs, Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.kernels.operator import attend_as_operator, is_watched
from sparsity_lab.kernels.parts.arguments import (
    RowKind,
    check_covers,
    check_device,
    check_dtype,
    check_gates,
    check_keys,
    check_per_key,
    check_query_start,
    check_rows,
    check_type,
    known_device,
)
from sparsity_lab.kernels.parts.backward import is_autocast, own_precision
from sparsity_lab.kernels.position import KernelPosition
from sparsity_lab.settings import Setting, SettingError, Shown, check_least, is_registered

_KINDS: dict[str, type] = {
    "position": KernelPosition,
    "params": nn.Module,
    "generator": torch.Generator,
    "auxiliary": AuxiliaryOutputs,
}


class Kernel(Setting, family="kernel"):
    """An attention mechanism.

    A new mechanism is a class with ``@register``. On ``CachedKernel``, which remembers keys and values, it need only
    define ``_weights``, the formula; ``_fast`` computes other ``implementations`` than this reference, and ``build``
    makes its parameters. On this base it also says what it remembers, in ``_init_state`` and ``_extend``. The public
    methods here check what comes in and put all but queries, keys and values into a ``Context``, so the mechanism can
    trust its arguments.

    A row that sees no key gives zeros, in value and in gradient.

    Attributes:
        implementations: names of what can run; the first is the dense reference, the last what ``"auto"`` takes.
        decoders: names of more that can run in decoding alone.
        gates: names of the gates that the mechanism reads. A layer computes one logit for each name, head and
            position by a linear map of its input.
        grouped: whether the mechanism itself deals with fewer heads of keys and values than of queries. For all
            others keys and values are repeated before it sees them.
        reweightable: whether ``Reweighted`` takes it as its base: its rows weigh keys that are known before any
            score is.
        tells_losses: whether it has auxiliary losses.
        benchmark_inputs: what ``sparsity-lab bench kernels`` measures it on; ``"structured"`` is for mechanisms
            whose work depends on what is attended to.
    """

    largest = 2**31
    implementations: ClassVar[tuple[str, ...]] = ("reference",)
    decoders: ClassVar[tuple[str, ...]] = ()
    gates: ClassVar[tuple[str, ...]] = ()
    grouped: ClassVar[bool] = False
    reweightable: ClassVar[bool] = False
    benchmark_inputs: ClassVar[tuple[str, ...]] = ("random",)
    tells_losses: ClassVar[bool] = False

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
        """How many times as much as softmax the mechanism amplifies rounding errors of scores: p times for a power p.
        The tolerances of the shared tests scale with it."""
        return 1.0

    def build(self, num_heads: int, head_dim: int, seed: int) -> nn.Module | None:
        """The trainable parts, to be passed as ``params``, a pure function of the arguments; None: there are none.

        Args:
            num_heads: H; of a ``grouped`` mechanism G.
        """
        return None

    # These get rows as ``_prepare`` leaves them: rotated, unless a mechanism says otherwise.

    @abstractmethod
    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        """The formula: dense weights of query rows ``context.query_start`` and on, in float32 at least."""

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        """The output of the same rows by ``context.implementation``, which is not the reference."""
        raise NotImplementedError(
            f"{self.kind} lists the implementation {context.implementation!r} but does not define it"
        )

    def _rows(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        """The output of the same rows: of the reference, weights times values. A row under ``causal`` sees keys up to
        its own. There are K = query_start + R keys in decoding, and at least so many in ``attend``."""
        if context.implementation != self.implementations[0]:
            return self._fast(q, k, v, context)
        weights = self._weights(q, k, context)
        return (weights @ v.to(weights.dtype)).to(q.dtype)

    def _key_counts(self, q: Queries, k: Keys, context: Context) -> Int64[Tensor, "#B 1 R"]:
        """How many keys each row sees, n_i; 1 where it sees none."""
        return context.counts(q, k)

    # These get rows as they come.

    def _prepare(self, q: Queries, k: Keys, context: Context, key_start: int = 0) -> tuple[Queries, Keys]:
        """Rows as the mechanism takes them: queries at ``context.query_start`` and on, keys at ``key_start`` and
        on."""
        return context.rotate_both(q, k, key_start)

    def _attend(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        q, k = self._prepare(q, k, context)
        return self._rows(q, k, v, context)

    @abstractmethod
    def _init_state(self, rows: RowKind, capacity: int) -> KernelState:
        """An empty state for keys and values of this kind."""

    @abstractmethod
    def _extend(self, q: Queries, k: Keys, v: Values, state: Any, context: Context) -> Outputs:
        """Add the R tokens at positions ``state.length``, the context's ``query_start``, and on to the state; their
        output rows. The context's key mask and gates are of these tokens alone."""

    def _check_call(self, q: Queries, k: Keys, context: Context) -> None:
        """Raise ``SettingError`` for what the mechanism itself refuses, such as parameters of another kind. It comes
        before anything is written, so that a refused call leaves a decoding state as it was."""

    def _check_implementation(self, implementation: str, q: Queries) -> None:
        """Raise ``SettingError`` at ``implementation`` if it was asked for and cannot run on queries like these."""

    def _traceable(self, q: Queries, k: Keys, context: Context) -> bool:
        """Whether a compiler can trace ``_attend`` directly, in one graph for every length."""
        return False

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
            supported = " or ".join([*(f"{name!r}" for name in sorted(self.positions)), "None"])
            raise SettingError(path, f"a kind of position that {self.kind} supports ({supported})", kind)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = True,
        training: bool = True,
        key_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        query_start: int | None = None,
        position: KernelPosition | None = None,
        params: nn.Module | None = None,
        gates: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        auxiliary: AuxiliaryOutputs | None = None,
        implementation: str = "auto",
    ) -> Outputs:
        """(B, H, R, E): the attention output of every query row.

        Args:
            q: (B, H, R, D), float16, bfloat16, float32 or float64; R >= 1.
            k: (B, G, K, D) of the same dtype and device, where G divides H.
            v: (B, G, K, E). Under autocast dtypes may differ: all three then get that of autocast.
            causal: the row at position i sees keys 0 .. i only.
            training: of mechanisms that differ between training and inference.
            key_mask: (B, K) bool, True where a key may be seen.
            document_ids: (B, K) int64; a row sees only keys of the document that it lies in itself.
            query_start: position of the first row, where there are fewer rows than keys.
            position: covers at least K positions.
            params: what ``build`` gave.
            gates: (B, H, K) logits by name, one for each of the kernel's ``gates``.
            generator: of mechanisms that draw at random in training.
            auxiliary: collects auxiliary losses and audit records.
            implementation: ``"auto"`` or one of ``implementations``.

        Raises:
            SettingError: names the argument, what was expected and what came.
        """
        q, k, v = self._checked(q, k, v)
        documents = document_ids is not None
        start = check_query_start(query_start, q.shape[2], k.shape[2], causal=causal, documents=documents)
        context = self._context(
            q,
            k,
            max(k.shape[2], start + q.shape[2]),
            implementation=self._resolve(implementation, q),
            causal=causal,
            training=training,
            query_start=start,
            key_mask=key_mask,
            document_ids=document_ids,
            gates=gates,
            position=position,
            params=params,
            generator=generator,
            auxiliary=auxiliary,
        )
        with own_precision(q):
            if is_watched(q) and not self._is_followed(q, k, context):
                return attend_as_operator(self, q, k, v, context)
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
        document_ids: Tensor | None = None,
        position: KernelPosition | None = None,
        params: nn.Module | None = None,
        gates: Mapping[str, Tensor] | None = None,
    ) -> Weights:
        """(B, H, R, K): the dense reference weights of a tile of query rows, in any dtype.

        ``weights(q, k) @ v`` is what ``attend(q, k, v)`` gives. Analysis streams tiles of a few rows, so that no
        (T, T) map is ever stored.

        Args:
            q_rows: (B, H, R, D), the un-rotated queries of rows ``query_start .. query_start + R - 1``.
            k: (B, G, K, D), all un-rotated keys.

        Raises:
            SettingError: names the argument, what was expected and what came.
        """
        q_rows, k = _cast_together(q_rows, k)
        check_rows("q_rows", q_rows)
        check_rows("k", k)
        check_keys("k", k, "q_rows", q_rows, (k.shape[1], k.shape[2], q_rows.shape[3]))
        k = self._shared(k, q_rows.shape[1])
        context = self._context(
            q_rows,
            k,
            k.shape[2],
            implementation=self.implementations[0],
            causal=causal,
            training=training,
            query_start=check_query_start(query_start, q_rows.shape[2], k.shape[2], causal=causal),
            key_mask=key_mask,
            document_ids=document_ids,
            gates=gates,
            position=position,
            params=params,
        )
        with own_precision(q_rows):
            return self._weights(*self._prepare(q_rows, k, context), context).to(q_rows.dtype)

    def init_state(
        self,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        capacity: int,
        *,
        value_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        implementation: str = "auto",
    ) -> KernelState:
        """An empty decoding state with room for ``capacity`` tokens, for ``prefill`` and ``decode`` of this kernel
        alone.

        Args:
            num_heads: H; of a ``grouped`` mechanism G.
            value_dim: E; None is D.
            dtype, device: of the rows that will come; float16, bfloat16, float32 or float64.
            implementation: what decodes: ``"auto"``, or one of ``implementations`` and ``decoders``.

        Raises:
            SettingError: a size that is too small, another dtype, a device that is not there, an implementation that
                cannot run, or an option with which the mechanism cannot decode.
        """
        value_dim = head_dim if value_dim is None else value_dim
        check_least(0, batch_size=batch_size)
        check_least(1, num_heads=num_heads, head_dim=head_dim, value_dim=value_dim, capacity=capacity)
        check_dtype("dtype", dtype)
        rows = RowKind(batch_size, num_heads, head_dim, value_dim, dtype, known_device("device", device))
        state = self._init_state(rows, capacity)
        self._resolve(implementation, rows.empty(1)[0], self.decoders)
        state.maker, state.takes, state.implementation = self, rows, implementation
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
        gates: Mapping[str, Tensor] | None = None,
        auxiliary: AuxiliaryOutputs | None = None,
    ) -> Outputs:
        """The rows that a causal ``attend(training=False)`` of the whole sequence would give for the R tokens that
        follow those of the state, which takes them up. A prompt may come in one piece or in several. No gradient
        flows.

        Args:
            q: (B, H, R, D) of the tokens at positions ``state.length .. state.length + R - 1``.
            k, v: (B, G, R, D) and (B, G, R, E).
            position: covers the sequence up to these tokens at least; the same object for all calls, or ones that
                agree.
            key_mask: (B, R) bool, False for tokens that nobody may see, now and later.
            gates: (B, H, R) logits by name.

        Raises:
            SettingError: as ``attend``; or a state that another kernel made, that was made for rows of another batch,
                heads, size, dtype or device, or that is too small. The state is then as it was before.
        """
        q, k, v = self._checked(q, k, v)
        if k.shape[2] != q.shape[2]:
            raise SettingError("k", f"as many keys as queries, {q.shape[2]}", k.shape[2])
        self._check_state(state, k, v)
        context = self._context(
            q,
            k,
            state.length + q.shape[2],
            implementation=self._resolve(state.implementation, q, self.decoders),
            training=False,
            query_start=state.length,
            key_mask=key_mask,
            gates=gates,
            position=position,
            params=params,
            auxiliary=auxiliary,
        )
        with own_precision(q):
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
        gates: Mapping[str, Tensor] | None = None,
        auxiliary: AuxiliaryOutputs | None = None,
    ) -> Outputs:
        """``prefill`` of one token, which every later token may see.

        Raises:
            SettingError: as ``prefill``; or more than one token.
        """
        check_rows("q", q)
        if q.shape[2] != 1:
            raise SettingError("q", "one token, shape (B, H, 1, D)", tuple(q.shape))
        options: dict[str, Any] = {"params": params, "gates": gates, "auxiliary": auxiliary}
        return self.prefill(q, k, v, state=state, position=position, **options)

    # --- inside

    def _is_followed(self, q: Queries, k: Keys, context: Context) -> bool:
        """Whether ``_attend`` runs unchanged under a compiler. A class that is not registered always does."""
        registered = is_registered(type(self))
        return not registered or (torch.compiler.is_compiling() and self._traceable(q, k, context))

    def _checked(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Queries, Keys, Values]:
        """Queries, and keys and values that fit them, as the mechanism takes them."""
        q, k, v = _cast_together(q, k, v)
        for name, x in (("q", q), ("k", k), ("v", v)):
            check_rows(name, x)
        check_keys("k", k, "q", q, (k.shape[1], k.shape[2], q.shape[3]))
        check_keys("v", v, "q", q, (k.shape[1], k.shape[2], v.shape[3]))
        return q, self._shared(k, q.shape[1]), self._shared(v, q.shape[1])

    def _check_state(self, state: object, k: Keys, v: Values) -> None:
        if not isinstance(state, KernelState):
            raise SettingError("state", f"a state from {self}.init_state", Shown(type(state).__name__))
        if state.maker is not self and state.maker != self:
            raise SettingError(
                "state", f"a state from {self}.init_state", Shown(f"one from {state.maker}.init_state")
            )
        rows = RowKind.of(k, v)
        if state.takes != rows:
            raise SettingError("state", f"rows of {state.takes}", Shown(rows))
        state.check_room(k.shape[2])

    def _shared(self, x: Float[Tensor, "B G K width"], num_heads: int) -> Float[Tensor, "B heads K width"]:
        """Keys or values, repeated for every query head unless the mechanism deals with groups itself."""
        repeats = num_heads // x.shape[1]
        return x if self.grouped or repeats == 1 else x.repeat_interleave(repeats, dim=1)

    def _context(
        self,
        q: Queries,
        k: Keys,
        num_positions: int,
        *,
        key_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        gates: Mapping[str, Tensor] | None = None,
        position: KernelPosition | None = None,
        params: nn.Module | None = None,
        **rest: Any,
    ) -> Context:
        """The context of a call, checked against the rows, and by the mechanism itself.

        Args:
            num_positions: how many the position has to cover.
            rest: other fields of the context.
        """
        num_keys, gates = k.shape[2], {} if gates is None else gates
        for name, value in {"position": position, "params": params, **rest}.items():
            if name in _KINDS and value is not None:
                check_type(name, value, _KINDS[name], f"a {_KINDS[name].__name__}, or None")
        check_per_key("key_mask", key_mask, torch.bool, "bool, True where a key may be seen", q, num_keys)
        check_per_key("document_ids", document_ids, torch.int64, "int64", q, num_keys)
        check_gates(gates, self.gates, q, num_keys)
        if position is not None:
            self.check_position(position.kind)
            check_covers(position, q, num_positions)
        check_device(params, q.device)
        given: dict[str, Any] = {"key_mask": key_mask, "document_ids": document_ids, "gates": gates}
        context = Context(position=position, params=params, **given, **rest)
        self._check_call(q, k, context)
        return context

    def _resolve(self, implementation: str, q: Tensor, more: tuple[str, ...] = ()) -> str:
        if implementation == "auto":
            return self.implementation(q)
        self._check_implementation(implementation, q)
        if implementation not in (*self.implementations, *more):
            known = ("auto", *self.implementations, *more)
            raise SettingError("implementation", f"an implementation of {self.kind}", implementation, known)
        return implementation


class CachedKernel(Kernel):
    """A mechanism whose decoding state is a cache of keys, as ``_prepare`` leaves them, and of values.

    A subclass defines ``_weights``, and ``_fast`` if it has more than the reference. Both get rotated queries and
    keys, and the context has key mask and gates of all keys.

    >>> isinstance(Softmax(), CachedKernel)
    True
    """

    reweightable = True

    def _init_state(self, rows: RowKind, capacity: int) -> KeyValueCache:
        return KeyValueCache(rows, capacity)

    def _extend(self, q: Queries, k: Keys, v: Values, state: KeyValueCache, context: Context) -> Outputs:
        q, k = self._prepare(q, k, context, context.query_start)
        state.append(k, v, context.key_mask, context.gates)
        context = replace(context, key_mask=state.key_mask, gates=state.gates)
        return self._rows(q, state.keys, state.values, context)


def _cast_together(*rows: Tensor) -> tuple[Tensor, ...]:
    """Rows of several dtypes under autocast, in that of autocast, as ``scaled_dot_product_attention`` casts them;
    float64 is never cast. Rows of one dtype stay as they are."""
    kinds = {x.dtype for x in rows if isinstance(x, Tensor)}
    mixed = len(kinds) > 1 and kinds <= {torch.float16, torch.bfloat16, torch.float32}
    if not mixed or not is_autocast(rows[0]):
        return rows
    return tuple(x.to(torch.get_autocast_dtype(x.device.type)) for x in rows)
