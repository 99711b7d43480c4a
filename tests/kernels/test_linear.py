"""Linear attention: the sheet's worked examples, its forms against each other, and its properties."""

import copy
import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.closeness import assert_close, random_rows
from kernels.conditions import cut_tiles, padding, rotary
from scipy.stats import spearmanr
from torch import Tensor

from sparsity_lab.kernels import Kernel, Linear, NormAwareLinear, Softmax
from sparsity_lab.kernels import linear as file
from sparsity_lab.kernels.linear import (
    LinearState,
    causal_product,
    causal_product_gradient,
    causal_total,
    causal_total_gradient,
)
from sparsity_lab.settings import SettingError

F64 = torch.float64


def head(rows: list[list[float]]) -> Tensor:
    """(1, 1, T, D) float64."""
    return torch.tensor([[rows]], dtype=F64)


Q = head([[0.3, 0.4], [1.2, -0.5], [-0.6, 0.8], [0.1, 0.02]])
K = head([[0.5, 1.0], [1.0, -0.8], [-0.9, 0.6], [0.7, 0.03]])
V = head([[1.0, 2.0], [-1.0, 0.5], [0.5, -1.5], [2.0, 1.0]])

COSINE_OUT = head(
    [
        [0.999998194180, 1.999996388361],
        [-0.780570534894, 0.664570577330],
        [0.842138051131, 0.894974319513],
        [-0.083633060470, 0.772044511540],
    ]
)
POLARITY_OUT = head(
    [
        [0.999998194180, 1.999996388361],
        [-0.780570549195, 0.664570566605],
        [0.842138051048, 0.894974318669],
        [-0.083622694715, 0.772047580670],
    ]
)
LOSS = head([[1, -1], [0.5, 0.25], [-0.75, 0.5], [0.3, 0.2]])
GRADIENTS = {
    "q": head(
        [
            [5.965346e-6, -3.206453e-6],
            [0.007640004054, 0.015002015046],
            [0.962237434887, 0.793259004835],
            [-0.414204601547, 1.627404553819],
        ]
    ),
    "k": head(
        [
            [1.084740074089, 0.952251620608],
            [-1.041014571946, 0.007125900386],
            [0.526633673996, -0.706095569954],
            [0.642446418986, 6.4546006e-5],
        ]
    ),
    "v": head(
        [
            [0.576787702863, -0.607003670797],
            [0.640635847346, 0.352900176681],
            [-0.234478373766, 0.159401797276],
            [0.067053400805, 0.044702267203],
        ]
    ),
}
PINNED = 2e-12  # the pins end at twelve decimals

forms = pytest.mark.parametrize(
    ("implementation", "chunk"), [("reference", 64), *(("chunked", c) for c in (1, 2, 3, 4, 8))], ids=str
)


# --- the worked example


@pytest.mark.committed
@forms
def test_worked_example(implementation: str, chunk: int) -> None:
    """Outputs, the loss and all gradients, by every form and chunk length."""
    q, k, v = (x.clone().requires_grad_() for x in (Q, K, V))
    out = NormAwareLinear(chunk=chunk).attend(q, k, v, implementation=implementation)
    assert_close("output", out, COSINE_OUT, PINNED)
    loss = (out * LOSS).sum()
    assert loss.item() == pytest.approx(-1.278938211719, abs=PINNED)
    loss.backward()
    for name, x in {"q": q, "k": k, "v": v}.items():
        assert x.grad is not None
        assert_close(f"gradient of {name}", x.grad, GRADIENTS[name], PINNED)
    polarity = NormAwareLinear(map="polarity", chunk=chunk).attend(Q, K, V, implementation=implementation)
    assert_close("polarity", polarity, POLARITY_OUT, PINNED)


def test_worked_example_without_the_denominators_gradient() -> None:
    """What the gradient of the keys would be if the denominator were taken for a constant: far from the pin, so that
    the test above sees it."""
    kernel, k = NormAwareLinear(), K.clone().requires_grad_()
    features = kernel.feature_map
    scores = (features.query(Q) @ features.key(k).mT).tril()
    out = scores @ V / (scores.sum(-1, keepdim=True) + kernel.eps).detach()
    (out * LOSS).sum().backward()
    assert k.grad is not None
    assert (k.grad - GRADIENTS["k"]).abs().max() > 0.1


def test_worked_weights() -> None:
    features = NormAwareLinear().feature_map
    scores = (features.query(Q) @ features.key(K).mT).tril()[0, 0]
    expected = [
        [0.5537641948980],
        [0.09013655373634, 0.7314207879652],
        [0.4297507885986, 1.3448e-11, 0.1982838641576],
        [0.1735058598157, 0.9652412695861, 0.01141620097809, 0.3310734310067],
    ]
    for got, row in zip(scores.tolist(), expected, strict=True):
        assert got[: len(row)] == pytest.approx(row, rel=1e-12, abs=1e-15)
    weights = NormAwareLinear().weights(Q, K)[0, 0]
    totals = torch.tensor([0.553765194898, 0.821558341702, 0.628035652770, 1.481237761387], dtype=F64)
    assert_close("weights", weights, scores / totals[:, None], 1e-11)
    entropies = torch.special.entr(scores / scores.sum(-1, keepdim=True)).sum(-1)
    assert entropies.tolist() == pytest.approx([0, 0.345917506008, 0.623602063045, 0.902644448218], abs=PINNED)


