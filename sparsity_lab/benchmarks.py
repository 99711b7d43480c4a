"""Benchmarks: speed as ratios within one run, since times alone say more of the machine than of the code.

Each benchmark is a function that returns a frame; ``@benchmark`` enters it under its name.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from sparsity_lab.generators import Planted, SparseParity, Stream, Task, Uniform, Window
from sparsity_lab.models import Decoder, NoPE, RoPE
from sparsity_lab.named_functions import NamedFunctions
from sparsity_lab.sweeps import Processes, Sweep, grid, run_sweep
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training
from sparsity_lab.training.optimise import Records, optimise

__all__ = ["Benchmark", "benchmark"]

Benchmark = Callable[[], pl.DataFrame]
benchmark = NamedFunctions[Benchmark]("benchmark")
"""Decorator of benchmarks, and where they are found: ``benchmark.find("training")``."""


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median over rounds of second / first; the two take turns, so that drift of
    the machine's speed falls on both."""
    pairs = []
    for _ in range(rounds):
        pairs.append((_seconds(first), _seconds(second)))
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@benchmark
def generators() -> pl.DataFrame:
    """Tokens a second of the generators on one core, beside raw random words of the same number."""
    cases: list[tuple[str, Task, int, int]] = [
        ("Planted, token marking", Planted(k=4, vocab_size=64), 62, 512),
        ("the same, small batches", Planted(k=4, vocab_size=64), 62, 64),
        ("the same, large batches", Planted(k=4, vocab_size=64), 62, 4096),
        ("the same, long sequences", Planted(k=4, vocab_size=64), 1022, 32),
        ("Planted, window", Planted(k=4, vocab_size=64, locality=Window(width=8)), 62, 512),
        ("Planted, position marking", Planted(k=4, marking="position", locality=Uniform()), 62, 512),
        ("Planted, cue marking", Planted(k=4, marking="cue"), 62, 512),
        ("SparseParity", SparseParity(), 62, 512),
    ]
    rows = []
    for name, task, length, count in cases:
        T = task.sequence_length(length)
        repeats = max(1, 4096 * 64 // (count * T))
        position = 0

        def draw(task: Task = task, count: int = count, length: int = length, repeats: int = repeats) -> None:
            nonlocal position
            for _ in range(repeats):
                task.sample(Stream(), position, count, length)
                position += count

        tokens = repeats * count * T
        raw, own, ratio = alternate(lambda tokens=tokens: _raw_words(tokens), draw, rounds=15)  # type: ignore[misc]
        rows.append(
            {
                "case": name,
                "T": T,
                "sequences a call": count,
                "million tokens/s": tokens / own / 1e6,
                "million raw words/s": tokens / raw / 1e6,
                "time over raw words": ratio,
            }
        )
    return pl.DataFrame(rows)


def _raw_words(count: int) -> None:
    """Random 32-bit words and their multiply-shift to tokens, in chunks that fit the cache: the floor."""
    chunk = 1 << 15
    philox = np.random.Philox(0)
    out = np.empty(count, dtype=np.int64)
    for start in range(0, count, chunk):
        size = min(chunk, count - start)
        words = philox.random_raw((size + 1) // 2).view(np.uint32)[:size]
        out[start : start + size] = (words.astype(np.uint64) * np.uint64(64)) >> np.uint64(32)


class BareDecoder(nn.Module):
    """A plain PyTorch decoder of the benchmark's shape, without positions: what anyone would write."""

    def __init__(self, vocab_size: int, d_model: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.norms = nn.ModuleList(nn.RMSNorm(d_model) for _ in range(2 * num_layers + 1))
        self.qkv = nn.ModuleList(nn.Linear(d_model, 3 * d_model, bias=False) for _ in range(num_layers))
        self.out = nn.ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(num_layers))
        self.up = nn.ModuleList(nn.Linear(d_model, 4 * d_model, bias=False) for _ in range(num_layers))
        self.down = nn.ModuleList(nn.Linear(4 * d_model, d_model, bias=False) for _ in range(num_layers))
        self.head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        B, T, d = x.shape
        for i, (qkv, out, up, down) in enumerate(zip(self.qkv, self.out, self.up, self.down, strict=True)):
            q, k, v = qkv(self.norms[2 * i](x)).view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(mixed.transpose(1, 2).reshape(B, T, d))
            x = x + down(gelu(up(self.norms[2 * i + 1](x))))
        logits: Tensor = self.head(self.norms[-1](x[:, -1]))
        return logits


@benchmark
def training() -> pl.DataFrame:
    """Training steps of the lab beside a bare PyTorch loop: 2 layers, d=64, 4 heads, batch 64, T=64, one thread.

    The bare loop has fused attention and fused AdamW, its data ready in memory, its logits at the last position only,
    and neither positions, clipping, schedules, metrics nor data generation.
    """
    steps, threads = 30, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_training_row("NoPE", NoPE(), steps), _training_row("RoPE", RoPE(), steps)]
    finally:
        torch.set_num_threads(threads)
    return pl.DataFrame(rows)


def _training_row(name: str, position: NoPE | RoPE, steps: int) -> dict[str, object]:
    config = RunConfig(
        task=Planted(k=3),
        model=Decoder.Config(position=position),
        training=Training(steps=steps, batch_size=64, curriculum=FixedLength(length=62)),
        evaluation=Evaluation(lengths=(62,)),
    )
    batch = config.task.sample(Stream(), 0, 64 * steps, 62)
    tokens, targets = torch.split(batch.tokens, 64), torch.split(batch.targets[:, -1], 64)
    bare_model = BareDecoder(16, 64, 4, 2)
    optimiser = torch.optim.AdamW(bare_model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0, fused=True)

    def bare() -> None:
        for x, y in zip(tokens, targets, strict=True):
            torch.autograd.backward(cross_entropy(bare_model(x), y))
            optimiser.step()
            optimiser.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "none"

        def lab() -> None:
            optimise(config, config.model.build(0, vocab_size=16), Records(), checkpoint)

        lab()
        own, other, ratio = alternate(lab, bare, rounds=9)
    tokens_per_step = 64 * 64
    return {
        "case": name,
        "lab, thousand tokens/s": steps * tokens_per_step / own / 1e3,
        "bare loop, thousand tokens/s": steps * tokens_per_step / other / 1e3,
        "lab over bare loop": ratio,
    }


@benchmark
def sweeps() -> pl.DataFrame:
    """A sweep of equal runs with two worker processes beside one, starting the workers included."""
    base = RunConfig(
        task=Planted(k=2),
        training=Training(steps=300, curriculum=FixedLength(length=24)),
        evaluation=Evaluation(lengths=(24, 48), sequences=256),
    )
    sweep = Sweep(name="equal runs", runs=tuple(grid(base, {"seed": range(8)})))

    def with_workers(workers: int) -> Callable[[], object]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                run_sweep(sweep, folder, Processes(workers=workers))

        return run

    two, one, ratio = alternate(with_workers(2), with_workers(1), rounds=3)
    return pl.DataFrame([{"runs": 8, "one worker, s": one, "two workers, s": two, "one over two": ratio}])
