"""What every attention kernel must do.

Shapes: B batch, H heads, T positions, D head size.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsity_lab.kernels import AuxiliaryOutputs, Kernel
from sparsity_lab.settings import SettingError
from sparsity_lab.testing.failing import must_raise, require
from sparsity_lab.testing.kernel_context import check_context
from sparsity_lab.testing.kernel_rows import (
    B,
    D,
    H,
    Rows,
    gates_of,
    normal,
    padding,
    params_of,
    position_of,
    require_close,
    rows_of,
    tolerance_of,
)
from sparsity_lab.testing.setting import check_setting

_LENGTHS = (1, 2, 37)  # no block size divides 37, nor the long one
_LONG = 301
_DECODED = 21

_REFERENCE = "The reference is the formula; a fast form gives the same numbers, whatever the lengths and masks."
_CAUSAL = "A row sees keys up to its own position."
_NO_KEYS = "Rows that see no key give zeros, in value and in gradient; nothing divides by zero."
_STATE = "`prefill` and `decode` give what `attend(training=False)` gives, in whatever pieces the tokens come."
_FORMULA = "`weights` is the formula that `attend` computes."


def check_kernel(kernel: Kernel) -> None:
    """Check an attention kernel against its own dense reference, through its public methods.

    Every fast form gives the reference's outputs and gradients (of rows, gates and parameters). This holds for each
    kind of position that the kernel supports, with and without padding, in training and at inference. No row sees a
    later one, unless the kernel says that it ``leaks``. Weights times values are the output. Rows that begin
    elsewhere are rows of the whole, documents see themselves only, without ``causal`` rows see later keys, every gate
    counts. Tokens decoded one by one, or in pieces, give the output of all at once. Zero, constant, large and fully
    padded rows give finite numbers. Parameters are a function of the seed, and all of them learn. Wrong shapes,
    types, masks and positions are refused with ``SettingError``.

    Raises:
        AssertionError: something does not hold; the message says what, and what to do.

    Example:
        >>> from sparsity_lab.kernels import Softmax
        >>> check_kernel(Softmax())
    """
    check_setting(kernel)
    named = bool(kernel.implementations) and len(set(kernel.implementations)) == len(kernel.implementations)
    require(
        named, kernel, f"its implementations are {kernel.implementations}", "Name the reference, then fast forms."
    )
    for training in (True, False):
        _check_fast_forms(kernel, training)
        _check_long_rows(kernel, training)
        _check_causality(kernel, training)
        _check_weights(kernel, training)
        _check_degenerate_rows(kernel, training)
        check_context(kernel, training)
    _check_decoding(kernel)
    _check_grouped_heads(kernel)
    _check_parameters(kernel)
    _check_refusals(kernel)


def _settings(
    kernel: Kernel, length: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The arguments of ``attend`` in addition to rows: each kind of position, with and without padding."""
    for kind in (None, *sorted(kernel.positions)):
        for key_mask in (None, padding(length)):
            padded = "no padding" if key_mask is None else "padding"
            yield (
                f"T={length}, position={kind}, {padded}",
                {
                    "position": position_of(kind, length, dtype),
                    "key_mask": key_mask,
                    "params": params_of(kernel, dtype),
                    **gates_of(kernel, length, dtype),
                },
            )


def _check_fast_forms(kernel: Kernel, training: bool) -> None:
    """Outputs and gradients in float32 and bfloat16, against the reference in float64 on the very same numbers."""
    for dtype in (torch.float32, torch.bfloat16):
        for length in _LENGTHS:
            qkv, grad = rows_of(length, dtype), normal(1, H, length, seed=9)[0].to(dtype)
            # Positions and parameters are kept in float32 also for rows of half the size.
            exact = [options for _, options in _settings(kernel, length, torch.float64)]
            for (name, options), wide in zip(_settings(kernel, length), exact, strict=True):
                reference = {"implementation": kernel.implementations[0], "training": training, **wide}
                expected = _with_gradients(kernel, qkv, grad, torch.float64, reference)
                for implementation in kernel.implementations[1:]:
                    fast = {"implementation": implementation, "training": training, **options}
                    got = _with_gradients(kernel, qkv, grad, dtype, fast)
                    subject = f"{kernel}, {implementation!r}, {name}, {dtype}, training={training}"
                    for what, x in got.items():
                        # A gradient that vanishes has no size of its own.
                        least = 1e-6 if what == "its output" else 0.1 * float(grad.abs().max())
                        require_close(
                            subject, what, x, expected[what], tolerance_of(kernel, dtype), _REFERENCE, least
                        )


