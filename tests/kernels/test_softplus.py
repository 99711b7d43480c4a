"""Softplus attention: the worked example, identities of the formula, the tiled form, its numerics and its memory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kernels.closeness import assert_close, random_rows
from kernels.conditions import cut_tiles, linear_bias, padding
from torch import Tensor

from sparsity_lab.kernels import LSSA, LSSAR, Kernel, Reweighted
from sparsity_lab.kernels.context import Context
from sparsity_lab.kernels.lssar.kernel import power_and_slope, softplus_scores, tiled_rows
from sparsity_lab.settings import SettingError

KERNELS = [LSSA(), LSSAR(p=3), LSSAR(p=15), LSSAR(p=1), LSSAR(p=2), LSSAR(p=2.5)]
IMPLEMENTATIONS = ["reference", "tiled"]


# --- the worked example, float64


def example(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Q[r, t] = sin(1 + 0.7 (8 r + t)), K[r, t] = cos(0.3 (8 r + t)), V[r, t] = 2 r + t for t < 2, else 0."""
    places = torch.arange(8 * length, dtype=torch.float64).view(1, 1, length, 8)
    v = torch.zeros(1, 1, length, 8, dtype=torch.float64)
    v[..., :2] = torch.arange(2.0 * length).view(length, 2)
    return torch.sin(1 + 0.7 * places), torch.cos(0.3 * places), v


