"""What every registered kernel must do beside ``sparsity_lab.testing.check_kernel``, by its examples: a new mechanism
is tested by being registered."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import KERNELS, make_position, padding
from torch import Tensor, nn

from sparsity_lab.kernels import AuxiliaryOutputs, BiasPosition, Kernel, KernelPosition, KernelState, RotaryPosition
from sparsity_lab.settings import Setting, SettingError

B, H, D = 2, 4, 8

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)
training_or_use = pytest.mark.parametrize("training", [True, False], ids=["training", "use"])


def position_kinds(kernel: Kernel) -> list[str | None]:
    return [None, *sorted(kernel.positions)]


def params_of(kernel: Kernel, dtype: torch.dtype = torch.float32, num_kv_heads: int = H) -> nn.Module | None:
    params = kernel.build(kernel.own_heads(H, num_kv_heads), D, seed=3)
    return None if params is None else params.to(dtype)


def rows(length: int, dtype: torch.dtype, seed: int = 0, num_kv_heads: int = H) -> tuple[Tensor, Tensor, Tensor]:
    q = random_rows(B, H, length, D, count=1, seed=seed, dtype=dtype)[0]
    k, v = random_rows(B, num_kv_heads, length, D, count=2, seed=seed + 1, dtype=dtype)
    return q, k, v


def attended(kernel: Kernel, qkv: tuple[Tensor, ...], *, kind: str | None = None, **options: Any) -> Tensor:
    dtype = qkv[0].dtype
    # Positions and parameters are kept in float32 also for rows of half the size.
    wide = torch.promote_types(dtype, torch.float32)
    position = make_position(kind, qkv[0].shape[2], num_heads=H, dtype=wide)
    params = params_of(kernel, wide, qkv[1].shape[1])
    return kernel.attend(*qkv, position=position, params=params, **options)


@every_kernel
@training_or_use
def test_a_sequence_alone_is_one_of_a_batch(kernel: Kernel, training: bool) -> None:
    """A batch of one: outputs and gradients of every form."""
    key_mask, grad = padding(37), random_rows(B, H, 37, D, count=1, seed=9, dtype=torch.float32)[0].detach()
    for implementation in kernel.implementations:
        for mask in (None, key_mask):
            options: dict[str, Any] = {"training": training, "implementation": implementation}
            both, alone = rows(37, torch.float32), rows(37, torch.float32)
            alone = tuple(x.detach()[1:].requires_grad_() for x in alone)
            out = attended(kernel, both, key_mask=mask, **options)
            got = attended(kernel, alone, key_mask=None if mask is None else mask[1:], **options)
            tolerance = tolerance_of(kernel, torch.float32)
            assert_close(f"output, {implementation}", got, out[1:].detach(), tolerance)
            found = torch.autograd.grad(got, alone, grad[1:])
            expected = torch.autograd.grad(out, both, grad)
            for name, x, y in zip("qkv", found, expected, strict=True):
                assert_gradient_close(f"gradient of {name}, {implementation}", x, y[1:], grad[1:], tolerance)


def tolerance_of(kernel: Kernel, dtype: torch.dtype) -> float:
    """Relative to the largest entry; a mechanism that amplifies rounding says by how much."""
    return kernel.rounding * (2e-5 if dtype == torch.float32 else 3e-2)


def assert_gradient_close(
    name: str, got: Tensor | None, reference: Tensor | None, grad: Tensor, tolerance: float
) -> None:
    """As ``assert_close``, but a gradient that vanishes but for rounding (a row alone) is measured by its source."""
    none = torch.zeros_like(grad[:, :1, :1])
    got = none if got is None else got
    reference = none.double() if reference is None else reference
    assert got.isfinite().all(), f"{name}: not finite"
    size = max(float(reference.abs().max()), 0.1 * float(grad.abs().max()))
    error = float((got.double() - reference).abs().max())
    assert error <= tolerance * size, f"{name}: error {error:.2e} of size {size:.2e}"


@every_kernel
@training_or_use
def test_gradcheck(kernel: Kernel, training: bool) -> None:
    """Every implementation by finite differences in float64, the custom backward passes among them."""
    for implementation in kernel.implementations:
        if "float64" in refused(kernel, implementation):
            continue
        for kind in position_kinds(kernel):
            generator = torch.Generator().manual_seed(5)
            draws = torch.randn(3, B, H, 7, D, generator=generator, dtype=torch.float64)
            qkv = tuple(x.requires_grad_() for x in draws)

            def attend(
                *qkv: Tensor, implementation: str = implementation, kind: str | None = kind, kernel: Kernel = kernel
            ) -> Tensor:
                return attended(kernel, qkv, kind=kind, training=training, implementation=implementation)

            assert torch.autograd.gradcheck(attend, qkv, fast_mode=True), f"{implementation}, {kind}"


def refused(kernel: Kernel, implementation: str) -> str:
    """Why float64 rows are refused, or nothing."""
    try:
        attended(kernel, rows(4, torch.float64), implementation=implementation)
    except SettingError as error:
        return str(error)
    return ""


@every_kernel
@training_or_use
def test_grouped_heads_are_repeated_heads(kernel: Kernel, training: bool) -> None:
    """Two heads of keys and values for four of queries: in attend and in decoding. A mechanism that deals with groups
    itself may choose for the group, so only its decoding is compared with itself."""
    length = 12
    qkv = tuple(x.detach() for x in rows(length, torch.float32, num_kv_heads=2))
    params = params_of(kernel, num_kv_heads=2)
    grouped = kernel.attend(*qkv, training=training, params=params)
    if not kernel.grouped:
        repeated = [x.repeat_interleave(2, dim=1) for x in qkv[1:]]
        assert_close("output", grouped, kernel.attend(qkv[0], *repeated, training=training, params=params), 1e-6)
    if not training:
        state = kernel.init_state(B, kernel.own_heads(H, 2), D, length)
        got = [kernel.prefill(*(x[:, :, :7] for x in qkv), state=state, params=params)]
        got += [
            kernel.decode(*(x[:, :, t : t + 1] for x in qkv), state=state, params=params) for t in range(7, length)
        ]
        assert_close("decoded", torch.cat(got, 2), grouped, tolerance_of(kernel, torch.float32))


DEGENERATE = {
    "zero queries": lambda q, k, v: (q * 0, k, v),
    "zero keys": lambda q, k, v: (q, k * 0, v),
    "all zero": lambda q, k, v: (q * 0, k * 0, v * 0),
    "constant keys": lambda q, k, v: (q, k[:, :, :1].expand_as(k).clone(), v),
    "one token": lambda q, k, v: (q[:, :, :1].clone(), k[:, :, :1].clone(), v[:, :, :1].clone()),
    "large": lambda q, k, v: (q * 1e3, k * 1e3, v),
    "small": lambda q, k, v: (q * 1e-6, k * 1e-6, v),
}


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def test_legal_input_decodes_without_nan(kernel: Kernel, dtype: torch.dtype) -> None:
    """The same rows through a state, a prompt of three and then token by token: finite, and what ``attend`` gives; of
    one sequence, and of two, one of them all padding."""
    params = params_of(kernel)
    for name, change in DEGENERATE.items():
        for batch_size, fully_padded in ((1, False), (B, True)):
            qkv = tuple(x.detach()[:batch_size] for x in rows(6, torch.float32))
            qkv = tuple(x.to(dtype) for x in change(*qkv))
            length = qkv[0].shape[2]
            key_mask = torch.ones(batch_size, length, dtype=torch.bool)
            key_mask[-1] = not fully_padded
            whole = kernel.attend(*qkv, training=False, key_mask=key_mask, params=params)
            state, got = kernel.init_state(batch_size, H, D, length, dtype=dtype), []
            for start, stop in pairwise(sorted({0, *range(3, length), length})):
                piece = slice(start, stop)
                part = [x[:, :, piece] for x in qkv]
                if fully_padded:
                    out = kernel.prefill(*part, state=state, key_mask=key_mask[:, piece], params=params)
                elif stop - start == 1:
                    out = kernel.decode(*part, state=state, params=params)
                else:
                    out = kernel.prefill(*part, state=state, params=params)
                got.append(out)
            case = f"{name}, batch of {batch_size}, padded: {fully_padded}"
            decoded = torch.cat(got, 2)
            assert decoded.isfinite().all(), case
            if fully_padded:
                assert not decoded[-1].any(), case
            assert_close(case, decoded, whole, tolerance_of(kernel, dtype))


@every_kernel
def test_parameters_learn(kernel: Kernel) -> None:
    """Every trainable part gets a gradient, from the output or from an auxiliary loss, alike in all forms."""
    params = params_of(kernel)
    if params is None:
        return
    gradients = []
    for implementation in kernel.implementations:
        params.zero_grad(set_to_none=True)
        auxiliary = AuxiliaryOutputs()
        out = kernel.attend(
            *(x.detach() for x in rows(37, torch.float32)),
            params=params,
            auxiliary=auxiliary,
            generator=torch.Generator().manual_seed(0),
            implementation=implementation,
        )
        total: Tensor = sum(auxiliary.losses, out.square().sum())
        total.backward()
        found = {name: parameter.grad for name, parameter in params.named_parameters()}
        assert all(grad is not None and grad.isfinite().all() for grad in found.values()), (
            f"{implementation}: {found}"
        )
        gradients.append(found)
    for other in gradients[1:]:
        for name, grad in other.items():
            expected = gradients[0][name]
            assert grad is not None
            assert expected is not None
            assert_close(f"gradient of {name}", grad, expected, 1e-4)


@every_kernel
def test_strided_rows_are_their_copies(kernel: Kernel) -> None:
    """Rows that are every other number of their storage, with every kind of position."""
    storage = torch.randn(3, 2, H, 9, 2 * D, generator=torch.Generator().manual_seed(1))
    strided = tuple(storage[..., ::2])
    for kind in position_kinds(kernel):
        got = attended(kernel, strided, kind=kind, training=False)
        plain = attended(kernel, tuple(x.contiguous() for x in strided), kind=kind, training=False)
        assert_close(str(kind), got, plain, tolerance_of(kernel, torch.float32))


@every_kernel
def test_autocast_changes_nothing(kernel: Kernel) -> None:
    """The dtype of the rows decides how a mechanism computes, also inside a model under autocast."""
    qkv = tuple(x.detach() for x in rows(21, torch.float32))
    for implementation in kernel.implementations:
        expected = attended(kernel, qkv, implementation=implementation)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(attended(kernel, qkv, implementation=implementation), expected), implementation


@every_kernel
def test_an_empty_batch(kernel: Kernel) -> None:
    for implementation in kernel.implementations:
        empty = tuple(x.detach()[:0].requires_grad_() for x in rows(37, torch.float32))
        out = attended(kernel, empty, implementation=implementation)
        assert out.shape == (0, H, 37, D)
        out.sum().backward()


@every_kernel
def test_float64_runs_the_reference(kernel: Kernel) -> None:
    q = torch.zeros(1, 1, 2, 4)
    assert kernel.implementation(q.double()) == kernel.implementations[0] == "reference"
    assert kernel.implementation(q) in kernel.implementations


ROWS = torch.zeros(2, 4, 4, 8)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"implementation": "referense"}, r"implementation: .*got 'referense'; .*'reference'"),
    ({"q": ROWS[:, :, :0], "k": ROWS[:, :, :0], "v": ROWS[:, :, :0]}, r"q: expected shape .*got \(2, 4, 0, 8\)"),
    ({"q": ROWS[0]}, r"q: expected shape \(B, H, T, D\).*got \(4, 4, 8\)"),
    ({"k": ROWS[:, :3], "v": ROWS[:, :3]}, r"k: expected a number of heads that divides the 4 of q, got 3"),
    ({"k": ROWS[:, :2]}, r"v: expected shape \(2, 2, 4, 8\), got \(2, 4, 4, 8\)"),
    ({"v": ROWS[:, :, :3]}, r"v: expected shape \(2, 4, 4, 8\), got \(2, 4, 3, 8\)"),
    ({"v": ROWS.double()}, r"v: expected the dtype of q, torch.float32, got torch.float64"),
    ({"q": ROWS.long()}, r"q: expected float16, .*got torch.int64"),
    ({"key_mask": torch.ones(2, 5, dtype=torch.bool)}, r"key_mask: expected shape \(2, 4\), got \(2, 5\)"),
    ({"key_mask": torch.ones(2, 4)}, r"key_mask: expected bool.*got torch.float32"),
]


@every_kernel
def test_refusals(kernel: Kernel) -> None:
    for change, message in BAD:
        arguments = {"q": ROWS, "k": ROWS, "v": ROWS, "params": params_of(kernel)} | change
        with pytest.raises(SettingError, match=message):
            kernel.attend(**arguments)
    with pytest.raises(SettingError, match=r"query_start: expected 0 .. 3 \(1 of 4 rows\), got 4"):
        kernel.weights(ROWS[:, :, :1], ROWS, query_start=4, params=params_of(kernel))
    for kind in {"rotate", "bias"} - kernel.positions:
        with pytest.raises(SettingError, match="position: expected a kind of position"):
            kernel.attend(ROWS, ROWS, ROWS, position=make_position(kind, 4, num_heads=4), params=params_of(kernel))
    for kind in kernel.positions:
        wrong = make_position(kind, 4, num_heads=3, head_dim=4)
        with pytest.raises(SettingError, match="position: expected (slopes of 4 heads|angles for heads of 8)"):
            kernel.attend(ROWS, ROWS, ROWS, position=wrong, params=params_of(kernel))


@every_kernel
def test_another_kernels_state_is_refused(kernel: Kernel) -> None:
    """Also one of the same kind with other settings: what it holds may mean something else."""
    other = next(one for one in KERNELS if one != kernel)
    state = other.init_state(2, 4, 8, 4)
    with pytest.raises(SettingError, match="state: expected a state from"):
        kernel.prefill(*[ROWS[:, :, :2]] * 3, state=state, params=params_of(kernel))
    with pytest.raises(SettingError, match="capacity: expected at least 1, got 0"):
        kernel.init_state(2, 4, 8, 0)


def kept_in(state: KernelState) -> dict[str, Any]:
    """All that a state holds, tensors copied."""
    return copy.deepcopy(vars(state))


def assert_same(name: str, got: Any, expected: Any) -> None:
    """Equal numbers, also inside other objects. Room that nothing was written to yet may hold NaN by chance."""
    if isinstance(expected, Tensor):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True, msg=name)
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), name
        for key, value in expected.items():
            assert_same(f"{name}.{key}", got[key], value)
    elif isinstance(expected, tuple):
        for number, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert_same(f"{name}[{number}]", one, other)
    elif hasattr(expected, "__dict__") and not isinstance(expected, Setting):
        assert_same(name, vars(got), vars(expected))
    else:
        assert got == expected, name


ON_META = ROWS[:, :, :1].to("meta")
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"k": ON_META}, r"k: expected the device of q, cpu, got device\(type='meta'\)"),
    ({"v": ON_META}, r"v: expected the device of q, cpu, got device\(type='meta'\)"),
    ({"q": ON_META}, r"k: expected the device of q, meta, got device\(type='cpu'\)"),
    (dict.fromkeys("qkv", ON_META), r"state: expected rows of .* in torch.float32 on cpu, got .* on meta"),
    (dict.fromkeys("qkv", ROWS[:, :, :1].bfloat16()), r"state: expected rows of .*float32 .*, got .*bfloat16 on cpu"),
    (dict.fromkeys("qkv", ROWS[:, :, :1].double()), r"state: expected rows of .*float32 .*, got .*float64 on cpu"),
    (dict.fromkeys("qkv", ROWS[:1, :, :1]), r"state: .*\(B, H, D\) = \(2, 4, 8\) .*, got \(B, H, D\) = \(1, 4, 8\)"),
    (dict.fromkeys("qkv", ROWS[:, :2, :1]), r"state: .*\(B, H, D\) = \(2, 4, 8\) .*, got \(B, H, D\) = \(2, 2, 8\)"),
    (
        dict.fromkeys("qkv", ROWS[..., :1, :4]),
        r"state: .*\(B, H, D\) = \(2, 4, 8\) .*, got \(B, H, D\) = \(2, 4, 4\)",
    ),
    (
        {"key_mask": torch.ones(2, 1, dtype=torch.bool, device="meta")},
        r"key_mask: expected the device .*cpu, got .*meta",
    ),
    ({"key_mask": torch.ones(2, 2, dtype=torch.bool)}, r"key_mask: expected shape \(2, 1\), got \(2, 2\)"),
    ({"key_mask": torch.ones(2, 1)}, r"key_mask: expected bool"),
]


@every_kernel
def test_a_refused_call_leaves_the_state(kernel: Kernel) -> None:
    """Rows, masks and positions of another kind, shape, dtype or device, parameters of another kind, of other heads
    or on another device, and too many tokens: refused by name before anything is counted or written, so that the
    right call goes on as if nothing had been."""
    params, length = params_of(kernel), 7
    qkv = tuple(x.detach() for x in rows(length, torch.float32))
    whole = kernel.attend(*qkv, training=False, params=params)
    state = kernel.init_state(B, H, D, length)
    kernel.prefill(*(x[:, :, :5] for x in qkv), state=state, params=params)
    before = kept_in(state)
    bad = list(REFUSED)
    if state.capacity is not None:
        bad.append(
            (dict.fromkeys("qkv", ROWS[:, :, :3]), r"state.capacity: expected enough room for 8 tokens, got 7")
        )
    for kind in kernel.positions:
        short, wrong = make_position(kind, 5, num_heads=H), make_position(kind, 9, num_heads=3, head_dim=4)
        bad.append(({"position": short}, r"position: expected indices of at least 6 positions, got 5"))
        bad.append(({"position": wrong}, r"position: expected (slopes of 4 heads|angles for heads of 8)"))
        bad.append(({"position": on_meta(kind, length)}, r"position: expected one on the device .*cpu, got .*meta"))
    if params is not None:
        bad.append(({"params": nn.Linear(2, 2)}, r"params: expected the module that .*build.* returns, got '?Linear"))
        other = kernel.build(3, D, seed=3)
        bad.append(({"params": other}, r"params: expected .*, got 3"))
        elsewhere = kernel.build(kernel.own_heads(H, H), D, seed=3).to("meta")
        bad.append(
            ({"params": elsewhere}, r"params: expected parameters on the device of the queries, cpu, got .*meta")
        )
    for change, message in bad:
        arguments = {**dict.fromkeys("qkv", ROWS[:, :, :1]), "params": params, **change}
        with pytest.raises(SettingError, match=message):
            kernel.prefill(**arguments, state=state)
        assert_same("state", vars(state), before)
    steps = [kernel.decode(*(x[:, :, t : t + 1] for x in qkv), state=state, params=params) for t in range(5, length)]
    assert_close("decoded", torch.cat(steps, 2), whole[:, :, 5:], tolerance_of(kernel, torch.float32))


@every_kernel
def test_a_prompt_may_be_taken_up_in_inference_mode(kernel: Kernel) -> None:
    params, length = params_of(kernel), 6
    qkv = tuple(x.detach() for x in rows(length, torch.float32))
    whole = kernel.attend(*qkv, training=False, params=params)
    state = kernel.init_state(B, H, D, length)
    with torch.inference_mode():
        first = kernel.prefill(*(x[:, :, :4] for x in qkv), state=state, params=params)
    steps = [kernel.decode(*(x[:, :, t : t + 1] for x in qkv), state=state, params=params) for t in (4, 5)]
    assert_close("decoded", torch.cat([first.clone(), *steps], 2), whole, tolerance_of(kernel, torch.float32))


@every_kernel
def test_an_empty_batch_gives_an_empty_batch(kernel: Kernel) -> None:
    params, x = params_of(kernel), torch.zeros(0, H, 5, D)
    assert kernel.attend(x, x, x, params=params).shape == x.shape
    assert kernel.weights(x[:, :, 3:], x, query_start=3, params=params).shape == (0, H, 2, 5)
    state = kernel.init_state(0, H, D, 6)
    assert kernel.prefill(x, x, x, state=state, params=params).shape == x.shape
    step = x[:, :, :1]
    assert kernel.decode(step, step, step, state=state, params=params).shape == step.shape
    assert state.length == 6


def on_meta(kind: str, length: int) -> KernelPosition:
    if kind == "rotate":
        return RotaryPosition(torch.zeros(1, length, D // 2, dtype=torch.float64, device="meta"))
    return BiasPosition(torch.zeros(1, length, dtype=torch.int64, device="meta"), torch.zeros(H, device="meta"))


@every_kernel
def test_a_state_on_another_device_is_refused(kernel: Kernel) -> None:
    state = kernel.init_state(B, H, D, 4, device="meta")
    with pytest.raises(SettingError, match=r"state: expected rows of .* on meta, got .* on cpu"):
        kernel.decode(*[ROWS[:, :, :1]] * 3, state=state, params=params_of(kernel))
    assert state.length == 0
    for kind in kernel.positions:
        with pytest.raises(
            SettingError, match=r"position: expected one on the device of the queries, cpu, got .*meta"
        ):
            kernel.attend(ROWS, ROWS, ROWS, position=on_meta(kind, 4), params=params_of(kernel))
        with pytest.raises(
            SettingError, match=r"position: expected one on the device of the queries, cpu, got .*meta"
        ):
            kernel.weights(ROWS, ROWS, position=on_meta(kind, 4), params=params_of(kernel))


@every_kernel
def test_states_of_no_dtype_or_device_are_refused(kernel: Kernel) -> None:
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e5m2):
        with pytest.raises(
            SettingError, match=rf"dtype: expected float16, bfloat16, float32 or float64, got {dtype}"
        ):
            kernel.init_state(B, H, D, 4, dtype=dtype)
    for device in ("gpu", "cpu:x", "cuda:99"):
        with pytest.raises(SettingError, match=rf"device: expected a device that PyTorch has here.*, got '{device}'"):
            kernel.init_state(B, H, D, 4, device=device)
    with pytest.raises(SettingError, match=r"state: expected a state from .*init_state, got NoneType"):
        kernel.decode(*[ROWS[:, :, :1]] * 3, state=None, params=params_of(kernel))
