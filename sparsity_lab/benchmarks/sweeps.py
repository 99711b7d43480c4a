"""Speed of sweeps on several worker processes."""

import tempfile
from collections.abc import Callable

import polars as pl

from sparsity_lab.benchmarks.measure import alternate, benchmark
from sparsity_lab.generators import Planted
from sparsity_lab.sweeps import Processes, Sweep, grid, run_sweep
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training

__all__ = ["sweeps"]


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
