"""Training on a GPU: for ``make gpu``."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from training.small_runs import small_run

from sparsity_lab.kernels import LSSAR, AdaptiveSparse, Kernel, NormAwareLinear, Softmax
from sparsity_lab.training.optimize import Records, optimize

pytestmark = pytest.mark.cuda


def weights_after(tmp_path: Path, kernel: Kernel, **changes: object) -> dict[str, Tensor]:
    run = small_run(training=small_run().training.replace(**changes))
    model = run.model.replace(kernel=kernel).build(0, run.task.vocabulary.size)
    optimize(run, model, Records(), tmp_path / "none")
    return {name: weight.cpu() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("kernel", [Softmax(), LSSAR(p=3), NormAwareLinear(), AdaptiveSparse(block_size=4)], ids=str)
def test_a_run_is_repeated_to_the_bit_and_near_that_of_the_cpu(kernel: Kernel, tmp_path: Path) -> None:
    here, once, again = (weights_after(tmp_path, kernel, device=device) for device in ("cpu", "cuda", "cuda"))
    for name, weight in once.items():
        assert torch.equal(weight, again[name]), name
        torch.testing.assert_close(weight, here[name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precision(precision: str, tmp_path: Path) -> None:
    exact = weights_after(tmp_path, Softmax(), device="cuda")
    for name, weight in weights_after(tmp_path, Softmax(), device="cuda", precision=precision).items():
        torch.testing.assert_close(weight, exact[name], rtol=0.05, atol=0.05)


def test_parts_of_a_step(tmp_path: Path) -> None:
    whole = weights_after(tmp_path, Softmax(), device="cuda")
    for name, weight in weights_after(tmp_path, Softmax(), device="cuda", accumulation=4).items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-3, atol=1e-3)