@pytest.mark.parametrize("pieces", [(4,), (1, 3), (1, 1, 1, 1), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_worked_state(pieces: tuple[int, ...], chunk: int) -> None:
    """S_4 and z_4 of the unshifted angle, and the outputs, in one piece, split after token 1, and token by token."""
    kernel = NormAwareLinear(chunk=chunk)
    state = kernel.init_state(1, 1, 2, 4, dtype=F64)
    out = extend_by_pieces(kernel, (Q, K, V), state, pieces)
    assert_close("output", out, COSINE_OUT, PINNED)
    expected = [
        [0.1240972424621, -3.535486628923e-4],
        [0.4214818083577, 1.366153384549],
        [-0.3913836057506, 1.546088972337],
        [1.145540996754, 1.004105635006],
    ]
    turn = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=F64) / math.sqrt(2)  # to cos and sin of θ - π/4
    S = torch.einsum("ab,bdv->adv", turn, state.S[0, 0].unflatten(0, (2, 2))).flatten(0, 1)
    z = (turn @ state.z[0, 0].unflatten(0, (2, 2))).flatten()
    assert_close("S", S, torch.tensor(expected, dtype=F64), PINNED)
    assert z.tolist() == pytest.approx([1.553513600631, 1.221903601329, 0.522551908933, 0.497817179542], abs=PINNED)
    kernel = NormAwareLinear(map="polarity", chunk=chunk)
    state = kernel.init_state(1, 1, 2, 4, dtype=F64)
    assert_close("polarity", extend_by_pieces(kernel, (Q, K, V), state, pieces), POLARITY_OUT, PINNED)
    assert state.z[0, 0].tolist() == pytest.approx([1.468, 1.216027, 0.729, 0.512], abs=PINNED)


def extend_by_pieces(
    kernel: Kernel, qkv: tuple[Tensor, ...], state: LinearState, pieces: tuple[int, ...], **options: Any
) -> Tensor:
    out, start = [], 0
    for count in pieces:
        out.append(kernel.prefill(*(x[:, :, start : start + count] for x in qkv), state=state, **options))
        start += count
    return torch.cat(out, 2)


def test_norm_sweep() -> None:
    """Entropy over the norm of a query: softmax falls always, the cosine map for one direction, and rises for
    another; relu does not see the norm."""
    norms = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0], dtype=F64)
    k = head([[1, 2], [1, 0.2], [1, 0.2], [1, 0.2], [1, 0.2]])
    kernels = {"softmax": Softmax(), "cosine": NormAwareLinear(eps=0.0), "relu": Linear(feature="relu", eps=0.0)}

    def entropies(name: str, direction: list[float]) -> list[float]:
        q = (norms[:, None] * torch.tensor(direction, dtype=F64))[None, None]
        seen = torch.tensor([[True] * 4 + [False]])  # four keys; a fifth, so that there are as many as queries
        weights = kernels[name].weights(q, k, causal=False, key_mask=seen)
        return torch.special.entr(weights).sum(-1).flatten().tolist()

    falling, rising = [0.6, 0.8], [0.8, 0.6]
    assert entropies("softmax", falling) == pytest.approx(
        [1.385289728588, 1.358207337707, 1.263710718741, 0.903285356203, 0.247762562645], abs=PINNED
    )
    assert entropies("cosine", falling) == pytest.approx(
        [0.653578811520, 0.548040931785, 0.468415750045, 0.419158510811, 0.410965265237], abs=PINNED
    )
    assert entropies("relu", falling) == pytest.approx([1.252102915936] * 5, abs=PINNED)
    softmax = entropies("softmax", rising)
    assert (softmax[0], softmax[-1]) == pytest.approx((1.385733803029, 0.510714472990), abs=PINNED)
    assert entropies("cosine", rising) == pytest.approx(
        [1.020230816014, 1.114740620126, 1.181082447205, 1.219328522203, 1.225447762820], abs=PINNED
    )


def larger_example() -> tuple[Tensor, Tensor, Tensor]:
    i, j = torch.arange(37, dtype=F64)[:, None], torch.arange(8, dtype=F64)
    q, k = 0.5 * (0.7 * i + 1.3 * j).sin(), (0.4 * i - 0.9 * j).cos()
    v = (0.11 * i * (1 + j)).sin()
    v[:, 5:] = 0  # the example has five columns of values
    return q[None, None], k[None, None], v[None, None]


