"""Speed of the generators."""

import numpy as np
import polars as pl

from sparsity_lab.benchmarks.measure import alternate, benchmark
from sparsity_lab.generators import Planted, SparseParity, Stream, Task, Uniform, Window

__all__ = ["generators"]


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
