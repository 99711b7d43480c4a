"""What ``torch.nn.functional.scaled_dot_product_attention`` can do in anyone's model, every registered kernel can.

It is the control: each test runs on it as well, behind the interface of kernels.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import KERNELS, make_position
from torch import Tensor, distributed, nn
from torch.func import functional_call
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

from sparsity_lab.kernels import (
    AuxiliaryOutputs,
    BiasPosition,
    Kernel,
    KernelPosition,
    RotaryPosition,
    ShiftedSparse,
    Softmax,
    interleaved_order,
)
from sparsity_lab.models import Decoder, RoPE
from sparsity_lab.settings import SettingError

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
from kernels_outside import BEGIN, END, PAGE, table

B, H, D = 2, 4, 8

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def params_of(kernel: Kernel, dtype: torch.dtype = torch.float32) -> nn.Module | None:
    params = kernel.build(kernel.own_heads(H, H), D, seed=3)
    return None if params is None else params.to(dtype)


def tolerance_of(kernel: Kernel, dtype: torch.dtype = torch.float32) -> float:
    """Relative to the largest entry; a mechanism that amplifies rounding says by how much."""
    return 1e-10 if dtype == torch.float64 else kernel.rounding * 2e-5


def forms(kernel: Kernel) -> list[tuple[str, torch.dtype]]:
    """Every implementation with a dtype that it runs in."""
    first, *others = kernel.implementations
    return [(first, torch.float64), *((name, torch.float32) for name in others)]


def fast_forms(kernel: Kernel) -> tuple[str, ...]:
    """All implementations but the reference, where there are others."""
    return kernel.implementations[1:] or kernel.implementations


def outcome(call: Callable[..., Tensor], *rows: Tensor, **options: Any) -> list[Tensor]:
    """The output and the gradients of all rows."""
    out = call(*rows, **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, rows, weight)]


def assert_same(what: str, got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, x, y, factor in zip(("output", *"qkv"), got, expected, (1, 10, 10, 10), strict=True):
        assert_close(f"{what}: {name}", x, y, factor * tolerance)


# --- R new rows on K cached keys, and values of another width


@pytest.mark.parametrize("width", [D, 3, 20])
@pytest.mark.parametrize("implementation", Softmax.implementations)
def test_new_rows_are_those_of_the_lower_right(implementation: str, width: int) -> None:
    """PyTorch's own mask for rows that come after cached keys."""
    (q,) = random_rows(B, H, 5, D, count=1)
    (k,) = random_rows(B, H, 300, D, count=1, seed=1)
    (v,) = random_rows(B, H, 300, width, count=1, seed=2)

    def control(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(5, 300))

    got = outcome(Softmax().attend, q, k, v, query_start=295, implementation=implementation)
    assert_same("lower right", got, outcome(control, q, k, v), 1e-12)


@every_kernel
@pytest.mark.parametrize("width", [D, 3, 12])
def test_new_rows_on_cached_keys(kernel: Kernel, width: int) -> None:
    """The last rows alone on all keys are the last rows of the whole, in outputs and gradients of every form, with
    values of any width."""
    for implementation, dtype in forms(kernel):
        q, k = random_rows(B, H, 30, D, count=2, dtype=dtype)
        (v,) = random_rows(B, H, 30, width, count=1, seed=1, dtype=dtype)
        options: dict[str, Any] = {"implementation": implementation, "params": params_of(kernel, dtype)}
        options["training"] = False
        last = outcome(
            lambda q, k, v, options=options: kernel.attend(q[:, :, 23:], k, v, query_start=23, **options), q, k, v
        )
        whole = outcome(lambda q, k, v, options=options: kernel.attend(q, k, v, **options)[:, :, 23:], q, k, v)
        assert_same(implementation, last, whole, tolerance_of(kernel, dtype))