@pytest.mark.parametrize(("implementation", "chunk"), [("reference", 64), ("chunked", 8), ("chunked", 64)])
def test_larger_example(implementation: str, chunk: int) -> None:
    kernel, (q, k, v) = NormAwareLinear(chunk=chunk), larger_example()
    out = kernel.attend(q, k, v, implementation=implementation)
    assert out.sum().item() == pytest.approx(50.08534080584, abs=1e-10)
    assert out.square().sum().item() == pytest.approx(34.81070475585, abs=1e-10)
    last = [0.296314915411, 0.174530388357, -0.362892279099, 0.475142689025, 0.087255887592]
    assert out[0, 0, -1, :5].tolist() == pytest.approx(last, abs=PINNED)


def test_larger_example_state_and_entropy() -> None:
    kernel, (q, k, v) = NormAwareLinear(chunk=8), larger_example()
    state = kernel.init_state(1, 1, 8, 37, dtype=F64)
    kernel.prefill(q, k, v, state=state)
    assert state.S.norm().item() == pytest.approx(27.55046630601, abs=1e-10)
    sine, cosine = state.z[0, 0].chunk(2)
    # The sum of z of the unshifted angle: cos(θ - π/4) + sin(θ - π/4) = sqrt(2) sin θ.
    assert math.sqrt(2) * sine.sum().item() == pytest.approx(90.27783225287, abs=1e-10)
    assert cosine.sum() > 0
    weights = replace(kernel, eps=0.0).weights(q, k)[0, 0]
    entropies = torch.special.entr(weights).sum(-1)
    assert entropies[-1].item() == pytest.approx(3.17583342070, abs=1e-11)
    relative = entropies[1:] / torch.arange(2, 38, dtype=F64).log()
    assert relative.mean().item() == pytest.approx(0.869158720385, abs=PINNED)


# --- forms against each other

KERNELS = [
    NormAwareLinear(rotation="numerator"),
    NormAwareLinear(map="polarity", chunk=16),
    NormAwareLinear(map="raw", power=2.0, max_division=True),
    Linear(feature="elu", rotation="numerator", chunk=7),
    Linear(feature="relu"),
]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def rms_close(name: str, got: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    """Relative error in the root mean square."""
    assert got is not None
    assert expected is not None
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    assert error <= tolerance, f"{name}: {float(error):.1e} > {tolerance:.0e}"


@every_kernel
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-3)], ids=str
)
@pytest.mark.parametrize("turned", [False, True], ids=["NoPE", "RoPE"])
def test_forms_agree(
    kernel: Kernel, dtype: torch.dtype, tolerance: float, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """recurrent = chunked = parallel over several blocks with a ragged end, padded rows among them."""
    cut_tiles(monkeypatch, linear_rows=400)
    length = 141
    qkv = random_rows(2, 2, length, 16, dtype=dtype)
    wide = tuple(x.detach().double().requires_grad_() for x in qkv)
    position, wide_position = (rotary(length, 16, d) if turned else None for d in (torch.float32, F64))
    position = wide_position if dtype == F64 else position
    for key_mask in (None, padding(length)):
        got = kernel.attend(*qkv, position=position, key_mask=key_mask, implementation="chunked")
        expected = kernel.attend(*wide, position=wide_position, key_mask=key_mask, implementation="reference")
        rms_close("output", got, expected, tolerance)
        grad = random_rows(2, 2, length, 16, count=1, seed=1, dtype=dtype)[0].detach()
        gradients = torch.autograd.grad(got, qkv, grad)
        for name, x, y in zip("qkv", gradients, torch.autograd.grad(expected, wide, grad.double()), strict=True):
            rms_close(f"gradient of {name}", x, y, 5 * tolerance)
    plain = tuple(x.detach() for x in qkv)
    state = kernel.init_state(2, 2, 16, length, dtype=dtype)
    recurrent = extend_by_pieces(kernel, plain, state, (1,) * length, position=position)
    rms_close("recurrent", recurrent, kernel.attend(*wide, position=wide_position), tolerance)
    state = kernel.init_state(2, 2, 16, length, dtype=dtype)
    split = extend_by_pieces(kernel, plain, state, (1, 70, 70), position=position)
    rms_close("split", split, kernel.attend(*wide, position=wide_position), tolerance)


@every_kernel
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-3), (torch.float16, 8e-4)], ids=str)
def test_half_precision_rounds_rows_only(kernel: Kernel, dtype: torch.dtype, tolerance: float) -> None:
    """Gradients of rows in half the digits are exact but for their own rounding, also where a row's weights are small
    beside the features, as those of relu are in short sequences of few coordinates. Computed from the rounded output
    they are off by up to 15 percent."""
    worst = dict.fromkeys("qkv", 0.0)
    for seed in range(12):
        narrow = random_rows(1, 2, 21, 8, seed=seed, dtype=dtype)
        wide = tuple(x.detach().double().requires_grad_() for x in narrow)
        grad = random_rows(1, 2, 21, 8, count=1, seed=100 + seed, dtype=dtype)[0].detach()
        got = torch.autograd.grad(kernel.attend(*narrow, implementation="chunked"), narrow, grad)
        expected = torch.autograd.grad(kernel.attend(*wide), wide, grad.double())
        for name, x, y in zip("qkv", got, expected, strict=True):
            worst[name] = max(worst[name], float((x.double() - y).norm() / y.norm()))
    assert max(worst.values()) < tolerance, worst


