"""The forms of adaptive sparse attention against its reference, its losses, its memory, and decoding."""

import copy
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import padding, rotary
from kernels.trained import trained
from torch import Tensor

from sparsity_lab.kernels import AdaptiveSparse, AuxiliaryOutputs, Softmax
from sparsity_lab.kernels.adaptive import fast
from sparsity_lab.kernels.adaptive.kernel import MASKED_LENGTH

FAST = AdaptiveSparse.implementations[1:]
KERNELS = [
    AdaptiveSparse(block_size=8, k_free=3),
    AdaptiveSparse(block_size=7, n_sink=0, n_local=1, mode="topp", p=0.5, k_slack=1, beta=(0.5, 0.5)),
    AdaptiveSparse(block_size=8, k_free=1, rho_min=0.6, k_esc=3),
    AdaptiveSparse(block_size=8, k_free=2, k_slack=1, rho_min=0.4, rank=3, straight_through=True),
]


def rows(length: int, num_kv_heads: int, dtype: torch.dtype = torch.float32, batch_size: int = 2) -> list[Tensor]:
    q = random_rows(batch_size, 4, length, 8, count=1, dtype=dtype)[0]
    return [q, *random_rows(batch_size, num_kv_heads, length, 8, count=2, seed=1, dtype=dtype)]


