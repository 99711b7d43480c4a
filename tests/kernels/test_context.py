"""What every registered kernel does with a context: rows that begin elsewhere, documents, values of another width.

Each form is the reference under the same context, or refuses by name. And gates, of a kernel that declares some.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import KERNELS, make_position, padding
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from sparsity_lab.kernels import CachedKernel, Context, CosineSoftmax, Kernel, Keys, Queries, Reweighted, Weights
from sparsity_lab.settings import SettingError

B, H, D, T = 2, 4, 8, 29

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def params_of(kernel: Kernel) -> nn.Module | None:
    return kernel.build(kernel.own_heads(H, H), D, seed=3)


def forms(kernel: Kernel) -> list[tuple[str, torch.dtype, float]]:
    """Every implementation with a dtype that it runs in, and how far it may be off."""
    first, *others = kernel.implementations
    return [(first, torch.float64, 1e-11), *((name, torch.float32, 2e-5 * kernel.rounding) for name in others)]


def drawn(length: int, dtype: torch.dtype, width: int = D) -> tuple[Tensor, Tensor, Tensor]:
    q, k = random_rows(B, H, length, D, count=2, dtype=dtype)
    (v,) = random_rows(B, H, length, width, count=1, seed=1, dtype=dtype)
    return q, k, v


def compared(
    name: str, got: Tensor, expected: Tensor, rows: tuple[Tensor, ...], tolerance: float, grad: Tensor
) -> None:
    """Outputs, and gradients of q, k and v."""
    assert_close(f"output, {name}", got, expected.detach(), tolerance)
    found = torch.autograd.grad(got, rows, grad, retain_graph=True)
    wanted = torch.autograd.grad(expected, rows, grad, retain_graph=True)
    for letter, x, y in zip("qkv", found, wanted, strict=True):
        assert_close(f"gradient of {letter}, {name}", x, y, 10 * tolerance)


@every_kernel
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(("start", "stop"), [(11, 20), (T - 1, T), (13, 14)])
def test_rows_that_begin_elsewhere_are_those_of_the_whole(
    kernel: Kernel, training: bool, start: int, stop: int
) -> None:
    """Fewer rows than keys, with padding and with every kind of position; in weights too."""
    params = params_of(kernel)
    for implementation, dtype, tolerance in forms(kernel):
        rows, grad = drawn(T, dtype), torch.ones(B, H, stop - start, D, dtype=dtype)
        q, k, v = rows
        for kind in (None, *sorted(kernel.positions)):
            for key_mask in (None, padding(T)):
                options: dict[str, Any] = {
                    "training": training,
                    "key_mask": key_mask,
                    "position": make_position(kind, T, num_heads=H, dtype=dtype),
                    "params": None if params is None else params.to(dtype),
                }
                whole = kernel.attend(*rows, implementation=implementation, **options)[:, :, start:stop]
                some = kernel.attend(
                    q[:, :, start:stop], k, v, query_start=start, implementation=implementation, **options
                )
                name = f"{implementation}, {kind}, masked={key_mask is not None}"
                compared(name, some, whole, rows, tolerance, grad)


Served = TypeVar("Served")


def served(path: str, call: Callable[[], Served]) -> Served | None:
    """What the call gives; None if it is refused, in one line that names the argument."""
    try:
        return call()
    except SettingError as error:
        if error.path != path or "\n" in str(error):
            raise
        return None


@every_kernel
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("width", [3, 12])
def test_values_of_another_width(kernel: Kernel, training: bool, width: int) -> None:
    """Weights times values in every form, in decoding too; or a form refuses them, as does its state, and the
    reference serves them."""
    params = params_of(kernel)
    for implementation, dtype, tolerance in forms(kernel):
        q, k, v = drawn(T, dtype, width)
        options: dict[str, Any] = {"training": training, "params": None if params is None else params.to(dtype)}
        weights = kernel.weights(q, k, **options)
        out = served("v", partial(kernel.attend, q, k, v, implementation=implementation, **options))
        if out is None:
            assert implementation != kernel.implementations[0]
            with pytest.raises(SettingError, match=f"value_dim: expected .*, got {width}"):
                kernel.init_state(B, H, D, T, value_dim=width)
            continue
        compared(implementation, out, weights @ v, (q, k, v), tolerance, torch.ones(B, H, T, width, dtype=dtype))
        if not training and implementation == kernel.implementation(q):
            init = partial(kernel.init_state, B, H, D, T, value_dim=width, dtype=dtype)
            if (state := served("value_dim", init)) is None:
                continue
            parts = [
                kernel.prefill(*(x[:, :, part] for x in (q, k, v)), state=state, params=options["params"])
                for part in (slice(0, 20), slice(20, 21), slice(21, T))
            ]
            assert_close("decoded", torch.cat(parts, dim=2), out.detach(), tolerance)


@every_kernel
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_a_row_sees_its_own_document(kernel: Kernel, training: bool, causal: bool) -> None:
    """A row under document ids is that row under a mask of its document's keys. Or they are refused, in one line that
    names them; so is a row that would see later keys."""
    params, padded = params_of(kernel), padding(T)
    ids = torch.randint(0, 3, (B, T), generator=torch.Generator().manual_seed(2)) * 7 - 7
    ids[1] = ids[1].sort().values  # packed one after another; those of the first sequence lie among each other
    for implementation, dtype, tolerance in forms(kernel):
        rows, grad = drawn(T, dtype), torch.ones(B, H, T, D, dtype=dtype)
        options: dict[str, Any] = {
            "causal": causal,
            "training": training,
            "params": None if params is None else params.to(dtype),
            "implementation": implementation,
        }
        if served("causal", partial(kernel.attend, *rows, **options)) is None:
            assert not causal
            continue
        for key_mask in (None, padded):
            call = partial(kernel.attend, *rows, document_ids=ids, key_mask=key_mask, **options)
            if (got := served("document_ids", call)) is None:
                continue
            expected = torch.zeros(())
            for document in (-7, 0, 7):
                own = ids == document
                mask = own if key_mask is None else own & key_mask
                row = kernel.attend(*rows, key_mask=mask, **options)
                expected = expected + row.masked_fill(~own[:, None, :, None], 0.0)
            compared(f"{implementation}, masked={key_mask is not None}", got, expected, rows, tolerance, grad)
            part = kernel.attend(
                rows[0][:, :, 9:20], *rows[1:], document_ids=ids, key_mask=key_mask, query_start=9, **options
            )
            assert_close("rows that begin elsewhere", part, got[:, :, 9:20].detach(), tolerance)


ROWS = torch.zeros(2, 4, 6, 8)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"q": ROWS[:, :, :2]}, r"query_start: expected the position of the first of 2 queries among 6 keys.*got None"),
    ({"q": ROWS[:, :, :2], "query_start": 5}, r"query_start: expected 0 .. 4 \(2 of 6 rows\), got 5"),
    ({"query_start": 1}, r"query_start: expected 0 .. 0 \(6 of 6 rows\), got 1"),
    ({"query_start": -1}, r"query_start: expected 0 .. 0 .*, got -1"),
    ({"document_ids": torch.zeros(2, 5, dtype=torch.int64)}, r"document_ids: expected shape \(2, 6\), got \(2, 5\)"),
    ({"document_ids": torch.zeros(2, 6)}, r"document_ids: expected int64, got torch.float32"),
    ({"gates": {"forget": torch.zeros(2, 4, 6)}}, r"gates: expected no gates, got 'forget'"),
]


@every_kernel
@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(list(change)) for change, _ in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line(kernel: Kernel, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        kernel.attend(**{**dict.fromkeys("qkv", ROWS), "params": params_of(kernel), **change})
    assert "\n" not in str(caught.value)


WRONG_TYPES = [
    ("q", [[0.0]]),
    ("k", None),
    ("v", np.zeros((2, 4, 6, 8), dtype=np.float32)),
    *(("query_start", wrong) for wrong in (0.0, "0", False, ROWS)),
    *((name, wrong) for name in ("key_mask", "document_ids") for wrong in ([[1] * 6] * 2, np.ones((2, 6)), "all")),
    *(("gates", wrong) for wrong in ([ROWS], ROWS, "forget")),
    ("position", "RoPE()"),
    ("params", {}),
    ("generator", 0),
    ("auxiliary", []),
]


@every_kernel
@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(("name", "wrong"), WRONG_TYPES, ids=[f"{n}-{type(x).__name__}" for n, x in WRONG_TYPES])
def test_other_python_types_are_refused_in_one_line(kernel: Kernel, name: str, wrong: object) -> None:
    calls = {"attend": kernel.attend, "weights": lambda q, k, v, **rest: kernel.weights(q, k, **rest)}
    for method, call in calls.items():
        if method == "weights" and name in ("v", "generator", "auxiliary"):
            continue
        arguments: dict[str, Any] = {**dict.fromkeys("qkv", ROWS), "params": params_of(kernel), name: wrong}
        with pytest.raises(SettingError) as caught:
            call(**arguments)
        assert caught.value.path.removesuffix("_rows") == name
        assert f"of type {type(wrong).__name__}" in str(caught.value)
        assert "\n" not in str(caught.value)


class Forgetting(CachedKernel):
    """Softmax whose scores fall by the log of every forget gate between key and row; not registered."""

    kind = "ForgettingForTests"
    gates = ("forget",)

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        kept = logsigmoid(context.gates["forget"].to(q.dtype)).cumsum(-1)
        start = context.query_start
        decay = kept[:, :, start : start + q.shape[2], None] - kept[:, :, None]
        scores = (q @ k.mT / D**0.5 + decay).masked_fill(~context.visible(q, k), -torch.inf)
        return scores.softmax(-1)


def test_gates_reach_the_kernel_in_every_method() -> None:
    """By hand in attend; rows that begin elsewhere, weights, prefill and decode are the same."""
    kernel, (q, k, v) = Forgetting(), (x.detach() for x in drawn(T, torch.float64))
    (logits,) = (x.detach() for x in random_rows(B, H, T, D, count=1, seed=4))
    forget = logits[..., 0]
    whole = kernel.attend(q, k, v, gates={"forget": forget})
    i, j = 7, 3
    logit = (q[0, 1, i] @ k[0, 1, : i + 1].mT) / D**0.5
    logit = logit + torch.stack([forget[0, 1, n + 1 : i + 1].sigmoid().log().sum() for n in range(i + 1)])
    weights = kernel.weights(q[:, :, i : i + 1], k, query_start=i, gates={"forget": forget})
    assert_close("weight", weights[0, 1, 0, j], logit.softmax(0)[j], 1e-12)
    assert_close("output", whole[0, 1, i], logit.softmax(0) @ v[0, 1, : i + 1], 1e-12)
    some = kernel.attend(q[:, :, 9:], k, v, query_start=9, gates={"forget": forget})
    assert_close("rows", some, whole[:, :, 9:], 1e-12)
    state = kernel.init_state(B, H, D, T, dtype=torch.float64)
    first = [x[:, :, :20] for x in (q, k, v)]
    got = [kernel.prefill(*first, state=state, gates={"forget": forget[:, :, :20]})]
    for t in range(20, T):
        step = [x[:, :, t : t + 1] for x in (q, k, v)]
        got.append(kernel.decode(*step, state=state, gates={"forget": forget[:, :, t : t + 1]}))
    assert_close("decoded", torch.cat(got, 2), whole, 1e-12)


GATES: list[tuple[dict[str, Tensor], str]] = [
    ({}, r"gates: 'forget' is missing; it has a logit for each head and key, shape \(2, 4, 6\)"),
    ({"forgets": torch.zeros(2, 4, 6)}, r"gates: .*declares.*got 'forgets'; did you mean 'forget'\?"),
    ({"forget": [0.0]}, r"gates.forget: expected a tensor, got \[0.0\], of type list"),  # type: ignore[dict-item]
    ({"forget": torch.zeros(2, 4, 6).long()}, "gates.forget: expected logits of a float type, got torch.int64"),
    ({"forget": torch.zeros(2, 4, 5)}, r"gates.forget: expected shape \(2, 4, 6\), got \(2, 4, 5\)"),
]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(("gates", "message"), GATES)
def test_other_gates_are_refused_by_name(gates: dict[str, Tensor], message: str) -> None:
    kernel = Forgetting()
    state = kernel.init_state(2, 4, 8, 6)
    for call in (kernel.attend, kernel.prefill):
        with pytest.raises(SettingError, match=message):
            call(ROWS, ROWS, ROWS, gates=gates, **({} if call == kernel.attend else {"state": state}))
    with pytest.raises(SettingError, match=message):
        kernel.weights(ROWS, ROWS, gates=gates)
    assert state.length == 0
    with pytest.raises(SettingError, match="base: expected a kernel whose queries attend to all earlier keys"):
        Reweighted(base=kernel)


def test_reweighting_prepares_rows_as_its_base_does() -> None:
    """The weights that are sharpened are those of the base: of rows of norm one after ``CosineSoftmax``."""
    q, k = (x.detach() for x in random_rows(B, H, T, D, count=2))
    base = CosineSoftmax()
    sharp = Reweighted(base=base, p=2)
    excess = (torch.arange(1, T + 1)[:, None] * base.weights(q, k) - 1).relu()
    expected = (excess**2 / (excess**2).sum(-1, keepdim=True))[:, :, 3:]
    assert_close("weights", sharp.weights(q, k)[:, :, 3:], expected, 1e-10)
    assert_close("scale", sharp.weights(3 * q, k / 2), sharp.weights(q, k), 1e-10)