@torch.no_grad()
def _check_long_rows(kernel: Kernel, training: bool) -> None:
    """More rows than a fast form takes at a time."""
    for (name, options), (_, wide) in zip(
        _settings(kernel, _LONG), _settings(kernel, _LONG, torch.float64), strict=True
    ):
        rows, exact = rows_of(_LONG), rows_of(_LONG, torch.float64)
        reference = kernel.implementations[0]
        expected = kernel.attend(*exact, implementation=reference, training=training, **wide)
        for implementation in kernel.implementations[1:]:
            got = kernel.attend(*rows, implementation=implementation, training=training, **options)
            subject = f"{kernel}, {implementation!r}, {name}, training={training}"
            require_close(subject, "its output", got, expected, tolerance_of(kernel), _REFERENCE)


def _with_gradients(
    kernel: Kernel, qkv: Rows, grad: Tensor, dtype: torch.dtype, options: dict[str, Any]
) -> dict[str, Tensor]:
    """The output of the rows in this type, and the gradient of rows, gates and parameters, by name."""
    own = dict(zip("qkv", (x.to(dtype).requires_grad_() for x in qkv), strict=True))
    gates = {name: gate.clone().requires_grad_() for name, gate in options.get("gates", {}).items()}
    out = kernel.attend(*own.values(), **options | ({"gates": gates} if gates else {}))
    params: nn.Module | None = options["params"]
    learned = {} if params is None else dict(params.named_parameters())
    wanted = own | {f"the gate {name!r}": gate for name, gate in gates.items()}
    wanted |= {f"the parameter {name!r}": parameter for name, parameter in learned.items()}
    found = torch.autograd.grad(out, tuple(wanted.values()), grad.to(dtype), allow_unused=True)
    gradients = {
        f"its gradient of {name}": torch.zeros_like(x) if gradient is None else gradient
        for (name, x), gradient in zip(wanted.items(), found, strict=True)
    }
    return {"its output": out.detach(), **gradients}


@torch.no_grad()
def _check_causality(kernel: Kernel, training: bool) -> None:
    """Changing token t changes no row before t, but row t; a kernel that says it leaks does leak."""
    length = 23
    for implementation in kernel.implementations:
        for name, options in _settings(kernel, length):
            if options["key_mask"] is not None:
                continue
            subject = f"{kernel}, {implementation!r}, {name}, training={training}"
            call = {"implementation": implementation, "training": training, **options}
            qkv = rows_of(length)
            before, leaked = kernel.attend(*qkv, **call), False
            allowed = 0.0 if implementation == kernel.implementations[0] else 1e-6
            for t in range(length):
                changed = [x.clone() for x in qkv]
                for x in changed:
                    x[:, :, t] += 1.0
                after = kernel.attend(*changed, **call)
                error = float((after - before)[:, :, :t].abs().max()) if t else 0.0
                leaked |= error > allowed
                seen = f"token {t} changes a row before it by {error:.2g}"
                require(kernel.leaks or error <= allowed, subject, seen, _CAUSAL)
                itself = bool((after[:, :, t] != before[:, :, t]).any())
                require(itself, subject, f"token {t} does not change its own row", _CAUSAL)
            says = f"`leaks` is {kernel.leaks}, and later tokens {'do' if leaked else 'do not'} change earlier rows"
            require(leaked == (kernel.leaks and training), subject, says, "Say what holds in training.")


