"""Speed of free-running generation."""

import time

import polars as pl
import torch

from sparsity_lab.benchmarks.measure import benchmark
from sparsity_lab.kernels import Kernel
from sparsity_lab.models import Decoder, Predicted
from sparsity_lab.settings import kinds

__all__ = ["generation"]

PROMPT, GENERATED = 16, 256


@benchmark
def generation() -> pl.DataFrame:
    """Greedy decoding with caches beside running the whole prefix again for every token: 2 layers, d=64, 4 heads,
    predicted position IDs, a prompt of 16 tokens and 256 generated ones, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        families = [kind for kind in kinds("kernel").values() if issubclass(kind, Kernel)]
        mechanisms = [kernel for kind in families for kernel in kind.benchmarked()]
        return pl.DataFrame([_row(kernel, batch_size) for kernel in mechanisms for batch_size in (64, 1)])
    finally:
        torch.set_num_threads(threads)


def _row(kernel: Kernel, batch_size: int) -> dict[str, object]:
    config = Decoder.Config(coupling=Predicted(max_id=512), kernel=kernel)
    model = config.build(0).eval()
    tokens = torch.randint(0, 16, (batch_size, PROMPT), generator=torch.Generator().manual_seed(0))
    ids = torch.arange(1, PROMPT + 1).expand(batch_size, 1, PROMPT).contiguous()
    model.generate(tokens, 4, ids)
    cached = min(_seconds(model, tokens, ids, again=False) for _ in range(2))
    again = _seconds(model, tokens, ids, again=True)
    return {
        "kernel": str(kernel),
        "batch": batch_size,
        "cached, thousand tokens/s": batch_size * GENERATED / cached / 1e3,
        "prefix again, thousand tokens/s": batch_size * GENERATED / again / 1e3,
        "prefix again over cached": again / cached,
    }


@torch.no_grad()
def _seconds(model: Decoder, tokens: torch.Tensor, ids: torch.Tensor, *, again: bool) -> float:
    start = time.perf_counter()
    if not again:
        model.generate(tokens, GENERATED, ids)
        return time.perf_counter() - start
    for _ in range(GENERATED):
        last = torch.zeros_like(tokens, dtype=torch.bool)
        last[:, -1] = True
        next_token, following = model.predict(tokens, ids, last)
        assert following is not None
        tokens, ids = torch.cat([tokens, next_token[:, None]], 1), torch.cat([ids, following[:, :, None]], 2)
    return time.perf_counter() - start
