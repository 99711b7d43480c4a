"""What the block score of adaptive sparse attention learns: its residual, and through the output."""

import copy
import math
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.trained import trained
from torch import Tensor

from sparsity_lab.kernels import AdaptiveSparse, AuxiliaryOutputs, SSMax
from sparsity_lab.kernels.adaptive.formula import SELECTED, summarize
from sparsity_lab.settings import SettingError

B, G, M, T, D = 2, 2, 2, 45, 6
KERNEL = AdaptiveSparse(block_size=4, n_local=1, k_free=2, rank=3)

every_form = pytest.mark.parametrize("implementation", AdaptiveSparse.implementations)


def rows(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    q = random_rows(B, G * M, T, D, count=1, dtype=dtype)[0]
    return [q, *random_rows(B, G, T, D, count=2, seed=1, dtype=dtype)]


# --- the residual


@every_form
def test_residual_starts_at_nothing(implementation: str) -> None:
    """Outputs, gradients, loss and audit are to the bit those of the score without it; yet W_k gets a gradient."""
    found = []
    for rank in (0, 3):
        kernel, qkv, auxiliary = KERNEL.replace(rank=rank), rows(torch.float32), AuxiliaryOutputs()
        params = kernel.build(G, D, seed=5)
        assert params is not None
        out = kernel.attend(*qkv, params=params, auxiliary=auxiliary, implementation=implementation)
        (out.square().sum() + auxiliary.losses[0]).backward()
        audit = [auxiliary.records[0][name] for name in ("codes", "probability", "estimated")]
        found.append([out, auxiliary.losses[0], *(x.grad for x in qkv), params.beta.grad, *audit])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    assert params.query is not None
    assert params.key is not None
    assert not params.query.grad.any()
    assert (params.key.grad != 0).any()
    assert not torch.equal(params.query, KERNEL.build(G, D, seed=6).query)
    assert torch.equal(params.query, KERNEL.build(G, D, seed=5).query)


def test_residual_by_the_formula() -> None:
    """r = <W_qᵀ φ(q), W_kᵀ ψ> / sqrt(r), from the keys themselves; padded keys take no part."""
    q, k, _ = (x.detach() for x in rows())
    key_mask = torch.ones(B, T, dtype=torch.bool)
    key_mask[0, :4] = False
    key_mask[1, 6:9] = False
    summaries = summarize(k, key_mask, 4)
    params = trained(KERNEL, G, D, torch.float64)
    with torch.no_grad():
        grouped = torch.unflatten(q, 1, (G, M))
        full = params(grouped, summaries)
        plain = KERNEL.replace(rank=0).build(G, D, 0).double()(grouped, summaries)
    assert params.query is not None
    assert params.key is not None
    with torch.no_grad():
        for b, h, t, j in ((0, 0, 30, 1), (0, 3, 44, 7), (1, 1, 20, 1), (1, 2, 44, 2)):
            g = h // M
            keys = k[b, g, [i for i in range(4 * j, 4 * j + 4) if key_mask[b, i]]]
            phi = torch.cat([q[b, h, t], q[b, h, t].clamp_min(0), q[b, h, t].clamp_max(0)])
            psi = torch.cat([keys.mean(0), keys.amax(0), keys.amin(0)])
            residual = (phi @ params.query[g]) @ (psi @ params.key[g]) / math.sqrt(3)
            beta = params.beta[g] - torch.tensor(KERNEL.beta)
            spread = 0.5 / D * (q[b, h, t].square() * keys.var(0, correction=0)).sum()
            box = torch.maximum(q[b, h, t] * keys.amax(0), q[b, h, t] * keys.amin(0)).sum() - q[b, h, t] @ keys.mean(
                0
            )
            expected = residual + beta[0] * spread + beta[1] * box / math.sqrt(D)
            place = b, g, h % M, t, j
            assert_close(str(place), full[place] - plain[place], expected, 1e-9)
        assert (full[0, :, :, :, 0] == -math.inf).all()


def lively(places: list[int]) -> tuple[Tensor, Tensor]:
    """A query (3, 3, 0, 0) everywhere, and eight blocks of four keys (z, -z, -1, 0), z = 1, -1, 1, -1, but
    (z, z, 1, 0) in the block named. Means, variances and boxes are the same along the query, so all past blocks tie,
    whatever β is. Logits are 0, but 3 z in the named block, which has cosh 3 times the mass of another."""
    z = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    quiet = torch.stack([z, -z, -torch.ones(4), torch.zeros(4)], -1)
    loud = torch.stack([z, z, torch.ones(4), torch.zeros(4)], -1)
    k = torch.stack([torch.cat([loud if j == place else quiet for j in range(8)]) for place in places])[:, None]
    return torch.tensor([3.0, 3.0, 0.0, 0.0], dtype=torch.float64).expand_as(k), k


def test_residual_sees_what_the_box_cannot() -> None:
    """Trained by the selector's loss it goes from the kept mass of a blind choice to that of the best one, also on
    arrangements that it has not seen. β alone has no gradient there."""
    mass = math.cosh(3.0)
    target = torch.tensor([1.0] * 6 + [mass], dtype=torch.float64) / (6 + mass)
    blind_loss = math.log(7) - float(-torch.xlogy(target, target).sum())
    # Blind: the lowest block and the own one. Best: the named block and the own one.
    blind, best = 2 / (7 + mass), (1 + mass) / (7 + mass)
    (q, k), (new_q, new_k) = lively([1, 2, 3, 5]), lively([4, 6])
    last = torch.full((2, 1), 31)
    for rank, expected in ((0, blind), (2, best)):
        kernel = AdaptiveSparse(block_size=4, n_sink=0, n_local=1, k_free=1, sampled_rows=1, rank=rank)
        params = kernel.build(1, 4, seed=0)
        assert params is not None
        params.double()
        assert_close("before", kernel.audit(new_q, new_k, rows=last, params=params).retained, blind * ONES, 1e-12)
        optimizer = torch.optim.Adam(params.parameters(), lr=0.1)
        losses = []
        for _ in range(30 if rank else 3):
            auxiliary = AuxiliaryOutputs()
            kernel.attend(q, k, k, params=params, auxiliary=auxiliary)
            losses.append(float(auxiliary.losses[0].detach()))
            optimizer.zero_grad()
            auxiliary.losses[0].backward()
            assert rank or float(params.beta.grad.abs().max()) < 1e-12
            optimizer.step()
        assert losses[0] == pytest.approx(blind_loss, abs=1e-12)
        assert losses[-1] == pytest.approx(blind_loss, abs=1e-9) if rank == 0 else losses[-1] < 1e-3
        assert_close("after", kernel.audit(new_q, new_k, rows=last, params=params).retained, expected * ONES, 1e-12)


ONES = torch.ones(2, 1, 1, dtype=torch.float64)


def test_fixed_beta_beside_a_residual() -> None:
    kernel = KERNEL.replace(learn_beta=False, beta=(0.5, 0.25))
    params = kernel.build(G, D, 0)
    assert params is not None
    assert {name for name, _ in params.named_parameters()} == set(params.state_dict()) == {"query", "key"}
    assert set(KERNEL.replace(rank=0).build(G, D, 0).state_dict()) == {"beta"}
    auxiliary = AuxiliaryOutputs()
    kernel.attend(*rows(torch.float32), params=params, auxiliary=auxiliary)
    auxiliary.losses[0].backward()
    assert (params.key.grad != 0).any()
    again = copy.deepcopy(params)
    again.load_state_dict(trained(kernel, G, D).state_dict())
    assert torch.equal(again.beta, params.beta)
    assert not torch.equal(again.key, params.key)


# --- the straight-through gradient

THROUGH = KERNEL.replace(straight_through=True)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_straight_through_is_exact_forward(implementation: str, dtype: torch.dtype) -> None:
    """Outputs and the gradients of queries, keys and values are to the bit those without it, which sends none to the
    weights of the score. Off in use."""
    found = []
    for kernel in (KERNEL, THROUGH):
        qkv, params = rows(dtype), trained(kernel, G, D)
        out = kernel.attend(*qkv, params=params, implementation=implementation)
        out.square().sum().backward()
        found.append([out, *(x.grad for x in qkv)])
        assert any(x.grad is not None and x.grad.any() for x in params.parameters()) == kernel.straight_through
        params.zero_grad()
        kernel.attend(*qkv, params=params, implementation=implementation, training=False).sum().backward()
        assert not any(x.grad is not None and x.grad.any() for x in params.parameters())
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    assert all((x.grad is None) or x.grad.isfinite().all() for x in params.parameters())


def surrogate(
    kernel: AdaptiveSparse, params: Any, q: Tensor, k: Tensor, v: Tensor, at: Tensor
) -> tuple[Tensor, Tensor]:
    """Output with the unnormalized weights of kept candidates multiplied by 1 + π - ``at``, and π, token by token
    from the formulas of mean, variance, box and residual, with the kept blocks of the audit."""
    size, scale = kernel.block_size, 1 / math.sqrt(D)
    num_blocks = -(-T // size)
    codes = kernel.audit(q, k, rows=torch.arange(T).expand(B, -1), params=params).codes
    blocks = [k[:, :, j * size : (j + 1) * size] for j in range(num_blocks)]
    mean, high, low = (
        torch.stack(x, 2) for x in zip(*((y.mean(2), y.amax(2), y.amin(2)) for y in blocks), strict=True)
    )
    spread = torch.stack([x.var(2, correction=0) for x in blocks], 2)
    count = torch.tensor([float(x.shape[2]) for x in blocks], dtype=q.dtype)
    heads = torch.unflatten(q, 1, (G, M))
    first = scale * heads @ mean.mT.unsqueeze(2)
    box = scale * (heads.clamp_min(0) @ high.mT.unsqueeze(2) + heads.clamp_max(0) @ low.mT.unsqueeze(2))
    second = 0.5 * scale**2 * heads.square() @ spread.mT.unsqueeze(2)
    phi = torch.cat([heads, heads.clamp_min(0), heads.clamp_max(0)], -1) @ params.query[:, None]
    psi = torch.cat([mean, high, low], -1) @ params.key
    beta = params.beta[:, :, None, None, None]
    score = count.log() + first + beta[:, 0] * second + beta[:, 1] * (box - first)
    score = score + phi @ psi.mT.unsqueeze(2) / math.sqrt(kernel.rank)
    past = torch.arange(num_blocks) < (torch.arange(T) // size)[:, None]
    share = score.masked_fill(~past, -1e9).softmax(-1).masked_fill(~past, 0.0).mean(2)
    gate = torch.where(codes >= SELECTED, 1 + share - at, 1.0) * (codes > 0)
    weights = (scale * heads @ k.mT.unsqueeze(2)).exp() * gate.repeat_interleave(size, -1)[:, :, None, :, :T]
    weights = weights.tril()
    return (weights / weights.sum(-1, keepdim=True) @ v.unsqueeze(2)).flatten(1, 2), share


@every_form
def test_straight_through_by_the_formula(implementation: str) -> None:
    """Against autograd of a plain surrogate, and its finite differences, in β, W_q and W_k."""
    q, k, v = (x.detach() for x in rows())
    params = trained(THROUGH, G, D, torch.float64)
    weight = random_rows(B, G * M, T, D, count=1, seed=9)[0].detach()
    out = THROUGH.attend(q, k, v, params=params, implementation=implementation)
    got = torch.autograd.grad((out * weight).sum(), tuple(params.parameters()))
    with torch.no_grad():
        _, at = surrogate(THROUGH, params, q, k, v, torch.zeros(()))
    expected_out, _ = surrogate(THROUGH, params, q, k, v, at)
    assert_close("output", out, expected_out, 1e-12)
    expected = torch.autograd.grad((expected_out * weight).sum(), tuple(params.parameters()))
    for (name, parameter), x, y in zip(params.named_parameters(), got, expected, strict=True):
        assert (x != 0).any(), name
        assert_close(name, x, y, 1e-9)
        place = tuple(0 for _ in parameter.shape)
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[place] += step
                # The selection is that of the audit before the step, as long as the step moves none.
                sides.append(float((surrogate(THROUGH, params, q, k, v, at)[0] * weight).sum()))
                parameter[place] -= step
        assert float(x[place]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5, abs=1e-7), name


def test_straight_through_skips_what_is_always_kept() -> None:
    """With sinks and local blocks alone no block is a candidate: the gradient is zero."""
    kernel = THROUGH.replace(k_free=0, n_sink=2, n_local=2)
    for implementation in kernel.implementations:
        params = trained(kernel, G, D)
        kernel.attend(*rows(torch.float32), params=params, implementation=implementation).square().sum().backward()
        assert not any(x.grad.any() for x in params.parameters())


def test_straight_through_learns() -> None:
    """Where the loss wants the values of a block, following the gradient raises its share π, with nothing but the
    output to learn from."""
    q, k = lively([3, 3])
    v = torch.zeros_like(k)
    v[:, :, 12:16, 0] = 1.0
    kernel = AdaptiveSparse(
        block_size=4, n_sink=0, n_local=1, k_free=7, rank=2, straight_through=True, lambda_sel=0.0, sampled_rows=1
    )
    params = kernel.build(1, 4, seed=0)
    assert params is not None
    params.double()

    def share() -> float:
        last = torch.full((2, 1), 31)
        return float(kernel.audit(q, k, rows=last, params=params).probability[0, 0, 0, 3])

    assert share() == pytest.approx(1 / 7)
    optimizer = torch.optim.Adam(params.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (-kernel.attend(q, k, v, params=params)[:, :, -1, 0].sum()).backward()
        optimizer.step()
    assert share() > 0.5


# --- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": -1}, r"rank: expected at least 0, got -1"),
        ({"straight_through": True, "learn_beta": False}, r"straight_through: expected False: with nothing to learn"),
    ],
)
def test_settings_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        AdaptiveSparse(**fields)


def test_parameters_of_another_making_are_refused() -> None:
    qkv = [x.detach() for x in rows()]
    for params, message in (
        (KERNEL.replace(rank=0).build(G, D, 0), r"residual of \(3D, r\) = \(18, 3\), got \(0, 0\)"),
        (KERNEL.replace(rank=4).build(G, D, 0), r"residual of \(3D, r\) = \(18, 3\), got \(18, 4\)"),
        (KERNEL.build(G, 2 * D, 0), r"residual of \(3D, r\) = \(18, 3\), got \(36, 3\)"),
        (KERNEL.build(G * M, D, 0), r"params: expected the module that build\(2, ...\) returns.*got 4"),
        (SSMax().build(G, D, 0), r"params: expected the module that build\(2, ...\) returns, got '"),
    ):
        with pytest.raises(SettingError, match=message):
            KERNEL.attend(*qkv, params=params)