@torch.no_grad()
def _check_weights(kernel: Kernel, training: bool) -> None:
    """Tiles of weights are rows of the whole, times values they are the output, and they are causal."""
    length, start, stop = 22, 5, 16
    for name, options in _settings(kernel, length, torch.float64):
        subject = f"{kernel}, {name}, training={training}"
        q, k, v = rows_of(length, torch.float64)
        whole = kernel.weights(q, k, training=training, **options)
        tile = kernel.weights(q[:, :, start:stop], k, query_start=start, training=training, **options)
        what = f"the tile of `weights` with query_start={start}"
        require_close(subject, what, tile, whole[:, :, start:stop], 1e-13, "Count rows from query_start.")
        out = kernel.attend(q, k, v, training=training, **options)
        require_close(subject, "`weights(q, k) @ v`", whole @ v, out, 1e-11, _FORMULA)
        later = bool(whole.triu(1).any()) and not (kernel.leaks and training)
        require(not later, subject, "`weights` gives weight to a later key", _CAUSAL)
        if (key_mask := options["key_mask"]) is not None:
            masked = bool(whole.masked_select(~key_mask[:, None, None]).any())
            require(not masked, subject, "`weights` gives weight to a masked key", "Keys with a False are not seen.")


def _degenerate(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Rows]:
    return {
        "zero queries": (q * 0, k, v),
        "zero keys": (q, k * 0, v),
        "zero rows": (q * 0, k * 0, v * 0),
        "constant keys": (q, k[:, :, :1].expand_as(k).clone(), v),
        "one token": (q[:, :, :1].clone(), k[:, :, :1].clone(), v[:, :, :1].clone()),
        "large rows": (q * 1e3, k * 1e3, v),
        "small rows": (q * 1e-6, k * 1e-6, v),
    }


def _check_degenerate_rows(kernel: Kernel, training: bool) -> None:
    """Finite outputs and gradients, also where a whole sequence is padding, which gives zeros."""
    for implementation in kernel.implementations:
        for name, rows in _degenerate(*rows_of(19)).items():
            for padded in (False, True):
                subject = f"{kernel}, {implementation!r}, {name}, all padding: {padded}, training={training}"
                qkv = [x.detach().requires_grad_() for x in rows]
                length = qkv[0].shape[2]
                key_mask = torch.ones(B, length, dtype=torch.bool)
                key_mask[1] = not padded
                out = kernel.attend(
                    *qkv,
                    training=training,
                    implementation=implementation,
                    key_mask=key_mask,
                    params=params_of(kernel),
                    **gates_of(kernel, length, torch.float32),
                )
                gradients = torch.autograd.grad(out.square().sum(), qkv, allow_unused=True)
                named = zip(("its output", *(f"its gradient of {x}" for x in "qkv")), (out, *gradients), strict=True)
                for what, x in named:
                    if x is not None:
                        require(bool(x.isfinite().all()), subject, f"{what} is not finite", _NO_KEYS)
                        empty = not padded or not x[1].any()
                        require(empty, subject, f"{what} is not zero where all keys are masked", _NO_KEYS)


@torch.no_grad()
def _check_decoding(kernel: Kernel) -> None:
    """In one piece, in pieces, and token by token."""
    prompt = 13
    for dtype in (torch.float32, torch.float64):
        for name, options in _settings(kernel, _DECODED, dtype):
            qkv, given = rows_of(_DECODED, dtype), dict(options)
            key_mask = given.pop("key_mask")
            if key_mask is not None:  # decoding has no mask
                key_mask = torch.ones(B, _DECODED, dtype=torch.bool)
                key_mask[0, :4] = False
                key_mask[1, 7:9] = False
            whole = kernel.attend(*qkv, training=False, key_mask=key_mask, **given)
            gates = given.pop("gates", {})
            for pieces in ((prompt,), (5, prompt), (1, 2, 6, 7, prompt), *(() if key_mask is not None else ((),))):
                subject = f"{kernel}, {name}, {dtype}, prefilled up to {pieces} and then decoded"
                state = kernel.init_state(B, H, D, _DECODED, dtype=dtype)
                got, start = [], 0
                for stop in (*pieces, *range(max(pieces, default=0) + 1, _DECODED + 1)):
                    part = [x[:, :, start:stop] for x in qkv]
                    if gates:
                        given["gates"] = {name: gate[..., start:stop] for name, gate in gates.items()}
                    if stop not in pieces:
                        got.append(kernel.decode(*part, state=state, **given))
                    else:
                        mask = None if key_mask is None else key_mask[:, start:stop]
                        got.append(kernel.prefill(*part, state=state, key_mask=mask, **given))
                    require(state.length == stop, subject, f"state.length is {state.length} after {stop}", _STATE)
                    start = stop
                require_close(subject, "its output", torch.cat(got, 2), whole, tolerance_of(kernel, dtype), _STATE)