@every_kernel
def test_rows_without_a_place_are_refused(kernel: Kernel) -> None:
    """PyTorch's causal flag counts from the first key, a cache from the last: neither is guessed."""
    q, k = torch.zeros(B, H, 2, D), torch.zeros(B, H, 6, D)
    with pytest.raises(SettingError, match="^query_start: expected the position of the first of 2 queries") as caught:
        kernel.attend(q, k, k, params=params_of(kernel))
    assert "\n" not in str(caught.value)


# --- autocast


@every_kernel
def test_autocast_casts_rows_of_several_dtypes_together(kernel: Kernel) -> None:
    """Rotated queries and keys in float32 and values in bfloat16 meet under autocast: outputs and gradients have the
    dtypes that they have of ``scaled_dot_product_attention``, and are those of rows that were cast before."""
    q, k = random_rows(B, H, 21, D, count=2, dtype=torch.float32)
    (v,) = random_rows(B, H, 21, D, count=1, seed=1, dtype=torch.bfloat16)
    params = params_of(kernel)

    def under_autocast(call: Callable[..., Tensor], **options: Any) -> list[Tensor]:
        def cast(*rows: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return call(*rows, **options)

        return outcome(cast, q, k, v)

    control = under_autocast(scaled_dot_product_attention, is_causal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = kernel.weights(q, k.bfloat16(), params=params, training=False)
    assert weights.dtype == torch.bfloat16
    for implementation in fast_forms(kernel):
        options: dict[str, Any] = {"params": params, "implementation": implementation}
        got = under_autocast(kernel.attend, **options)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = outcome(partial(kernel.attend, **options), q, k, v)
        assert [x.dtype for x in got] == [x.dtype for x in control]
        for x, y in zip(inside, got, strict=True):  # the backward pass inside too
            assert_close("inside", x, y, 3e-2)
        cast = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
        expected = outcome(kernel.attend, *cast, **options)
        assert all(torch.equal(x, y.to(x.dtype)) for x, y in zip(got, expected, strict=True))
    with pytest.raises(SettingError, match=r"v: expected the dtype of q, torch.float32, got torch.bfloat16"):
        kernel.attend(q, k, v, params=params)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(SettingError, match="v: expected the dtype of q"):
        kernel.attend(q, k, v.double(), params=params)  # float64 is never cast


# --- padding


def hidden_places() -> Tensor:
    """(2, T) key mask: padding on the left and in the middle; in the middle and on the right."""
    key_mask = torch.ones(B, 37, dtype=torch.bool)
    key_mask[0, :4] = key_mask[0, 20] = key_mask[1, 8:11] = key_mask[1, -6:] = False
    return key_mask


@every_kernel
@pytest.mark.parametrize("garbage", [1e13, -1e13])
def test_what_stands_in_hidden_places_is_never_seen(kernel: Kernel, garbage: float) -> None:
    """Any finite number: outputs and gradients of every form, and decoding, are as with zeros there."""
    key_mask = hidden_places()
    hidden = ~key_mask[:, None, :, None]
    for implementation, dtype in [*forms(kernel), (kernel.implementations[0], torch.float32)]:
        found = []
        for fill in (0.0, garbage):
            q, k, v = (x.detach() for x in random_rows(B, H, 37, D, dtype=dtype))
            rows = [q, k.masked_fill(hidden, fill), v.masked_fill(hidden, fill)]
            rows = [x.requires_grad_() for x in rows]
            params = params_of(kernel, dtype)
            options: dict[str, Any] = {"implementation": implementation, "key_mask": key_mask, "params": params}
            of_call = outcome(kernel.attend, *rows, training=False, **options)
            state = kernel.init_state(B, H, D, 37, dtype=dtype)
            parts = [(0, 3), (3, 4), (4, 30), (30, 37)]
            decoded = [
                kernel.prefill(
                    *(x.detach()[:, :, a:b] for x in rows), state=state, key_mask=key_mask[:, a:b], params=params
                )
                for a, b in parts
            ]
            found.append([*of_call, torch.cat(decoded, dim=2)])
        for name, got, expected in zip(("output", *"qkv", "decoded"), found[1], found[0], strict=True):
            assert_close(f"{implementation}, {name}", got, expected, 10 * tolerance_of(kernel, dtype))


def padded_position(kind: str | None, length: int, padding: int, dtype: torch.dtype) -> KernelPosition | None:
    """Of ``padding`` tokens, and after them a sequence whose indices begin at 0."""
    indices = (torch.arange(padding + length) - padding).clamp_min(0)[None]
    if kind == "rotate":
        rates = 100.0 ** (-torch.arange(D // 2, dtype=torch.float64) / (D // 2))
        return RotaryPosition(indices[..., None] * rates, dtype)
    if kind == "bias":
        return BiasPosition(indices, torch.tensor([0.5, 0.1, 0.02, 0.3], dtype=dtype))
    return None


@every_kernel
def test_padding_on_the_left_changes_nothing(kernel: Kernel) -> None:
    """At inference, in every form, with every kind of position, in one piece, in the last rows alone, in decoding:
    what is counted, sinks and groups among it, is counted from the first visible key."""
    length, padding, start = 31, 5, 20
    key_mask = torch.ones(1, padding + length, dtype=torch.bool)
    key_mask[:, :padding] = False
    for implementation, dtype in forms(kernel):
        alone = [x.detach()[:1] for x in random_rows(B, H, length, D, dtype=dtype)]
        filled = [torch.cat([torch.full((1, H, padding, D), 3.0, dtype=dtype), x], dim=2) for x in alone]
        q, k, v = filled
        params = params_of(kernel, dtype)
        for kind in (None, *sorted(kernel.positions)):
            options: dict[str, Any] = {"implementation": implementation, "params": params, "training": False}
            expected = kernel.attend(*alone, position=padded_position(kind, length, 0, dtype), **options)
            position = padded_position(kind, length, padding, dtype)
            options |= {"position": position, "key_mask": key_mask}
            what, tolerance = f"{implementation}, {kind}", tolerance_of(kernel, dtype)
            got = kernel.attend(q, k, v, **options)
            assert not got[:, :, :padding].any()
            assert_close(what, got[:, :, padding:], expected, tolerance)
            first = padding + start
            some = kernel.attend(q[:, :, first:], k, v, query_start=first, **options)
            assert_close(f"{what}, last rows", some, expected[:, :, start:], tolerance)
            if implementation == kernel.implementation(q):
                state = kernel.init_state(1, H, D, padding + length, dtype=dtype)
                rest = {"state": state, "position": position, "params": params}
                borders = [(0, 3), (3, 7), (7, 8), (8, 30)]
                parts = [
                    kernel.prefill(*(x[:, :, a:b] for x in filled), key_mask=key_mask[:, a:b], **rest)
                    for a, b in borders
                ]
                steps = range(30, padding + length)
                parts += [kernel.decode(*(x[:, :, t : t + 1] for x in filled), **rest) for t in steps]
                assert_close(f"{what}, decoded", torch.cat(parts, 2)[:, :, padding:], expected, tolerance)


@pytest.mark.parametrize("field", [{"ratio": 0.25}, {"group": 4, "variant": "wrap_causal"}], ids=str)
def test_groups_that_hang_on_the_length_take_no_mask_at_inference(field: dict[str, Any]) -> None:
    kernel = ShiftedSparse(sparse_at_inference=True, **field)
    rows = torch.zeros(3, B, H, 8, D).unbind()
    with pytest.raises(SettingError, match="^key_mask: needs group and variant='split'"):
        kernel.attend(*rows, key_mask=torch.ones(B, 8, dtype=torch.bool), training=False)
    with pytest.raises(SettingError, match="^document_ids: not supported at inference"):
        kernel.attend(*rows, document_ids=torch.zeros(B, 8, dtype=torch.int64), training=False)


# --- transforms, and the device without numbers


@every_kernel
def test_gradients_by_torch_func(kernel: Kernel) -> None:
    """``torch.func.grad``, with parameters through ``functional_call``, gives what autograd does; masked too."""
    for implementation, dtype in forms(kernel):
        rows = tuple(x.detach() for x in random_rows(B, H, 37, D, dtype=dtype))
        params = params_of(kernel, dtype)
        weights = {} if params is None else {name: x.detach() for name, x in params.named_parameters()}
        for key_mask in (None, hidden_places()):

            def loss(
                weights: dict[str, Tensor],
                *rows: Tensor,
                key_mask: Tensor | None = key_mask,
                implementation: str = implementation,
                params: nn.Module | None = params,
            ) -> Tensor:
                def attend(params: nn.Module | None) -> Tensor:
                    options: dict[str, Any] = {"implementation": implementation, "key_mask": key_mask}
                    return kernel.attend(*rows, params=params, **options).square().sum()

                if params is None:
                    return attend(None)
                return functional_call(Called(params), {f"params.{k}": x for k, x in weights.items()}, (attend,))

            of_weights, *found = torch.func.grad(loss, tuple(range(4)))(weights, *rows)
            leaves = [x.clone().requires_grad_() for x in (*rows, *weights.values())]
            total = loss(dict(zip(weights, leaves[3:], strict=True)), *leaves[:3])
            expected = torch.autograd.grad(total, leaves, materialize_grads=True)
            for got, wanted in zip((*found, *of_weights.values()), expected, strict=True):
                assert_close(implementation, got, wanted, tolerance_of(kernel, dtype))


class Called(nn.Module):
    """Calls a function of a module, as ``torch.func.functional_call`` wants it."""

    def __init__(self, params: nn.Module) -> None:
        super().__init__()
        self.params = params

    def forward(self, function: Callable[[nn.Module], Tensor]) -> Tensor:
        return function(self.params)


@every_kernel
def test_vmap_is_a_loop(kernel: Kernel) -> None:
    """Over queries, keys and masks; and the gradients of each of a batch by itself."""
    q, k = (x.detach() for x in random_rows(3, B, H, 21, D, count=2, dtype=torch.float32))
    (v,) = (x.detach() for x in random_rows(B, H, 21, D, count=1, dtype=torch.float32))
    key_mask = torch.rand(3, B, 21, generator=torch.Generator().manual_seed(4)) < 0.7
    params = params_of(kernel)

    for implementation in fast_forms(kernel):
        attend = partial(_masked, kernel, params, implementation)

        def gradients(*args: Tensor, attend: Callable[..., Tensor] = attend) -> tuple[Tensor, ...]:
            return torch.func.grad(lambda *args: attend(*args).square().sum(), (0, 1, 2))(*args)

        for function in (lambda *args, attend=attend: (attend(*args),), gradients):
            got = torch.vmap(function, (0, 0, None, 0))(q, k, v, key_mask)
            each = [function(*part, v, mask) for *part, mask in zip(q, k, key_mask, strict=True)]
            for found, expected in zip(got, zip(*each, strict=True), strict=True):
                assert_close(f"{implementation}, vmap", found, torch.stack(expected), 1e-6)


def _masked(
    kernel: Kernel, params: nn.Module | None, implementation: str, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor
) -> Tensor:
    return kernel.attend(q, k, v, key_mask=key_mask, params=params, implementation=implementation)


@every_kernel
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_the_meta_device_tells_shapes(kernel: Kernel, training: bool) -> None:
    """Outputs and gradients without numbers, with padding, documents where they are served, and every position."""
    params = params_of(kernel)
    params = None if params is None else params.to("meta")
    for implementation in kernel.implementations:
        q, k = (torch.empty(B, H, 37, D, device="meta", requires_grad=True) for _ in range(2))
        v = torch.empty(B, H, 37, 12, device="meta", requires_grad=True)
        for kind in (None, *sorted(kernel.positions)):
            position = make_position(kind, 37, num_heads=H, dtype=torch.float32)
            if position is not None:
                made = getattr(position, "of_parts", type(position))
                position = made(*(x.to("meta") for x in position.parts()))  # type: ignore[attr-defined]
            for key_mask in (None, torch.empty(B, 37, dtype=torch.bool, device="meta")):
                out = kernel.attend(
                    q, k, v, implementation=implementation, training=training, params=params, key_mask=key_mask,
                    position=position,
                )  # fmt: skip
                assert (out.shape, out.is_meta) == ((B, H, 37, 12), True)
                gradients = torch.autograd.grad(out.sum(), (q, k, v))
                assert [x.shape for x in gradients] == [q.shape, k.shape, v.shape]


def test_a_second_derivative_under_a_transform_is_refused() -> None:
    rows = torch.randn(3, B, H, 5, D, generator=torch.Generator().manual_seed(0)).unbind()

    def loss(q: Tensor) -> Tensor:
        return Softmax().attend(q, *rows[1:]).sum()

    with pytest.raises(RuntimeError, match="second derivatives need implementation='reference'"):
        torch.func.grad(lambda q: torch.func.grad(loss)(q).square().sum())(rows[0])


# --- training elsewhere


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A group of one process, which refuses what a larger one refuses."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Attention(nn.Module):
    """A layer with a kernel and its parameters, which adds the auxiliary losses where it is told to."""

    def __init__(self, kernel: Kernel, *, auxiliary: bool) -> None:
        super().__init__()
        self.kernel, self.auxiliary = kernel, auxiliary
        self.qkv = nn.Linear(H * D, 3 * H * D)
        self.params = params_of(kernel)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)
        told = AuxiliaryOutputs() if self.auxiliary else None
        loss: Tensor = self.kernel.attend(q, k, v, params=self.params, auxiliary=told).square().mean()
        return loss if told is None else sum(told.losses, loss)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if params_of(kernel) is not None], ids=str)
def test_distributed_training_finds_every_parameter(kernel: Kernel, auxiliary: bool) -> None:
    """Parameters that only an auxiliary loss trains are in the graph without it too, or the next step is refused."""
    model = DistributedDataParallel(Attention(kernel, auxiliary=auxiliary))
    x = torch.randn(B, 24, H * D, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        model.zero_grad()
        model(x).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    if auxiliary:
        assert any(parameter.grad.any() for parameter in model.module.params.parameters())


# --- rotary layouts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_half_rotation_is_interleaved_rotation_of_permuted_rows(dtype: torch.dtype) -> None:
    """By the formula of Llama's weights, x cos + rotate_half(x) sin, and by the documented permutation."""
    angles = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half, interleaved = RotaryPosition(angles, dtype, "half"), RotaryPosition(angles, dtype)
    (x,) = (x.detach() for x in random_rows(2, H, 7, D, count=1, dtype=dtype))
    order = interleaved_order(D)
    got = half.rotate(x, 2)
    cos, sin = (torch.cat([t, t], -1)[:, None, 2:] for t in (angles.cos(), angles.sin()))
    turned = torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
    assert_close("formula", got, (x.double() * cos + turned.double() * sin).to(dtype), tolerance)
    assert_close("permutation", got[..., order], interleaved.rotate(x[..., order], 2), tolerance)
    assert torch.equal(x[..., order][..., order.argsort()], x)
    assert got.dtype == dtype


def test_a_decoder_reads_weights_of_either_layout() -> None:
    """With the rows of W_q and W_k permuted it is the same model."""
    half, interleaved = (Decoder(position=RoPE(layout=layout)).build(0) for layout in ("half", "interleaved"))
    order = torch.cat([h * 16 + interleaved_order(16) for h in range(4)])
    with torch.no_grad():
        for block in interleaved.blocks:
            for part in range(2):
                rows = slice(part * 64, part * 64 + 64)
                block.qkv.weight[rows] = block.qkv.weight[rows][order]
    tokens = torch.randint(0, 16, (2, 20), generator=torch.Generator().manual_seed(0))
    assert_close("logits", interleaved(tokens).logits, half(tokens).logits, 1e-5)


# --- the page


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_page_tells_what_is_found() -> None:
    assert f"{BEGIN}\n{table()}\n{END}" in PAGE.read_text(encoding="utf-8"), "python docs/kernels_outside.py"
