"""``Study``: named arms, seeds, claims and a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.settings import SettingError
from sparsity_lab.studies.claim import Claim
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.sweeps import Results, Sweep
from sparsity_lab.training import EVALUATION_SCHEMA, Run, RunConfig

__all__ = ["SIZES", "Size", "Study"]

Size = Literal["smoke", "small", "full"]
"""``smoke`` is for tests, ``small`` for two processor cores, ``full`` for a larger machine."""
SIZES: tuple[Size, ...] = ("smoke", "small", "full")


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment that decides claims. A file that defines one is run by its path, see ``load_study``.

    Attributes:
        name: of the study and of its sweep.
        title: of the page.
        question: what is asked and how, in a paragraph.
        arms: from a size to the arms by name, each with its runs, which differ in their seeds alone.
        claims: what is decided.
        figure: the figure of the page.
        columns: which columns of the evaluation the page's tables show.
        measure: what is measured on each finished run beyond its evaluation, when the result is written.
        tables: more tables of the page, each under its title; mostly of what ``measure`` found.
    """

    name: str
    title: str
    question: str
    arms: Callable[[Size], Mapping[str, Sequence[RunConfig]]]
    claims: tuple[Claim, ...]
    figure: Callable[[Evidence], Figure]
    columns: tuple[str, ...] = ("accuracy", "exact_match")
    measure: Callable[[Run], pl.DataFrame] | None = None
    tables: Callable[[Evidence], Mapping[str, pl.DataFrame]] | None = None

    def sweep(self, size: Size = "small") -> Sweep:
        """The sweep of this size."""
        return Sweep(name=self.name, runs=tuple(run for runs in self.arms(size).values() for run in runs))

    def evidence(self, results: Results, size: Size) -> Evidence:
        """Rows of the finished runs, and what is measured on each of them now.

        Raises:
            SettingError: no run of this size of the study has finished.
        """
        rows = self.rows(results, size)
        if self.measure is None:
            return Evidence(rows)
        frames = []
        for arm, seed, run in rows.select("arm", "seed", "run").unique(maintain_order=True).iter_rows():
            found = self.measure(Run.load(results.folder / run))
            names = [pl.lit(value).alias(name) for name, value in (("arm", arm), ("seed", seed), ("run", run))]
            frames.append(found.select(*names, pl.all()))
        # A column may be null throughout one run, or be missing where an arm has nothing of the kind.
        return Evidence(rows, pl.concat(frames, how="diagonal_relaxed"))

    def rows(self, results: Results, size: Size) -> pl.DataFrame:
        """The evaluation rows of the finished runs: ``arm``, ``seed``, ``run``, the columns of the evaluation, and
        ``learned``, ``reach`` and ``censored`` of the run.

        Raises:
            SettingError: no run of this size of the study has finished.
        """
        arms = self.arms(size)
        own = {run.id: (name, run.data_seed) for name, runs in arms.items() for run in runs}
        frame = results.frame("evaluation")
        found = frame.filter(pl.col("run").is_in(list(own))) if "run" in frame.columns else frame
        if found.is_empty():
            raise SettingError("folder", f"finished runs of {self.name} in size {size}", str(results.folder))
        summary = results.frame("summary").select("run", "condition", "learned", "reach", "censored")
        at = partial(pl.col("run").replace_strict, return_dtype=pl.String)
        labeled = found.with_columns(
            arm=at({run: name for run, (name, _) in own.items()}),
            seed=pl.col("run").replace_strict({run: seed for run, (_, seed) in own.items()}, return_dtype=pl.Int64),
        ).join(summary, on=["run", "condition"], how="left")
        order = {name: place for place, name in enumerate(arms)}
        # The evaluated task's column is renamed where the config has one of the same name.
        task = pl.col("condition_task" if "condition_task" in labeled.columns else "task").alias("task")
        columns = [name for name in EVALUATION_SCHEMA if name != "task"]
        return (
            labeled.select("arm", "seed", "run", task, *columns, "learned", "reach", "censored")
            .sort(pl.col("arm").replace_strict(order), "seed", "condition", "length")
            .select("arm", "seed", "run", "condition", pl.exclude("arm", "seed", "run", "condition"))
        )
