"""Peak memory: what is counted, against known allocations."""

import pytest
import torch

from sparsity_lab.analysis.memory import peak_memory
from sparsity_lab.kernels import Softmax

MIB = 2**20


def square() -> torch.Tensor:
    return torch.ones(1024, 1024)


def test_counts_what_lives_at_one_time() -> None:
    """A T x T map of 4 MiB is seen; two that follow each other count once, two together twice."""
    assert peak_memory(square) == 4 * MIB

    def one_after_another() -> None:
        square().sum()
        square().sum()

    assert 4 * MIB <= peak_memory(one_after_another) < 4.1 * MIB
    assert peak_memory(lambda: (square(), square())) == 8 * MIB


def test_what_lived_before_does_not_count() -> None:
    before = square()
    assert peak_memory(lambda: before.add_(1)) < MIB


@pytest.mark.parametrize("implementation", ["reference", "fused"])
def test_only_the_dense_form_grows_with_the_square(implementation: str) -> None:
    H, T = 2, 2048

    def peak(T: int) -> int:
        q, k, v = (torch.zeros(1, H, T, 8, requires_grad=True) for _ in range(3))
        return peak_memory(lambda: Softmax().attend(q, k, v, implementation=implementation).sum().backward())

    dense = implementation == "reference"
    assert (peak(T) > H * T * T * 4) == dense
    assert (peak(T) > 2.5 * peak(T // 2)) == dense
