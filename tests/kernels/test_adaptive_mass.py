"""What the measured setting of adaptive sparse attention retains on the rows that it is measured on."""

import math
from functools import cache

import pytest
import torch
from kernels.closeness import assert_close
from torch import Tensor
from torch.nn.functional import pad

from sparsity_lab.benchmarks.kernels import structured_rows
from sparsity_lab.kernels import AdaptiveSparse, Softmax
from sparsity_lab.kernels.adaptive import Audit, formula
from sparsity_lab.kernels.adaptive.audit import spread_rows

(KERNEL,) = AdaptiveSparse.benchmarked()


@cache
def structured(length: int) -> tuple[Tensor, Tensor]:
    """Norm one, neighbors with correlation 0.99, logits 8 times the cosine."""
    rows = structured_rows(length, 64, torch.float32, "cpu")
    return rows.q.detach(), rows.k.detach()


def audit(kernel: AdaptiveSparse, length: int) -> Audit:
    """Of 48 rows of the second half, drawn."""
    generator = torch.Generator().manual_seed(1)
    rows = spread_rows(length, length // 2, 48, 1, generator, torch.device("cpu"))
    return kernel.audit(*structured(length), rows=rows)


@pytest.mark.parametrize("length", [4096, 8192])
def test_retained_mass_is_most_of_the_oracles(length: int) -> None:
    """Ten blocks of 64 keys retain at least 0.9 of what any ten blocks could, as a ratio of means and as a mean of
    ratios; later rows have more to choose from, so the second half is the harder one."""
    found = audit(KERNEL, length)
    assert KERNEL.block_size == 64
    assert ((found.codes > 0).sum(-1) == 10).all()
    assert found.over_oracle() >= 0.93
    assert (found.retained / found.oracle).mean() >= 0.93


def test_other_choices_of_blocks_retain_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many blocks, some of them forced, none but sinks and local ones, drawn by chance, or the worst: the bound
    above tells each of them."""
    assert audit(KERNEL.replace(n_sink=1, n_local=2, k_free=7), 4096).over_oracle() < 0.92
    assert audit(KERNEL.replace(n_sink=1, n_local=9, k_free=0), 4096).over_oracle() < 0.5
    chosen = formula.log_importance
    generator = torch.Generator().manual_seed(0)

    def by_chance(scores: Tensor, past: Tensor) -> Tensor:
        return torch.rand(scores.mean(2).shape, generator=generator).double().masked_fill(~past, -math.inf)

    def worst(scores: Tensor, past: Tensor) -> Tensor:
        return chosen(-scores, past)

    for other, most in ((by_chance, 0.5), (worst, 0.2)):
        monkeypatch.setattr(formula, "log_importance", other)
        found = audit(KERNEL, 4096)
        assert ((found.codes > 0).sum(-1) == 10).all()
        assert found.over_oracle() < most


def test_mass_and_oracle_of_dense_weights() -> None:
    """By the dense weights of softmax, without the audit's own logits: block masses, their sum over what is kept, and
    the sum of as many of the largest."""
    q, k = (x[:, :, :1024].double() for x in structured(4096))
    at = torch.tensor([[0, 63, 64, 700, 1023]])
    found = KERNEL.audit(q, k, rows=at)
    for i, row in enumerate(at[0].tolist()):
        dense = Softmax().weights(q[:, :, row : row + 1], k, query_start=row)
        mass = pad(dense, (0, -dense.shape[-1] % 64)).unflatten(-1, (-1, 64)).sum(-1)[0, :, 0]
        kept = found.codes[0, :, i] > 0
        assert_close(f"ρ of row {row}", found.retained[0, :, i], (mass * kept).sum(-1), 1e-12)
        number = int(kept.sum(-1).unique())
        assert number == min(10, row // 64 + 1)
        assert_close(f"oracle of row {row}", found.oracle[0, :, i], mass.topk(number).values.sum(-1), 1e-12)


def test_the_oracle_chooses_for_each_query_head() -> None:
    """Two query heads of a group, each with its mass in another block: one selected block serves one of them, or
    neither wholly; the oracle takes the own block of neither."""
    q = torch.zeros(1, 2, 6, 2, dtype=torch.float64)
    q[0, 0, 5, 0], q[0, 1, 5, 1] = 20.0, 20.0
    k = torch.zeros(1, 1, 6, 2, dtype=torch.float64)
    k[0, 0, 0, 0], k[0, 0, 2, 1] = 3.0, 2.0
    kernel = AdaptiveSparse(block_size=2, n_sink=0, n_local=1, k_free=0)
    found = kernel.audit(q, k, rows=torch.tensor([[5]]))
    assert (found.codes[0, 0, 0] > 0).tolist() == [False, False, True]
    assert (found.retained < 1e-6).all()
    assert (found.oracle > 1 - 1e-6).all()