@every_kernel
def test_autocast_changes_nothing(kernel: Kernel) -> None:
    """The chunked form computes in float32 also under autocast: outputs, gradients, and the sums of a state."""
    rows = random_rows(2, 2, 21, 8, dtype=torch.float32)
    plain = kernel.attend(*rows)
    expected = torch.autograd.grad(plain, rows, torch.ones_like(plain))
    with torch.autocast("cpu", torch.bfloat16):
        out = kernel.attend(*rows)
        got = torch.autograd.grad(out, rows, torch.ones_like(out))
        state = kernel.init_state(2, 2, 8, 21)
        prefilled = kernel.prefill(*(x.detach() for x in rows), state=state)
    assert torch.equal(out, plain)
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
    assert state.S.dtype == state.z.dtype == torch.float32
    assert_close("prefilled", prefilled, plain.detach(), 1e-5)


@every_kernel
def test_an_empty_batch(kernel: Kernel) -> None:
    for implementation in kernel.implementations:
        rows = random_rows(0, 2, 70, 8, dtype=torch.float32)
        out = kernel.attend(*rows, implementation=implementation)
        out.sum().backward()
        assert out.shape == (0, 2, 70, 8)
        assert all(x.grad is not None and x.grad.shape == x.shape for x in rows)
    state = kernel.init_state(0, 2, 8, 70)
    assert kernel.prefill(*(x.detach() for x in rows), state=state).shape == (0, 2, 70, 8)
    assert state.length == 70