@torch.no_grad()
def _check_grouped_heads(kernel: Kernel) -> None:
    """Two heads of keys and values for four of queries are as if each stood there twice. A mechanism that deals with
    groups itself may choose for the group."""
    q, k, v = rows_of(12, num_kv_heads=2)
    options: dict[str, Any] = {"params": params_of(kernel, num_kv_heads=2), **gates_of(kernel, 12, q.dtype)}
    grouped = kernel.attend(q, k, v, **options)
    if not kernel.grouped:
        repeated = kernel.attend(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1), **options)
        remedy = "Heads are repeated before the mechanism sees them; do not count them."
        require_close(str(kernel), "the output of grouped heads", grouped, repeated, 1e-6, remedy)


def _check_parameters(kernel: Kernel) -> None:
    """A pure function of the seed; every one gets a gradient, from the output or from an auxiliary loss."""
    params, same = params_of(kernel), params_of(kernel)
    if params is None or same is None:
        return
    for name, value in params.state_dict().items():
        equal = torch.equal(value, same.state_dict()[name])
        remedy = "Draw initial values from a generator of your own with this seed."
        require(equal, kernel, f"`build` gives another {name!r} for the same seed", remedy)
    for implementation in kernel.implementations:
        params.zero_grad(set_to_none=True)
        auxiliary = AuxiliaryOutputs()
        out = kernel.attend(
            *rows_of(37),
            params=params,
            **gates_of(kernel, 37, torch.float32),
            auxiliary=auxiliary,
            generator=torch.Generator().manual_seed(0),
            implementation=implementation,
        )
        total: Tensor = sum(auxiliary.losses, out.square().sum())
        if total.requires_grad:
            torch.autograd.backward(total)
        for name, parameter in params.named_parameters():
            learns = parameter.grad is not None and bool(parameter.grad.isfinite().all())
            found = f"the parameter {name!r} gets no finite gradient from {implementation!r}"
            require(learns, kernel, found, "Use it in the output, or in a loss that `auxiliary` collects.")


def _check_refusals(kernel: Kernel) -> None:
    rows = torch.zeros(2, H, 4, D)
    wrong: dict[str, dict[str, Any]] = {
        "an unknown implementation": {"implementation": "referense"},
        "rows without a batch": {"q": rows[0]},
        "no rows": {"q": rows[:, :, :0], "k": rows[:, :, :0], "v": rows[:, :, :0]},
        "three heads of keys for four of queries": {"k": rows[:, :3], "v": rows[:, :3]},
        "fewer values than keys": {"v": rows[:, :, :3]},
        "values of another type": {"v": rows.double()},
        "integers": {"q": rows.long(), "k": rows.long(), "v": rows.long()},
        "a mask of another shape": {"key_mask": torch.ones(2, 5, dtype=torch.bool)},
        "a mask of numbers": {"key_mask": torch.ones(2, 4)},
    }
    for kind in {"rotate", "bias"} - kernel.positions:
        what = f"a position of the kind {kind!r}, which it does not take"
        wrong[what] = {"position": position_of(kind, 4, rows.dtype)}
    options = {"params": params_of(kernel), **gates_of(kernel, 4, rows.dtype)}
    remedy = "The base class checks: define what it asks for, and leave `attend` alone."
    for what, change in wrong.items():
        arguments: dict[str, Any] = {"q": rows, "k": rows, "v": rows, **options, **change}
        must_raise(partial(kernel.attend, **arguments), SettingError, kernel, what, remedy)
