"""Speed of free-running generation."""

import time
from collections.abc import Sequence

import polars as pl
import torch
from jaxtyping import Int64
from torch import Tensor

from sparsity_lab.benchmarks.kernels import chosen
from sparsity_lab.benchmarks.measure import measured_device, wait_for
from sparsity_lab.kernels import Kernel
from sparsity_lab.models import Decoder, DecoderModel, Predicted
from sparsity_lab.models.generation import free_run

BATCH_SIZES = (64, 1)
PROMPT, GENERATED = 16, 256
_EVERY = 8


def generation(only: Sequence[str] = (), device: str = "cpu") -> pl.DataFrame:
    """Greedy decoding with caches compared with rerunning the whole prefix for every token. 2 layers, d=64, 4 heads,
    predicted position IDs, a prompt of 16 tokens, 256 generated tokens, one thread. The prefix is run again at the
    middle of every eight lengths, which counts for all eight. Both are done twice, and the faster time counts.

    Args:
        only: kinds of kernels, or kernels in short form; nothing means all.
        device: ``cpu`` or ``cuda``.

    Raises:
        SettingError: no such kernel or device.
    """
    place = measured_device(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return pl.DataFrame([_row(kernel, size, place) for kernel in chosen(only) for size in BATCH_SIZES])
    finally:
        torch.set_num_threads(threads)


def _row(kernel: Kernel, batch_size: int, device: torch.device) -> dict[str, object]:
    model = Decoder(coupling=Predicted(max_id=512), kernel=kernel).build(0).eval().to(device)
    tokens = torch.randint(0, 16, (batch_size, PROMPT), generator=torch.Generator().manual_seed(0)).to(device)
    ids = torch.arange(1, PROMPT + 1, device=device).expand(batch_size, 1, PROMPT).contiguous()
    model.generate(tokens, 4, ids)
    cached = []
    for _ in range(2):
        start = time.perf_counter()
        sequence, all_ids = free_run(model, tokens, GENERATED, ids)
        wait_for(device)
        cached.append(time.perf_counter() - start)
    assert all_ids is not None
    again = _EVERY * min(_prefixes(model, sequence, all_ids) for _ in range(2))
    return {
        "kernel": str(kernel),
        "batch": batch_size,
        "cached, thousand tokens/s": batch_size * GENERATED / min(cached) / 1e3,
        "prefix again, thousand tokens/s": batch_size * GENERATED / again / 1e3,
        "prefix again over cached": again / min(cached),
    }


def _prefixes(model: DecoderModel, sequence: Int64[Tensor, "B all"], ids: Int64[Tensor, "B C all"]) -> float:
    """Seconds of the next token after every eighth prefix from the prompt on."""
    start = time.perf_counter()
    for size in range(PROMPT + _EVERY // 2, PROMPT + GENERATED, _EVERY):
        last = torch.zeros(len(sequence), size, dtype=torch.bool)
        last[:, -1] = True
        model.predict(sequence[:, :size], ids[:, :, :size], last)
    wait_for(sequence.device)
    return time.perf_counter() - start