@every_kernel
def test_both_ways_is_one_sum(kernel: Kernel) -> None:
    """Without ``causal``: outputs and gradients of both forms, and every row that of a last causal row."""
    qkv = random_rows(2, 2, 19, 8)
    key_mask = padding(19)
    out = [kernel.attend(*qkv, causal=False, key_mask=key_mask, implementation=i) for i in kernel.implementations]
    assert_close("chunked", out[1], out[0], 1e-12)
    grad = torch.randn(out[0].shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    for name, x, y in zip("qkv", *(torch.autograd.grad(o, qkv, grad) for o in out), strict=True):
        assert_close(f"gradient of {name}", y, x, 1e-11)
    q, k, v = (x.detach() for x in qkv)
    for t in (0, 7, 18):
        same = q[:, :, t : t + 1].expand_as(q)
        last = kernel.attend(same, k, v, key_mask=key_mask)[:, :, -1]
        assert_close(f"row {t}", out[0][:, :, t], last, 1e-12)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@torch.no_grad()
def test_causal_to_the_bit(kernel: Kernel, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another key, value and query at position t and after leave the rows before t as they are, bit by bit, in every
    form: inside a chunk, over chunks and over blocks. Row t changes."""
    cut_tiles(monkeypatch, linear_rows=12)
    kernel, length = replace(kernel, chunk=3), 14  # blocks of two chunks
    qkv = tuple(x.detach() for x in random_rows(1, 2, length, 8, dtype=dtype))
    other = tuple(x.detach() for x in random_rows(1, 2, length, 8, dtype=dtype, seed=7))
    position = rotary(length, 8, dtype)

    def prefilled(*qkv: Tensor, pieces: tuple[int, ...]) -> Tensor:
        return extend_by_pieces(
            kernel, qkv, kernel.init_state(1, 2, 8, length, dtype=dtype), pieces, position=position
        )

    forms = {
        "reference": partial(kernel.attend, implementation="reference", position=position),
        "chunked": partial(kernel.attend, implementation="chunked", position=position),
        "recurrent": partial(prefilled, pieces=(1,) * length),
        "in pieces": partial(prefilled, pieces=(5, 1, 8)),
    }
    for name, form in forms.items():
        before = form(*qkv)
        for t in range(1, length, 4 if name == "recurrent" else 1):
            changed = form(*(torch.cat([x[:, :, :t], y[:, :, t:]], dim=2) for x, y in zip(qkv, other, strict=True)))
            assert torch.equal(changed[:, :, :t], before[:, :, :t]), f"{name}: a row before {t}"
            assert (changed[:, :, t] != before[:, :, t]).any(), f"{name}: row {t}"


LONG = 4096


def float32_errors(kernel: Kernel, turned: bool) -> list[float]:
    """Of the chunked form against the float64 reference: the largest error of an output over the largest output, in
    the first 128 of ``LONG`` rows, in the middle and in the last."""
    rows = tuple(x.detach() for x in random_rows(1, 2, LONG, 64, dtype=torch.float32))
    q, k, v = (x.double() for x in rows)
    narrow, wide = (rotary(LONG, 64, dtype) if turned else None for dtype in (torch.float32, F64))
    got, errors = kernel.attend(*rows, position=narrow, implementation="chunked").double(), []
    for start in (0, LONG // 2 - 64, LONG - 128):
        tile = slice(start, start + 128)
        expected = kernel.weights(q[:, :, tile], k, query_start=start, position=wide) @ v
        errors.append(float((got[:, :, tile] - expected).abs().max() / expected.abs().max()))
    return errors


@pytest.mark.parametrize("turned", [False, True], ids=["NoPE", "RoPE"])
@pytest.mark.parametrize("kernel", [NormAwareLinear(), NormAwareLinear(map="polarity"), Linear()], ids=str)
def test_float32_of_a_long_sequence(kernel: Kernel, turned: bool) -> None:
    """64 chunks of 64 rows. Features are not negative, so no sum of them cancels: up to the last row it rounds 64
    times from chunk to chunk and 64 times in a chunk, and 128 features are summed in a product. If all 256 rounded to
    one side, that were 256 x 2^-24 = 1.5e-5; if to either side, the root of it, 16 x 2^-24 = 1e-6. Twice that is the
    bound, in early rows as in late ones."""
    assert max(float32_errors(kernel, turned)) <= 2e-6


def test_sums_in_half_the_digits_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound above against sums that are rounded to float16 between blocks: late rows are off by far more."""

    def rounded(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        out, after = causal_product(*arguments)
        return out, after.half().float()

    monkeypatch.setattr(file, "causal_product", rounded)
    first, middle, last = float32_errors(NormAwareLinear(), turned=False)
    assert first <= 2e-6
    assert min(middle, last) > 5e-5


def test_product_and_denominator_with_a_sum_before_and_a_gradient_after() -> None:
    """The pieces of the chunked form by finite differences, sums in and out among them, over chunks of 3."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64, requires_grad=True)

    Q, K, U, S, z = draw(4, 3, 5), draw(4, 3, 5), draw(4, 3, 2), draw(2, 5, 2), draw(2, 5)
    for function, backward, inputs in (
        (causal_product, causal_product_gradient, (Q, K, U, S)),
        (causal_total, causal_total_gradient, (Q, K, z)),
    ):
        out, after = function(*(x.detach() for x in inputs))
        d_out, d_after = torch.randn(out.shape, generator=generator, dtype=F64), torch.randn_like(after)
        got = backward(*(x.detach() for x in inputs), d_out, d_after)
        for i, x in enumerate(inputs):
            for place in itertools.islice(itertools.product(*map(range, x.shape)), 0, None, 7):
                values = []
                for step in (1e-6, -1e-6):
                    moved = [y.detach().clone() for y in inputs]
                    moved[i][place] += step
                    out, after = function(*moved)
                    values.append(float((out * d_out).sum() + (after * d_after).sum()))
                slope = (values[0] - values[1]) / 2e-6
                assert float(got[i][place]) == pytest.approx(slope, rel=1e-6, abs=1e-7), (function, i, place)


# --- properties

POSITIVE = [NormAwareLinear(), NormAwareLinear(map="polarity", max_division=True), Linear(), Linear(feature="relu")]
LENGTH, SIZE = 9, 4
numbers = st.floats(-3, 3, width=32) | st.sampled_from([0.0, 1e-6, -1e-6])
flat = st.lists(numbers, min_size=3 * LENGTH * SIZE, max_size=3 * LENGTH * SIZE)


def drawn(numbers: list[float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(numbers, dtype=F64).view(3, 1, 1, LENGTH, SIZE))


@pytest.mark.parametrize("kernel", POSITIVE, ids=str)
@settings(max_examples=25)
@given(numbers=flat, seed=st.integers(0, 99))
def test_convex_up_to_eps(kernel: Kernel, numbers: list[float], seed: int) -> None:
    """Weights are not negative and sum to less than one, so that a row lies in the hull of zero and its values; past
    pairs in another order leave the last row as it is."""
    q, k, v = drawn(numbers)
    weights = kernel.weights(q, k)
    assert (weights >= -1e-12).all()
    assert (weights.sum(-1) <= 1 + 1e-12).all()
    out = kernel.attend(q, k, v, implementation="chunked")
    zero = torch.zeros_like(v[:, :, :1])
    for t in range(LENGTH):
        hull = torch.cat([zero, v[:, :, : t + 1]], dim=2)
        assert (out[:, :, t] >= hull.amin(2) - 1e-9).all()
        assert (out[:, :, t] <= hull.amax(2) + 1e-9).all()
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(seed))
    shuffled = kernel.attend(q, k[:, :, order], v[:, :, order], implementation="chunked")
    assert_close("last row", shuffled[:, :, -1], out[:, :, -1], 1e-9)


ROTATIONS = st.sampled_from(["input", "numerator"])
ANY_KERNEL = st.one_of(
    st.builds(
        NormAwareLinear,
        map=st.sampled_from(["cosine", "polarity", "raw"]),
        power=st.sampled_from([1.0, 2.5, 3.0]),
        max_division=st.booleans(),
        eps=st.sampled_from([0.0, 1e-6, 0.1]),
        rotation=ROTATIONS,
        chunk=st.integers(1, 12),
    ),
    st.builds(Linear, feature=st.sampled_from(["elu", "relu"]), rotation=ROTATIONS, chunk=st.integers(1, 12)),
)


@settings(max_examples=50)
@given(
    kernel=ANY_KERNEL,
    length=st.integers(1, 40),
    batch_size=st.integers(0, 2),
    turned=st.booleans(),
    padded=st.sampled_from([None, 0.3, 1.0]),
    size=st.sampled_from([0.0, 1e-3, 1.0, 10.0]),
    cuts=st.sets(st.integers(1, 39)),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_all_forms_are_one(
    kernel: Kernel,
    length: int,
    batch_size: int,
    turned: bool,
    padded: float | None,
    size: float,
    cuts: set[int],
    seed: int,
) -> None:
    """Reference, chunked, one token at a time, and in pieces cut anywhere; a copy of a state in the middle, shallow
    or deep, goes its own way and leaves the state to go on as if there were none, for a state's sums are replaced and
    never written into."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, *other = torch.randn(6, batch_size, 2, length, 4, generator=generator, dtype=F64)
    qkv, other = (size * q, size * k, v), tuple(other)
    key_mask = None if padded is None else torch.rand(batch_size, length, generator=generator) >= padded
    position = rotary(length, 4) if turned else None
    expected = kernel.attend(*qkv, key_mask=key_mask, position=position, implementation="reference")
    # Signed weights can nearly cancel in a denominator, which then loses digits.
    tolerance = 1e-11 if getattr(kernel, "map", "") != "raw" else 1e-7
    assert expected.isfinite().all()
    if padded == 1.0:
        assert not expected.any()
    chunked = kernel.attend(*qkv, key_mask=key_mask, position=position, implementation="chunked")
    assert_forms_close("chunked", chunked, expected, tolerance)

    def taken(state: LinearState, rows: tuple[Tensor, ...], start: int, stop: int) -> Tensor:
        mask = None if key_mask is None else key_mask[:, start:stop]
        part = (x[:, :, start:stop] for x in rows)
        return kernel.prefill(*part, state=state, key_mask=mask, position=position)

    for borders in (range(length + 1), sorted({0, *(cut for cut in cuts if cut < length), length})):
        state, out = kernel.init_state(batch_size, 2, 4, length, dtype=F64), []
        for start, stop in itertools.pairwise(borders):
            if stop == length:
                for copied in (copy.copy(state), copy.deepcopy(state)):
                    assert copied.maker == kernel
                    taken(copied, other, start, stop)
                    assert (copied.length, state.length) == (stop, start)
            out.append(taken(state, qkv, start, stop))
        assert_forms_close(f"borders {list(borders)}", torch.cat(out, 2), expected, tolerance)


def assert_forms_close(name: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    if expected.numel():
        assert_close(name, got, expected, tolerance)
    else:
        assert got.shape == expected.shape, name


@pytest.mark.parametrize("map", ["cosine", "polarity"])
@settings(max_examples=25)
@given(numbers=flat, scale=st.floats(0.1, 10), place=st.integers(0, SIZE - 1), seed=st.integers(0, 99))
def test_symmetries(map: str, numbers: list[float], scale: float, place: int, seed: int) -> None:
    """Without eps the size of all keys cancels, and so does a factor of |d|; coordinates may change sign or place."""
    kernel, (q, k, v) = NormAwareLinear(map=map, eps=0.0), drawn(numbers)
    # Rows of nothing over nothing aside.
    k = k + torch.where(k >= 0, 0.5, -0.5)
    q = q + torch.where(q >= 0, 0.5, -0.5)
    out = kernel.attend(q, k, v, implementation="chunked")
    assert_close("scaled keys", kernel.attend(q, scale * k, v, implementation="chunked"), out, 1e-6)
    divided = replace(kernel, max_division=True).attend(q, k, v, implementation="chunked")
    assert_close("divided", divided, out, 1e-6)
    sign = torch.ones(SIZE, dtype=F64)
    sign[place] = -1
    assert_close("signs", kernel.attend(sign * q, sign * k, v, implementation="chunked"), out, 1e-6)
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(seed))
    permuted = kernel.attend(q[..., order], k[..., order], v, implementation="chunked")
    assert_close("places", permuted, out, 1e-6)


def test_the_norm_of_a_query_matters_where_it_should() -> None:
    q, k, v = (x.detach() for x in random_rows(1, 2, 12, 8))
    q = q / q.norm(dim=-1, keepdim=True)
    for kernel, aware in ((NormAwareLinear(eps=0.0), True), (Linear(feature="relu", eps=0.0), False)):
        change = (kernel.attend(2 * q, k, v) - kernel.attend(q, k, v)).abs().max()
        assert (change > 1e-2) == aware, kernel
        assert aware or change < 1e-12


def test_max_division_weakens_eps() -> None:
    """Small keys: eps takes some percent of the output, and far less after the division."""
    q, k, v = (x.detach() for x in random_rows(1, 1, 200, 64))
    exact = NormAwareLinear(eps=0.0).attend(q, 0.1 * k, v)
    plain = (NormAwareLinear().attend(q, 0.1 * k, v) - exact).norm() / exact.norm()
    divided = (NormAwareLinear(max_division=True).attend(q, 0.1 * k, v) - exact).norm() / exact.norm()
    assert plain > 0.01
    assert divided < plain / 50


def test_eps_is_added_to_the_sum() -> None:
    q, k, v = torch.ones(1, 1, 3, 1), torch.ones(1, 1, 3, 1), torch.ones(1, 1, 3, 1)
    # One coordinate, equal signs: every weight is one.
    out = NormAwareLinear(eps=1.0).attend(q, k, v)
    assert out.flatten().tolist() == pytest.approx([1 / 2, 2 / 3, 3 / 4], rel=1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@every_kernel
def test_rows_without_weight_are_zero(kernel: Any, eps: float) -> None:
    """Fully padded, all zero, zero queries: zeros and finite gradients in both forms, also without eps."""
    kernel = replace(kernel, eps=eps)
    for implementation in kernel.implementations:
        for name, scale in {"padded": (1, 1), "queries": (0, 1), "all": (0, 0)}.items():
            q, k, v = (x.detach().float() for x in random_rows(2, 1, 21, 8))
            qkv = tuple(x.requires_grad_() for x in (scale[0] * q, scale[1] * k, scale[1] * v))
            key_mask = torch.ones(2, 21, dtype=torch.bool)
            key_mask[1] = name != "padded"
            out = kernel.attend(*qkv, key_mask=key_mask, implementation=implementation)
            assert out.isfinite().all()
            out.square().sum().backward()
            for x in qkv:
                assert x.grad is not None
                assert x.grad.isfinite().all(), f"{implementation}, {name}"
                assert name != "padded" or not x.grad[1].any()
            if name == "padded":
                assert not out[1].any()


# --- positions


def test_numerator_rotation_by_hand() -> None:
    """Turned features above the line, plain ones below; weights may be negative and times values are the output."""
    kernel, position = NormAwareLinear(rotation="numerator"), rotary(12, 8)
    q, k, v = (x.detach() for x in random_rows(1, 2, 12, 8))
    phi_q, phi_k = kernel.feature_map.query(q), kernel.feature_map.key(k)
    turned_q, turned_k = (
        torch.cat([position.rotate(part) for part in phi.chunk(2, dim=-1)], dim=-1) for phi in (phi_q, phi_k)
    )
    above, below = (turned_q @ turned_k.mT).tril(), (phi_q @ phi_k.mT).tril()
    expected = above / (below.sum(-1, keepdim=True) + 1e-6)
    weights = kernel.weights(q, k, position=position)
    assert_close("weights", weights, expected, 1e-12)
    assert (weights < 0).any()
    assert_close("output", kernel.attend(q, k, v, position=position), expected @ v, 1e-12)


@pytest.mark.parametrize(("rotation", "relative"), [("numerator", True), ("input", False)])
def test_what_a_rotation_depends_on(rotation: str, relative: bool) -> None:
    """The numerator's depends on distances alone; the input's is of positive weights."""
    kernel = NormAwareLinear(rotation=rotation)
    q, k = (x.detach() for x in random_rows(1, 2, 12, 8, count=2))
    here, there = (kernel.weights(q, k, position=rotary(12, 8, offset=offset)) for offset in (0, 5))
    assert torch.allclose(here, there, atol=1e-10) == relative
    assert (here >= 0).all() != relative
    assert not torch.allclose(here, kernel.weights(q, k))


def test_none_refuses_a_rotation() -> None:
    rows = torch.zeros(1, 1, 4, 8)
    for kernel in (NormAwareLinear(rotation="none"), Linear(rotation="none")):
        with pytest.raises(SettingError, match=r"position: expected a kind of position .* supports \(None\)"):
            kernel.attend(rows, rows, rows, position=rotary(4))


# --- memory, names, refusals


def test_memory_is_linear() -> None:
    """What is kept for the backward pass, in numbers for each row: it does not grow with T, and a bound on it."""
    D = 16
    per_row = []
    for length in (4096, 16384):
        rows = random_rows(1, 2, length, D, dtype=torch.float32)
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x):
            NormAwareLinear().attend(*rows)
        assert max(x.numel() for x in kept) == rows[0].numel()
        per_row.append(sum(x.numel() for x in kept) / (2 * length))
    assert per_row[1] <= per_row[0]
    assert per_row[1] < 4 * D  # q, k, v, denominators, and sums of some blocks


def test_a_decoding_state_does_not_grow() -> None:
    kernel = NormAwareLinear()
    states = [kernel.init_state(1, 2, 64, capacity, dtype=torch.bfloat16) for capacity in (10, 131072)]
    assert all(state.capacity is None for state in states)
    rows = [x.detach() for x in random_rows(1, 2, 300, 64, dtype=torch.bfloat16)]
    kernel.prefill(*rows, state=states[0])
    for state in states:
        assert state.S.numel() + state.z.numel() == 2 * 8320  # F D + F numbers a head
        assert state.S.dtype == state.z.dtype == torch.float32
    assert states[0].length == 300


def test_names_what_runs() -> None:
    for kernel in (NormAwareLinear(), Linear()):
        q = torch.zeros(1, 1, 2, 4)
        assert kernel.implementation(q) == kernel.implementation(q.bfloat16()) == "chunked"
        assert kernel.implementation(q.double()) == "reference"


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (NormAwareLinear, {"map": "cosin"}, r"map: expected 'cosine', 'polarity' or 'raw', got 'cosin'"),
        (NormAwareLinear, {"rotation": "output"}, r"rotation: expected 'input', 'numerator' or 'none', got 'output'"),
        (NormAwareLinear, {"chunk": 0}, r"chunk: expected at least 1, got 0"),
        (NormAwareLinear, {"eps": -1e-6}, r"eps: expected at least 0, got -1e-06"),
        (NormAwareLinear, {"power": 0}, r"power: expected more than 0, got 0.0"),
        (NormAwareLinear, {"tau": -0.5}, r"tau: expected more than 0, got -0.5"),
        (NormAwareLinear, {"alpha": 0}, r"alpha: expected more than 0, got 0.0"),
        (NormAwareLinear, {"alpha": math.nan}, r"alpha: expected a finite number, got nan"),
        (Linear, {"feature": "gelu"}, r"feature: expected 'elu' or 'relu', got 'gelu'"),
        (Linear, {"chunk": -1}, r"chunk: expected at least 1, got -1"),
        (Linear, {"eps": -1}, r"eps: expected at least 0, got -1.0"),
        (Linear, {"rotation": "none "}, r"rotation: expected"),
    ],
)
def test_bad_fields(kind: type[Kernel], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        kind(**fields)


def test_refuses_a_state_of_other_rows() -> None:
    kernel = NormAwareLinear()
    rows = [torch.zeros(1, 3, 1, 8)] * 3
    for other in (
        kernel.init_state(4, 3, 8, 10),
        kernel.init_state(1, 3, 8, 10, dtype=F64),
    ):
        with pytest.raises(SettingError, match="state: expected rows of"):
            kernel.decode(*rows, state=other)


# --- the norm and the entropy


def test_entropy_follows_the_norm() -> None:
    """The published table's signs and sizes on 256 Gaussian keys: rank correlation of norm and entropy."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(1, 1, 256, 64, generator=generator, dtype=F64)
    q = torch.randn(1, 1, 256, 64, generator=generator, dtype=F64)
    r = 0.05 + 3.95 * torch.rand(256, generator=generator, dtype=F64)
    q = q / q.norm(dim=-1, keepdim=True) * r[:, None]

    def correlation_and_mean(kernel: Kernel, q: Tensor) -> tuple[float, float]:
        entropy = torch.special.entr(kernel.weights(q, k, causal=False)).sum(-1).flatten()
        return float(spearmanr(r, entropy).statistic), float(entropy.mean())

    for map in ("cosine", "polarity"):
        correlation, mean = correlation_and_mean(NormAwareLinear(map=map, eps=0.0), q)
        assert correlation == pytest.approx(-0.50, abs=0.15), map
        assert mean == pytest.approx(5.10, abs=0.05), map
        # Beyond a norm of 3 the power is at its limit, and nothing is left of it.
        longer = q * (1 + 4 / r[:, None])
        assert abs(correlation_and_mean(NormAwareLinear(map=map, eps=0.0), longer)[0]) < 0.2, map
    assert correlation_and_mean(Softmax(), q)[0] == pytest.approx(-1.0, abs=0.02)
    relu, mean = correlation_and_mean(Linear(feature="relu", eps=0.0), q)
    assert abs(relu) < 0.2
    assert mean == pytest.approx(5.49, abs=0.03)
    elu, mean = correlation_and_mean(Linear(eps=0.0), q)
    assert elu < -0.7
    assert mean == pytest.approx(5.541, abs=0.003)
