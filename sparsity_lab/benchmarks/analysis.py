"""Time and memory of attention measures on long sequences, and the time of the transfer check."""

from collections.abc import Callable

import polars as pl
import torch

from sparsity_lab.analysis import attention_entropy, attention_sink, norm_sensitivity, planted_mass, transfer_check
from sparsity_lab.analysis.memory import peak_memory
from sparsity_lab.benchmarks.measure import seconds
from sparsity_lab.generators import Planted
from sparsity_lab.kernels import LSSAR, Softmax
from sparsity_lab.models import Decoder

MEASURES: dict[str, Callable[..., object]] = {
    "attention_entropy": attention_entropy,
    "norm_sensitivity": norm_sensitivity,
    "planted_mass": planted_mass,
    "attention_sink": attention_sink,
}


def analysis(lengths: tuple[int, ...] = (4096,)) -> pl.DataFrame:
    """Attention measures of all layers for one sequence of T tokens: 2 layers with 4 heads of size 16, one thread.
    Also ``transfer_check`` at its default sizes (k = 3, W = 8, length 50).

    ``peak MiB`` is the peak memory beyond the model, as ``peak_memory`` counts it. All T x T weights of one layer
    would take 4 T² floats, 256 MiB at T = 4096.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_row(name, kernel, T) for T in lengths for kernel in (Softmax(), LSSAR()) for name in MEASURES]
        spent = seconds(transfer_check)
    finally:
        torch.set_num_threads(threads)
    rows.append({"measure": "transfer_check", "kernel": None, "T": 50, "seconds": spent, "peak MiB": None})
    return pl.DataFrame(rows, infer_schema_length=None)


def _row(name: str, kernel: Softmax | LSSAR, T: int) -> dict[str, object]:
    model = Decoder(kernel=kernel).build(0).eval()
    task = Planted(k=3)
    length = T - (task.sequence_length(8) - 8)

    def measure() -> object:
        return MEASURES[name](model, task, (length,), sequences=1)

    row = {"measure": name, "kernel": str(kernel), "T": T, "seconds": seconds(measure)}
    return row | {"peak MiB": peak_memory(measure) / 2**20}