def lower(*rows: list[float]) -> Tensor:
    """(1, 1, T, T) of the rows of a lower triangle."""
    whole = torch.zeros(1, 1, len(rows), len(rows), dtype=torch.float64)
    for i, row in enumerate(rows):
        whole[0, 0, i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return whole


def pinned(name: str, got: Tensor, expected: Tensor, tolerance: float = 6e-11) -> None:
    """The sheet's digits: ten after the point."""
    assert got.shape == expected.shape, name
    assert (got - expected).abs().max() <= tolerance, f"{name}: {got}"


LSSA_WEIGHTS = lower(
    [1.0],
    [0.7432147134, 0.2567852866],
    [0.5708880029, 0.1095256623, 0.3195863348],
    [0.2862289830, 0.1049254098, 0.5043011906, 0.1045444166],
)
LSSAR_3_WEIGHTS = lower(
    [1.0],
    [0.9603890980, 0.0396109020],
    [0.8456697563, 0.0059716688, 0.1483585749],
    [0.0028831637, 0.0, 0.9971168363, 0.0],
)
LSSAR_15_WEIGHTS = lower(
    [1.0],
    [0.99999988065, 1.1935414416e-07],
    [0.99983385505, 1.7555063804e-11, 1.6614493534e-04],
    [2.021232398e-13, 0.0, 1.0, 0.0],
)


@pytest.mark.committed
def test_example_scores_and_statistics() -> None:
    q, k, _ = example(4)
    counts = torch.arange(1.0, 5.0, dtype=torch.float64).view(1, 1, 4, 1)
    s = softplus_scores(q, k, counts).tril()
    expected = lower(
        [0.0],
        [1.1128473946, -0.4774024924],
        [1.3748911792, -1.0233899727, 0.3711975687],
        [0.2986650125, -1.0013184236, 1.2525617169, -1.0055537394],
    )
    pinned("s", s, expected)
    f = torch.log1p(s.exp()).tril()
    sums = f.sum(-1).flatten()
    logs = torch.tensor([-0.3665129206, 0.6310899607, 1.0307694599, 1.0926572010], dtype=torch.float64)
    pinned("LSE", sums.log(), logs)
    means = torch.tensor([0.6931471806, 0.9398291084, 0.9344073240, 0.7455469565], dtype=torch.float64)
    pinned("μ", sums / counts.flatten(), means)


@pytest.mark.committed
@pytest.mark.parametrize(
    ("kernel", "weights"),
    [(LSSA(), LSSA_WEIGHTS), (LSSAR(p=3), LSSAR_3_WEIGHTS), (LSSAR(p=15), LSSAR_15_WEIGHTS)],
    ids=str,
)
def test_example_weights(kernel: Kernel, weights: Tensor) -> None:
    q, k, _ = example(4)
    got = kernel.weights(q, k)
    pinned("weights", got, weights)
    # Small weights are right to their own digits, and clipped ones are zero.
    shown = weights > 0
    assert torch.equal(got > 0, shown)
    assert_close("small weights", got[shown].log(), weights[shown].log(), 5e-7)


@pytest.mark.committed
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_example_outputs(implementation: str) -> None:
    first_column = {
        LSSA(): [0.0, 0.5135705733, 1.4973966639, 2.8543220815],
        LSSAR(p=3): [0.0, 0.0792218041, 0.6053776372, 3.9884673452],
    }
    for kernel, column in first_column.items():
        out = kernel.attend(*example(4), implementation=implementation)[0, 0, :, :2]
        expected = torch.tensor(column, dtype=torch.float64)
        pinned(str(kernel), out, torch.stack([expected, expected + 1], dim=1), 2e-10)


@pytest.mark.committed
def test_example_rows_5_and_6() -> None:
    q, k, _ = example(6)
    got = LSSAR(p=3).weights(q, k)[0, 0]
    expected = lower(
        [0.0],
        [0.0],
        [0.0],
        [0.0],
        [0, 0, 0.3334794930, 0, 0.6665205070],
        [0, 0.0002099879, 0.0080680040, 0, 0.9917220081, 0],
    )[0, 0]
    pinned("rows 5 and 6", got[4:], expected[4:])


@pytest.mark.parametrize(
    ("head_dim", "scales"),
    [
        (64, [0, 2.883, 4.569, 5.765, 11.531, 23.062, 28.827, 34.593, 37.475, 40.358]),
        (128, [0, 3.363, 5.331, 6.726, 13.453, 26.905, 33.632, 40.358, 43.721, 47.084]),
    ],
)
def test_scale(head_dim: int, scales: list[float]) -> None:
    """log(D) log(n), the score of a key that points where the query does."""
    counts = torch.tensor([1, 2, 3, 4, 16, 256, 1024, 4096, 8192, 16384], dtype=torch.float64).view(1, 1, -1, 1)
    (q,) = random_rows(1, 1, 10, head_dim, count=1)
    got = softplus_scores(q, 3 * q, counts)[0, 0].diagonal()
    assert (got - torch.tensor(scales, dtype=torch.float64)).abs().max() <= 5.1e-4


# --- identities


def mean_form(a: Tensor, p: float) -> Tensor:
    """5a: w from relu(f - o μ), by plain loops; any multiple of a is an f."""
    f = a * 7.3
    w = torch.zeros_like(f)
    for i in range(f.shape[-2]):
        n = i + 1
        row = f[0, 0, i, :n]
        x = torch.relu(row - (row.mean() if n > 3 else 0.0)) ** p
        w[0, 0, i, :n] = x / x.sum()
    return w


def softmax_form(a: Tensor, p: float) -> Tensor:
    """5b: softmax of p (t + log(1 - exp(-t))) with t = log(n a), or of p t where o = 0."""
    w = torch.zeros_like(a)
    for i in range(a.shape[-2]):
        n = i + 1
        t = (n * a[0, 0, i, :n]).log()
        z = p * t
        if n > 3:
            z = torch.where(t > 0, p * (t + torch.log(-torch.expm1(-t.clamp_min(1e-300)))), -math.inf)
        w[0, 0, i, :n] = z.softmax(-1)
    return w


@pytest.mark.parametrize("p", [3.0, 15.0])
def test_three_forms_agree(p: float) -> None:
    q, k = random_rows(1, 1, 40, 16, count=2)
    a, w = LSSA().weights(q, k), LSSAR(p=p).weights(q, k)
    n = torch.arange(1.0, 41.0, dtype=torch.float64)[:, None]
    literal = torch.relu(n * a - (n > 3).double()) ** p
    literal = literal / literal.sum(-1, keepdim=True)
    for name, other in (("literal", literal), ("5a", mean_form(a, p)), ("5b", softmax_form(a, p))):
        assert_close(name, w, other, 1e-12)
    # LSSA is the softmax of log f.
    counts = n[None, None]
    log_f = torch.log1p(softplus_scores(q, k, counts).exp()).log()
    hidden = torch.ones(40, 40, dtype=torch.bool).triu(1)
    assert_close("LSSA", a, log_f.masked_fill(hidden, -math.inf).softmax(-1), 1e-13)


@hypothesis_settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    T=st.integers(1, 14),
    D=st.integers(2, 9),
    p=st.sampled_from([1.0, 1.5, 2.0, 3.0, 15.0]),
)
def test_properties(seed: int, T: int, D: int, p: float) -> None:
    q, k = (x.detach() for x in random_rows(1, 2, T, D, count=2, seed=seed))
    a, w = LSSA().weights(q, k), LSSAR(p=p).weights(q, k)
    n = torch.arange(1.0, T + 1, dtype=torch.float64)[:, None]
    for name, weights in (("LSSA", a), ("LSSAR", w)):
        assert_close(f"{name}: sums", weights.sum(-1), torch.ones(1, 2, T).double(), 1e-12)
        assert torch.equal(weights[0, :, 0, 0], torch.ones(2).double()), f"{name}: row 1"
    # Survivors of rows with a threshold have more than the uniform weight. A margin leaves ties to rounding.
    clear = (n * a - 1).abs() > 1e-9
    rows = (n > 3).expand_as(a)
    above = (n * a - 1).clamp_min(0.0)
    # x^p of a key just above the threshold may be too small for a float.
    share = (above / above.amax(-1, keepdim=True).clamp_min(1e-300)) ** p
    assert (w > 0)[rows & clear & (share > 1e-30)].all()
    assert not w[(n * a < 1) & rows & clear].any()
    # Norms do not count.
    generator = torch.Generator().manual_seed(seed)
    factors = torch.exp(4 * torch.randn(2, 1, 2, T, 1, generator=generator, dtype=torch.float64))
    assert_close("scaled rows", LSSAR(p=p).weights(factors[0] * q, factors[1] * k), w, 1e-11)
    # The last row sees all keys: in another order they have the same weights.
    order = torch.randperm(T, generator=generator)
    last = LSSAR(p=p).weights(q[:, :, -1:], k[:, :, order], query_start=T - 1)
    assert_close("permuted keys", last, w[:, :, -1:, order], 1e-11)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_keys_are_weighted_equally(implementation: str, dtype: torch.dtype) -> None:
    """Where the formula says 0 / 0, the row keeps the weights of LSSA, and its gradients."""
    T = 150  # two tiles
    q, v = random_rows(1, 2, T, 8, count=2, dtype=dtype)
    k = random_rows(1, 2, 1, 8, count=1, seed=1, dtype=dtype)[0].detach().expand(1, 2, T, 8).clone()
    k[:, 1, 100:] = -k[:, 1, 100:]  # rows of the second head differ from there on
    k.requires_grad_()
    out = LSSAR().attend(q, k, v, implementation=implementation)
    means = v.detach().cumsum(2) / torch.arange(1, T + 1)[:, None]
    assert_close("means", out[:, 0], means[:, 0], 1e-5)
    assert_close("means", out[:, 1, :100], means[:, 1, :100], 1e-5)
    assert (out - means)[:, 1, 101:].abs().max() > 1e-3
    grad = torch.randn(1, 2, T, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    grad[:, :, :3] = 0.0  # rows of so few keys have the power, and no threshold
    # Of the first head alone: there the gradients are those of LSSA.
    got = torch.autograd.grad(out[:, 0], (q, k, v), grad[:, 0])
    expected = torch.autograd.grad(LSSA().attend(q, k, v, implementation="reference")[:, 0], (q, k, v), grad[:, 0])
    for name, x, y in zip("qkv", got, expected, strict=True):
        # That of q is zero but for rounding: in all, it is the size of grad that counts.
        error = (x - y).abs().max() / grad.abs().max()
        assert error <= (1e-5 if dtype == torch.float32 else 1e-13), f"gradient of {name}: {error}"


# --- the tiled form


def both_passes(kernel: Kernel, rows: tuple[Tensor, ...], grad: Tensor, **options: object) -> list[Tensor]:
    out = kernel.attend(*rows, **options)
    return [out, *torch.autograd.grad(out, rows, grad)]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_tiles_are_the_reference(kernel: Kernel, causal: bool, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles of rows, keys and heads that do not divide them: outputs and all gradients in float64."""
    cut_tiles(monkeypatch, softplus_rows=8, softplus_keys=5, power_rows=8, power_keys=5, heads_entries=8 * 21 * 4)
    T = 21
    rows = random_rows(2, 3, T, 8)
    grad = random_rows(2, 3, T, 8, count=1, seed=1)[0].detach()
    options = {"causal": causal, "key_mask": padding(T) if masked else None}
    got = both_passes(kernel, rows, grad, implementation="tiled", **options)
    expected = both_passes(kernel, rows, grad, implementation="reference", **options)
    for name, x, y in zip(("output", "dq", "dk", "dv"), got, expected, strict=True):
        assert_close(name, x, y, 1e-11)


@pytest.mark.parametrize("kernel", [LSSA(), LSSAR(p=3), LSSAR(p=15)], ids=str)
def test_long_prompts_in_pieces(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that start in the middle, over several tiles."""
    cut_tiles(monkeypatch, softplus_rows=8, softplus_keys=6, power_rows=8)
    T = 50
    qkv = tuple(x.detach() for x in random_rows(2, 2, T, 8, dtype=torch.float32))
    whole = kernel.attend(*(x.double() for x in qkv), training=False)
    state = kernel.init_state(2, 2, 8, T)
    pieces = [kernel.prefill(*(x[:, :, a:b] for x in qkv), state=state) for a, b in ((0, 11), (11, 40), (40, T))]
    assert_close("pieces", torch.cat(pieces, 2), whole, 1e-4)


def test_gradcheck_over_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The closed-form backward pass by finite differences, all of them, with masked keys and rows before others."""
    cut_tiles(monkeypatch, softplus_rows=3, power_rows=3)
    rows = random_rows(1, 1, 7, 2)
    key_mask = torch.tensor([[True, True, False, True, True, True, True]])
    for kernel in (LSSA(), LSSAR(p=3), LSSAR(p=15)):

        def attend(*qkv: Tensor, kernel: Kernel = kernel) -> Tensor:
            return kernel.attend(*qkv, key_mask=key_mask, implementation="tiled")

        assert torch.autograd.gradcheck(attend, rows), str(kernel)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_clipped_keys_get_a_gradient(implementation: str) -> None:
    """A key without weight still moves the mean, and so the others' weights: by finite differences. With a detached
    mean its gradient would be zero."""
    q, k, v = random_rows(1, 1, 9, 8)
    kernel = LSSAR(p=3)
    clipped = kernel.weights(q, k)[0, 0, -1] == 0
    assert 2 <= clipped.sum() <= 7

    def last_row(k: Tensor) -> Tensor:
        return kernel.attend(q, k, v, implementation=implementation)[0, 0, -1].sum()

    (grad,) = torch.autograd.grad(last_row(k), k)
    step = 1e-6 * torch.randn(9, 8, generator=torch.Generator().manual_seed(0)).double() * clipped[:, None]
    slope = (last_row(k.detach() + step) - last_row(k.detach() - step)) / 2
    assert abs(slope) > 1e-8
    assert_close("slope", (grad[0, 0] * step).sum(), slope.detach(), 1e-6)


def test_float32_error() -> None:
    """Outputs up to T = 1024 stay within what holds up to 4096."""
    qkv = tuple(x.detach() for x in random_rows(1, 2, 1024, 64, dtype=torch.float32))
    wide = tuple(x.double() for x in qkv)
    for kernel, tolerance in ((LSSA(), 1e-6), (LSSAR(p=3), 1e-5), (LSSAR(p=15), 5e-5)):
        expected = kernel.attend(*wide)
        for implementation in IMPLEMENTATIONS:
            got = kernel.attend(*qkv, implementation=implementation)
            error = (got - expected).abs().max()
            assert error <= tolerance, f"{kernel}, {implementation}: {error}"


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7, 8, 15, 16, 31, 64, 65, 66, 100, 1.5, 2.5])
def test_powers(p: float) -> None:
    r = torch.cat([torch.zeros(1), torch.rand(40, generator=torch.Generator().manual_seed(0))]).double()
    y, slope = power_and_slope(r.clone(), float(p), (torch.empty_like(r), torch.empty_like(r)))
    assert_close("power", y.log()[1:], p * r.log()[1:], 1e-14)
    assert_close("slope", slope[1:], r[1:] ** (p - 1), 1e-13)
    assert y[0] == slope[0] == 0
    assert y.data_ptr() != slope.data_ptr()


@pytest.mark.parametrize("largest", [60.0, 86.0, 200.0])
def test_scores_beyond_exp(largest: float) -> None:
    """softplus where exp(s) leaves float32, in value and slope."""
    rows = random_rows(1, 2, 12, 4, dtype=torch.float32)
    if largest > 100:  # below -100 softplus leaves float32 too
        rows = tuple(x.detach().abs().requires_grad_() for x in rows)
    wide = tuple(x.detach().double().requires_grad_() for x in rows)
    outs = []
    for q, k, v in (rows, wide):
        s = q @ k.mT
        scaled = q * (largest / s.detach().abs().max())
        context = Context(implementation="tiled")
        outs.append(tiled_rows(scaled, k, v, context, phi="softplus", p=3.0, bound=largest))
        outs[-1].sum().backward()
    assert_close("output", outs[0], outs[1], 1e-4)
    for x, y in zip(rows, wide, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        assert_close("gradient", x.grad, y.grad, 1e-3)
    f = torch.nn.functional.softplus(s * largest / s.detach().abs().max(), threshold=600).tril()
    x = torch.relu(f - torch.arange(12)[:, None].ge(3) * f.sum(-1, keepdim=True) / torch.arange(1, 13)[:, None])
    x = (x / x.amax(-1, keepdim=True)) ** 3
    assert_close("formula", outs[1], x / x.sum(-1, keepdim=True) @ wide[2], 1e-12)


def test_norms_of_any_size() -> None:
    """Rows whose squares under- or overflow have the output and, times their size, the gradient of others."""
    rows = random_rows(1, 1, 10, 8, dtype=torch.float32)
    grad = torch.ones(1, 1, 10, 8)
    plain = both_passes(LSSAR(p=3), rows, grad)
    q, k, v = rows
    for factor in (2.0**-90, 2.0**90):
        moved = tuple((x.detach() * f).requires_grad_() for x, f in ((q, factor), (k, 1 / factor), (v, 1.0)))
        out, dq, dk, dv = both_passes(LSSAR(p=3), moved, grad)
        for name, x, y in zip(("output", "dq", "dk", "dv"), (out, dq * factor, dk / factor, dv), plain, strict=True):
            assert_close(name, x, y, 2e-5)


def test_subnormal_rows_have_no_nan() -> None:
    """Their gradient may be beyond float32; along a row it is zero."""
    rows = random_rows(1, 1, 6, 8, dtype=torch.float32)
    q = torch.zeros(1, 1, 6, 8)
    q[..., 0] = 1e-40
    rows = (q.requires_grad_(), *rows[1:])
    for implementation in IMPLEMENTATIONS:
        out, dq, dk, dv = both_passes(LSSAR(p=3), rows, torch.ones(1, 1, 6, 8), implementation=implementation)
        for name, x in (("output", out), ("dk", dk), ("dv", dv), ("dq along q", dq[..., 0])):
            assert x.isfinite().all(), f"{implementation}: {name}"
        assert not dq.isnan().any(), implementation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_decoding_in_16_bits_is_as_exact_as_attend(dtype: torch.dtype) -> None:
    """A cache of rounded unit keys is ten times worse under a power of 15."""
    T, D = 200, 64
    rows = tuple(x.detach().to(dtype) for x in random_rows(1, 2, T, D, dtype=torch.float32))
    kernel = LSSAR()
    exact = kernel.attend(*(x.double() for x in rows), training=False)
    state = kernel.init_state(1, 2, D, T, dtype=dtype)
    first = kernel.prefill(*(x[:, :, : T - 1] for x in rows), state=state)
    last = kernel.decode(*(x[:, :, T - 1 :] for x in rows), state=state)
    assert_close("output", torch.cat([first, last], dim=2).double(), exact, torch.finfo(dtype).eps)


@pytest.mark.parametrize("kernel", [LSSA(), LSSAR(), Reweighted()], ids=str)
def test_a_batch_may_be_empty(kernel: Kernel) -> None:
    rows = random_rows(0, 2, 5, 8, dtype=torch.float32)
    empty = torch.zeros(0, 2, 5, 8)
    for key_mask in (None, torch.ones(0, 5, dtype=torch.bool)):
        for result in both_passes(kernel, rows, empty, implementation="tiled", key_mask=key_mask):
            assert torch.equal(result, empty)


@pytest.mark.parametrize("kernel", [LSSA(), LSSAR()], ids=str)
def test_memory_is_linear(kernel: Kernel) -> None:
    """What is kept for the backward pass has a few numbers for each coordinate of the input, whatever T is."""
    kept = {}
    for T in (512, 2048):
        rows = random_rows(1, 2, T, 8, dtype=torch.float32)
        sizes: dict[int, int] = {}

        def keep(x: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            kernel.attend(*rows)
        kept[T] = sum(sizes.values())
        assert kept[T] <= 10 * 2 * T * 8
    assert kept[2048] <= 4.5 * kept[512]


# --- settings


def test_training_and_use() -> None:
    """test_p is p in use, and without it p is; p None trains as LSSA."""
    qkv = tuple(x.detach() for x in random_rows(1, 1, 20, 8))

    def out(kernel: Kernel, training: bool) -> Tensor:
        return kernel.attend(*qkv, training=training)

    assert torch.equal(out(LSSAR(p=3), True), out(LSSAR(p=3), False))
    assert torch.equal(out(LSSAR(p=3, test_p=15), True), out(LSSAR(p=3), True))
    assert torch.equal(out(LSSAR(p=3, test_p=15), False), out(LSSAR(p=15), False))
    assert torch.equal(out(LSSAR(p=None, test_p=15), True), out(LSSA(), True))
    assert torch.equal(out(LSSAR(p=None, test_p=15), False), out(LSSAR(p=15), True))
    assert not torch.equal(out(LSSAR(p=3), True), out(LSSAR(p=15), True))


def test_names_what_runs() -> None:
    q = torch.zeros(1, 1, 2, 4)
    assert LSSAR().implementation(q) == LSSAR().implementation(q.bfloat16()) == "tiled"
    assert LSSAR().implementation(q.double()) == "reference"


def test_refusals() -> None:
    with pytest.raises(SettingError, match=r"^p: expected a number of at least 1, got 0.5"):
        LSSAR(p=0.5)
    with pytest.raises(SettingError, match=r"^test_p: expected a number of at least 1, got 0"):
        LSSAR(test_p=0)
    with pytest.raises(SettingError, match="position: expected a kind of position that LSSA supports"):
        LSSA().attend(*[torch.zeros(1, 3, 4, 8)] * 3, position=linear_bias(4))