@pytest.mark.parametrize("small", [False, True], ids=["whole", "in-parts"])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_forms_agree(kernel: AdaptiveSparse, num_kv_heads: int, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients, in one part and in many: chunks of selection, slabs of rows, chunks of pairs, tiles."""
    if small:
        monkeypatch.setattr(fast, "CHUNK_IMPORTANCES", 3000)
        monkeypatch.setattr(fast, "SLAB_ROWS", 64)
        monkeypatch.setattr(fast, "CHUNK_SCORES", 500)
    length = 150
    wide = [x.detach().double().requires_grad_() for x in rows(length, num_kv_heads)]
    params = trained(kernel, num_kv_heads, 8)
    wide_params = copy.deepcopy(params).double()
    options = {"key_mask": padding(length) if small else None}
    grad = random_rows(2, 4, length, 8, count=1, seed=9)[0].detach()
    expected = kernel.attend(*wide, implementation="reference", params=wide_params, **options)
    expected.backward(grad)
    for implementation in FAST:
        qkv = rows(length, num_kv_heads)
        params.zero_grad()
        got = kernel.attend(*qkv, implementation=implementation, params=params, **options)
        got.backward(grad.float())
        assert_close(f"{implementation}: output", got, expected, 1e-5)
        pairs = dict(zip("qkv", zip(qkv, wide, strict=True), strict=True))
        if kernel.straight_through:
            pairs |= {name: (x, wide_params.get_parameter(name)) for name, x in params.named_parameters()}
        for name, (x, y) in pairs.items():
            assert x.grad is not None
            assert y.grad is not None
            assert_close(f"{implementation}: gradient of {name}", x.grad, y.grad, 1e-5)


@pytest.mark.parametrize("implementation", AdaptiveSparse.implementations)
def test_every_block_is_dense_attention(implementation: str) -> None:
    q, k, v = (x.detach() for x in rows(75, 2))
    kernel = AdaptiveSparse(block_size=8, k_free=99)
    dense = Softmax().attend(q, k, v)
    for same in (kernel, kernel.replace(k_free=0, dense_len=75), kernel.replace(mode="topp", p=1.0)):
        assert_close(str(same), same.attend(q, k, v, implementation=implementation), dense, 1e-5)
    few = kernel.replace(k_free=1).attend(q, k, v, implementation=implementation)
    assert float((few - dense).abs().max()) > 0.1


@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_losses_part_the_gradients(num_kv_heads: int) -> None:
    """The selector's loss reaches β and nothing else, the output never β."""
    kernel = KERNELS[0]
    for pooling in ("sum", "max"):
        for over in ("all", "selected"):
            for implementation in kernel.implementations:
                qkv, params = rows(50, num_kv_heads), kernel.build(num_kv_heads, 8, 0)
                assert params is not None
                auxiliary = AuxiliaryOutputs()
                each = kernel.replace(kl_pooling=pooling, kl=over)
                out = each.attend(*qkv, params=params, auxiliary=auxiliary, implementation=implementation)
                found = torch.autograd.grad(auxiliary.losses[0], [*qkv, params.beta], allow_unused=True)
                assert found[:3] == (None, None, None)
                assert (found[3] != 0).all()
                assert found[3].isfinite().all()
                found = torch.autograd.grad(out.sum(), [*qkv, params.beta], allow_unused=True)
                assert all(x is not None for x in found[:3])
                assert found[3] is None


def test_loss_when() -> None:
    """Only in training, with parameters, with a weight, and with a complete block before some row."""
    kernel, qkv = KERNELS[0], [x.detach() for x in rows(20, 4)]
    params = kernel.build(4, 8, 0)

    def losses(kernel: AdaptiveSparse = kernel, qkv: list[Tensor] = qkv, **options: Any) -> int:
        auxiliary = AuxiliaryOutputs()
        kernel.attend(*qkv, **{"params": params, "auxiliary": auxiliary} | options)
        return len(auxiliary.losses)

    assert losses() == 1
    assert losses(training=False) == losses(params=None) == losses(kernel.replace(lambda_sel=0.0)) == 0
    assert losses(qkv=[x[:, :, :8] for x in qkv]) == 0
    assert losses(qkv=[x[:, :, :9] for x in qkv]) == 1
    assert kernel.replace(learn_beta=False).build(4, 8, 0) is None


def test_loss_by_the_formula() -> None:
    """Mean over sampled rows and heads of Σ a (log a - log π), of the target with either pooling, from the dense
    weights; it falls when β follows its gradient."""
    q, k, v = (x.detach() for x in rows(40, 2, torch.float64))
    kernel = AdaptiveSparse(block_size=8, n_local=1, k_free=1, sampled_rows=99)
    params = kernel.build(2, 8, 0)
    assert params is not None
    params.double()
    dense = Softmax().weights(q, k.repeat_interleave(2, 1)).view(2, 2, 2, 40, 5, 8)
    found = kernel.audit(q, k, rows=torch.arange(40).expand(2, -1))
    past = torch.arange(5) < (torch.arange(40) // 8)[:, None]
    for pooling in ("sum", "max"):
        for over in ("all", "selected"):
            domain = (past & (found.codes > 0) if over == "selected" else past.expand_as(found.codes))[:, :, 8:]
            if pooling == "sum":
                mass = dense.sum(-1)[..., 8:, :] * domain[:, :, None]
                target = (mass / mass.sum(-1, keepdim=True)).mean(2)
            else:
                peak = dense.amax(-1).amax(2)[..., 8:, :] * domain
                target = peak / peak.sum(-1, keepdim=True)
            share = found.probability[:, :, 8:] * domain
            share = share / share.sum(-1, keepdim=True)
            ratio = (target / share).masked_fill(~domain, 1.0)
            expected = torch.xlogy(target, ratio).sum(-1).mean()
            auxiliary = AuxiliaryOutputs()
            kernel.replace(kl_pooling=pooling, kl=over).attend(q, k, v, params=params, auxiliary=auxiliary)
            assert_close(f"{pooling}, {over}", auxiliary.losses[0].detach(), expected, 1e-9)
            (slope,) = torch.autograd.grad(auxiliary.losses[0], params.beta)
            with torch.no_grad():
                params.beta -= 1e-3 * slope
            after = AuxiliaryOutputs()
            kernel.replace(kl_pooling=pooling, kl=over).attend(q, k, v, params=params, auxiliary=after)
            assert float(after.losses[0].detach()) < float(auxiliary.losses[0].detach())
            with torch.no_grad():
                params.beta += 1e-3 * slope


def test_sampled_rows() -> None:
    """As many as asked for, after the first block; drawn with a generator, the same for the same one, else spread."""
    kernel, qkv = KERNELS[0].replace(sampled_rows=6), [x.detach() for x in rows(50, 4)]

    def sampled(**options: Any) -> Tensor:
        auxiliary = AuxiliaryOutputs()
        kernel.attend(*qkv, auxiliary=auxiliary, **options)
        assert len(auxiliary.records) == 1
        return auxiliary.records[0]["rows"]

    assert sampled().tolist() == [[14, 21, 28, 35, 42, 49]] * 2
    first, again = (sampled(generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, sampled(generator=torch.Generator().manual_seed(2)))
    assert (first >= 8).all()
    assert all(len(set(row)) == 6 for row in first.tolist())
    unused = torch.Generator().manual_seed(1)
    assert torch.equal(sampled(generator=unused, training=False), sampled())


@pytest.mark.parametrize("traced", [False, True])
def test_memory_is_linear(traced: bool) -> None:
    """Twice the length, twice what is kept for the backward pass; no tensor of T x n entries among it."""

    def kept(length: int) -> tuple[int, int]:
        sizes: list[int] = []
        kernel = AdaptiveSparse(block_size=16, k_free=2, sampled_rows=4)
        qkv = random_rows(1, 1, length, 8, dtype=torch.float32)
        params = kernel.build(1, 8, 0)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            kernel.attend(
                *qkv, params=params, auxiliary=AuxiliaryOutputs() if traced else None, implementation="gather"
            )
        return sum(sizes), max(sizes)

    (short, _), (long, largest) = kept(1024), kept(2048)
    assert long <= 2.1 * short
    assert largest <= 2048 * 8


def test_no_row_of_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathering computes scores of kept pairs and own blocks only, and holds a bounded number at a time."""
    sizes = product_sizes(monkeypatch)
    length, size, budget = 2048, 16, 5
    q, k, v = (x.detach() for x in random_rows(1, 1, length, size, dtype=torch.float32))
    AdaptiveSparse(block_size=size, k_free=2, n_sink=1, n_local=2).attend(q, k, v, implementation="gather")
    # Head size and block size are the same: a score and a coordinate of a partial result count alike. Of each block
    # at most one tile is filled up.
    assert sum(sizes) <= 2 * size * (budget * length + length // size * fast.TILE_PAIRS)
    assert max(sizes) <= fast.CHUNK_SCORES


def test_blocks_longer_than_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are in one block that is not full: dense attention, and no more scores than tiles of rows have."""
    sizes = product_sizes(monkeypatch)
    q, k, v = (x.detach() for x in rows(70, 2))
    for kernel in (AdaptiveSparse(block_size=70), AdaptiveSparse(block_size=71), AdaptiveSparse(block_size=5000)):
        for implementation in kernel.implementations:
            out = kernel.attend(q, k, v, implementation=implementation)
            assert_close(f"{kernel}, {implementation}", out, Softmax().attend(q, k, v), 1e-5)
    assert sizes
    whole = -(-70 // fast.TILE_PAIRS) * fast.TILE_PAIRS
    assert max(sizes) <= 2 * 4 * whole * 70


@pytest.mark.parametrize("implementation", AdaptiveSparse.implementations)
def test_other_modes_of_autograd(implementation: str) -> None:
    """The same numbers in inference mode, without gradients and with them. A second derivative is the reference's;
    the fast forms refuse it."""
    kernel = KERNELS[3]
    params, (q, k, v) = trained(kernel, 2, 8), rows(40, 2)

    def attend() -> Tensor:
        return kernel.attend(q, k, v, params=params, implementation=implementation)

    with torch.inference_mode():
        inferred = attend().tolist()
    with torch.no_grad():
        plain = attend().tolist()
    assert inferred == plain == attend().tolist()
    (slope,) = torch.autograd.grad(attend().square().sum(), q, create_graph=True)
    if implementation == "reference":
        slope.sum().backward()
        assert (q.grad != 0).any()
    else:
        with pytest.raises(RuntimeError, match="once_differentiable|backward is not implemented"):
            slope.sum().backward()


def product_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled, product by product, with the number of its entries."""
    sizes: list[int] = []
    plain_mm, plain_bmm = torch.mm, torch.bmm

    def counted(run: Any) -> Any:
        def call(*args: Any, **options: Any) -> Tensor:
            out = run(*args, **options)
            sizes.append(out.numel())
            return out

        return call

    monkeypatch.setattr(torch, "mm", counted(plain_mm))
    monkeypatch.setattr(torch, "bmm", counted(plain_bmm))
    return sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_decoding_selects_as_attend_does(kernel: AdaptiveSparse, dtype: torch.dtype) -> None:
    """Rotated, grouped, batched, masked, in pieces: the very same blocks for the same reasons, also in half
    precision, and the same outputs."""
    length, start = 61, 20
    q, k, v = (x.detach() for x in rows(length, 2, dtype))
    position = rotary(length, dtype=torch.promote_types(dtype, torch.float32))
    key_mask = torch.ones(2, length, dtype=torch.bool)
    key_mask[0, :9] = False
    key_mask[1, 11:15] = False
    at = torch.arange(length).expand(2, -1)
    params = trained(kernel, 2, 8)
    options: dict[str, Any] = {"position": position, "params": params}
    whole = kernel.audit(q, k, rows=at, key_mask=key_mask, **options)
    expected = kernel.attend(q, k, v, training=False, key_mask=key_mask, **options)
    state = kernel.init_state(2, 2, 8, length, dtype=dtype)
    got, stops = [], [3, start, start + 17, *range(start + 18, length + 1)]
    for first, stop in zip([0, *stops], stops, strict=False):
        part, auxiliary = [x[:, :, first:stop] for x in (q, k, v)], AuxiliaryOutputs()
        if stop - first > 1:
            mask = key_mask[:, first:stop]
            got.append(kernel.prefill(*part, state=state, key_mask=mask, auxiliary=auxiliary, **options))
        else:
            got.append(kernel.decode(*part, state=state, auxiliary=auxiliary, **options))
        for record in auxiliary.records:
            codes = record["codes"]
            rows_of = record["rows"][0]
            assert torch.equal(codes, whole.codes[:, :, rows_of, : codes.shape[-1]]), f"rows {rows_of.tolist()}"
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    assert_close("output", torch.cat(got, 2), expected, tolerance)


def test_names_what_runs() -> None:
    kernel = AdaptiveSparse()
    short, long = torch.zeros(1, 1, MASKED_LENGTH, 2), torch.zeros(1, 1, MASKED_LENGTH + 1, 2)
    assert [kernel.implementation(q) for q in (short, long, long.double())] == ["masked", "gather", "reference"]
    out = kernel.attend(*random_rows(1, 1, MASKED_LENGTH + 1, 2, dtype=torch.float32))
    assert "_Gathered" in _functions(out)
    out = kernel.attend(*random_rows(1, 1, MASKED_LENGTH, 2, dtype=torch.float32))
    assert "_Gathered" not in _functions(out)


def _functions(x: Tensor) -> str:
    """Names of the functions that made a tensor."""
    names, pending = [], [x.grad_fn]
    while pending:
        function = pending.pop()
        if function is not None:
            names.append(type(function).__name__)
            pending += [parent for parent, _ in function.next_functions]
    return " ".join(names)
