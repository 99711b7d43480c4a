"""A call of a kernel as one operator, where ``torch.compile``, ``torch.func`` or the meta device looks at it.

Fast forms work through tiles in Python, and some look at numbers. A compiler would unroll the tiles anew for every
length, and a transform cannot follow. So both get the whole call as one operator that takes tensors and plain
numbers. Its fake form gives the shape. Its gradient repeats the forward pass and then runs the kernel's own backward
pass. On plain tensors kernels run as they are.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_lab.kernels.context import AuxiliaryOutputs, Context, Keys, Outputs, Queries, Values
from sparsity_lab.kernels.position import BiasPosition, BiasTable, KernelPosition, RotaryPosition
from sparsity_lab.settings import Setting, SettingError, Shown, from_text, kinds

_POSITIONS: dict[str, Callable[..., KernelPosition]] = {
    "interleaved": RotaryPosition.of_parts,
    "half": partial(RotaryPosition.of_parts, layout="half"),
    "distance": BiasPosition,
    "table": BiasTable,
}


def is_watched(q: Tensor) -> bool:
    """Whether a compiler, a transform or the meta device looks at a call on these queries."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or q.is_meta
        or type(q) not in (Tensor, nn.Parameter)
    )


def attend_as_operator(kernel: Any, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
    """What the kernel's ``_attend`` gives; losses go to the context's ``auxiliary``, audit records do not.

    Args:
        kernel: of a registered class.

    Raises:
        SettingError: a rotation by another class than ``RotaryPosition``.
    """
    layout, rows = [], [q, k, v]
    for name, x in (("key_mask", context.key_mask), ("document_ids", context.document_ids)):
        if x is not None:
            layout.append(name)
            rows.append(x)
    for name in context.gates:
        layout.append(f"gate:{name}")
        rows.append(context.gates[name])
    if context.position is not None:
        kind, parts = _parts_of(context.position, context.query_start + q.shape[2], k.shape[2])
        for part in parts:
            layout.append(f"position:{kind}")
            rows.append(part)
    weights = [] if context.params is None else [x for _, x in _named(context.params)]
    told = context.auxiliary is not None and kernel.tells_losses
    flags = context.causal, context.training, told
    call = _spelled(kernel), context.implementation, *flags, context.query_start, " ".join(layout)
    if torch.compiler.is_compiling() and not (
        torch.is_grad_enabled() and any(x.requires_grad for x in rows + weights)
    ):
        found = _attend(*call, rows, weights)  # without a gradient a compiler would call the function with a context
    else:
        found = _Attend.apply(*call, len(rows), *rows, *weights)  # type: ignore[no-untyped-call]
    if told:
        assert context.auxiliary is not None
        context.auxiliary.losses.append(found[1])
    out: Tensor = found[0]
    return out


def _parts_of(position: KernelPosition, num_rows: int, num_keys: int) -> tuple[str, tuple[Tensor, ...]]:
    """The kind and the tensors that make a position; of a foreign bias the table of all scores."""
    if isinstance(position, RotaryPosition):
        return position.layout, position.parts()
    if isinstance(position, BiasPosition):
        return "distance", position.parts()
    table = position.bias(slice(0, num_rows), slice(0, num_keys))
    if table is None:
        expected = "a RotaryPosition or a bias under torch.compile or torch.func"
        raise SettingError("position", expected, Shown(type(position).__name__))
    return "table", (table,)


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _spelled(setting: Setting) -> str:
    """The short form of a setting, by means that a compiler can follow; it watches the fields that it reads."""
    fields = []
    for field in dataclasses.fields(setting):  # type: ignore[arg-type]
        value = getattr(setting, field.name)
        if isinstance(value, float):
            # In a set a number is itself. A compiler may otherwise keep it as a symbol when it has seen two.
            (value,) = {value}
        fields.append(f"{field.name}={_spelled(value) if isinstance(value, Setting) else repr(value)}")
    return f"{setting.kind}({', '.join(fields)})"


@cache
def _kernel(text: str) -> Any:
    return from_text(kinds("kernel")[text.partition("(")[0]], text)


# --- the operators


_OF_RUN = (
    "str kernel, str implementation, bool causal, bool training, bool told, SymInt query_start, str layout, "
    "Tensor[] rows, Tensor[] weights"
)
"""The layout says what the rows after queries, keys and values are. The weights are parameters and buffers of what
the kernel builds."""


def _run(*call: Any) -> list[Tensor]:
    """The output, and the sum of auxiliary losses if they are to be ``told``."""
    kernel, implementation, causal, training, told, query_start, layout, rows, weights = call
    made, (q, k, v, *rest) = _kernel(kernel), rows
    given: dict[str, Any] = {}
    gates: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {}
    for name, x in zip(layout.split(), rest, strict=True):
        kind, _, own = name.partition(":")
        if kind == "gate":
            gates[own] = x
        elif kind == "position":
            parts.setdefault(own, []).append(x)
        else:
            given[kind] = x
    for name, tensors in parts.items():
        given["position"] = _POSITIONS[name](*tensors)
    auxiliary = AuxiliaryOutputs() if told else None

    context = Context(
        implementation=implementation,
        causal=causal,
        training=training,
        query_start=query_start,
        gates=gates,
        params=_built(made, q, k, weights) if weights else None,
        auxiliary=auxiliary,
        **given,
    )
    out: Tensor = made._attend(q, k, v, context)
    if auxiliary is None:
        return [out.contiguous()]
    loss = sum(auxiliary.losses, q.new_zeros((), dtype=torch.promote_types(q.dtype, torch.float32)))
    return [out.contiguous(), loss]


def _built(kernel: Any, q: Queries, k: Keys, weights: Sequence[Tensor]) -> nn.Module:
    """What the kernel builds, with these tensors in place of its own. They stay: tiles are computed once more in
    the backward pass."""
    params: nn.Module = kernel.build(kernel.own_heads(q.shape[1], k.shape[1]), q.shape[3], 0)
    for (path, own), x in zip(list(_named(params)), weights, strict=True):
        owner, _, name = path.rpartition(".")
        if isinstance(own, nn.Parameter):
            parameter = x if isinstance(x, nn.Parameter) else nn.Parameter(x, requires_grad=False)
            params.get_submodule(owner).register_parameter(name, parameter)
        else:
            params.get_submodule(owner).register_buffer(name, x)
    return params


_attend = torch.library.custom_op("sparsity_lab::attend", _run, mutates_args=(), schema=f"({_OF_RUN}) -> Tensor[]")


@_attend.register_fake
def _(*call: Any) -> list[Tensor]:
    *_, told, _, _, (q, _, v, *_), _ = call
    loss = [q.new_empty((), dtype=torch.promote_types(q.dtype, torch.float32))] if told else []
    return [q.new_empty(*q.shape[:3], v.shape[3]), *loss]


@torch.library.custom_op(
    "sparsity_lab::attend_backward",
    mutates_args=(),
    schema=f"({_OF_RUN}, SymInt[] wanted, Tensor[] gradients) -> Tensor[]",
)
def _attend_backward(*call: Any) -> list[Tensor]:
    """Gradients of the ``wanted`` of all rows and weights."""
    *plain, rows, weights, wanted, gradients = call
    with _autograd_on():
        num_rows = len(rows)
        inputs = [*(x.detach() for x in rows), *(nn.Parameter(x.detach(), requires_grad=False) for x in weights)]
        leaves = [inputs[i].requires_grad_() for i in wanted]
        again = [*plain, inputs[:num_rows], inputs[num_rows:]]
        outs = _run(*again)
        known = [(out, g) for out, g in zip(outs, gradients, strict=True) if out.requires_grad]
        if not known:
            return [torch.zeros_like(x) for x in leaves]
        of_outs, given = zip(*known, strict=True)
        of_leaves = torch.autograd.grad(of_outs, leaves, given, materialize_grads=True)
    return [x.contiguous() for x in of_leaves]


@_attend_backward.register_fake
def _(*call: Any) -> list[Tensor]:
    *_, rows, weights, wanted, _ = call
    inputs = (*rows, *weights)
    return [inputs[i].new_empty(inputs[i].shape) for i in wanted]


@contextmanager
def _autograd_on() -> Iterator[None]:
    """Inside an operator PyTorch leaves autograd out; here it is back."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    included = torch._C._dispatch_tls_local_include_set()
    no_hooks = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    torch._C._autograd._saved_tensors_hooks_enable()
    try:
        with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
            yield
    finally:
        if no_hooks is not None:
            torch._C._autograd._saved_tensors_hooks_disable(no_hooks)


# --- what autograd and transforms see


_NUM_PLAIN = 8
"""Arguments of ``_Attend`` before its tensors."""


class _Attend(torch.autograd.Function):
    """From the plain arguments of ``_run``, the number of rows, rows and weights."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *call, num_rows = args[:_NUM_PLAIN]
        tensors = args[_NUM_PLAIN:]
        return tuple(_attend(*call, list(tensors[:num_rows]), list(tensors[num_rows:])))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.plain = inputs[:_NUM_PLAIN]
        ctx.save_for_backward(*inputs[_NUM_PLAIN:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[_NUM_PLAIN:]) if needed]
        tensors = ctx.saved_tensors
        if torch.compiler.is_compiling():
            *call, num_rows = ctx.plain
            found = _attend_backward(
                *call, list(tensors[:num_rows]), list(tensors[num_rows:]), wanted, list(gradients)
            )
        else:
            found = _AttendBackward.apply(
                *ctx.plain, " ".join(map(str, wanted)), len(gradients), *gradients, *tensors
            )  # type: ignore[no-untyped-call]
        of_tensors: list[Tensor | None] = [None] * len(tensors)
        for i, x in zip(wanted, found, strict=True):
            of_tensors[i] = x
        return (*[None] * _NUM_PLAIN, *of_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _one_by_one(_Attend, info.batch_size, in_dims, args)


class _AttendBackward(torch.autograd.Function):
    """From the plain arguments, which gradients are wanted, in words, how many are given, these, rows and weights."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *call, num_rows = args[:_NUM_PLAIN]
        wanted, number, *tensors = args[_NUM_PLAIN:]
        gradients, tensors = tensors[:number], tensors[number:]
        return tuple(
            _attend_backward(*call, tensors[:num_rows], tensors[num_rows:], list(map(int, wanted.split())), gradients)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("second derivatives need implementation='reference' and plain tensors")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _one_by_one(_AttendBackward, info.batch_size, in_dims, args)


def _one_by_one(
    function: Any, batch_size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Each sequence of a batch separately, as PyTorch does with its fused kernel on a CPU."""
    found = [
        function.apply(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)))
        for i in range(batch_size)
    ]
    stacked = tuple(torch.stack(parts) for parts in zip(*found, strict=True))
    return stacked, (0,) * len(stacked)
