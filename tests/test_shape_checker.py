"""The checker of shapes sees wrong ones, in the first calls of each test."""

import pytest
import shape_checker
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from sparsity_lab.analysis import softmax_entropy_slope


def test_a_wrong_shape_is_seen_in_what_is_imported() -> None:
    with pytest.raises(TypeCheckError, match="softmax_entropy_slope"):
        softmax_entropy_slope(torch.zeros(2, 3), torch.zeros(3))


def test_first_calls_are_checked_and_those_of_the_next_test() -> None:
    def first(x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        return x[:, 0]

    checked = shape_checker._checked_at_first(typechecker=shape_checker.check)(first)
    for _ in range(shape_checker.CHECKED_CALLS):
        with pytest.raises(TypeCheckError, match="parameters"):
            checked(torch.zeros(4, 3))
    assert checked(torch.zeros(4, 3)).shape == (4,)
    shape_checker.forget_calls()
    with pytest.raises(TypeCheckError, match="parameters"):
        checked(torch.zeros(4, 3))


def test_a_function_without_shapes_is_left_alone() -> None:
    def plain(x: int) -> int:
        return x

    assert shape_checker._checked_at_first(typechecker=shape_checker.check)(plain) is plain
