"""``Study``: a recipe with named arms, seeds, claims and a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.settings import SettingError
from sparsity_lab.studies.claim import Claim
from sparsity_lab.studies.recipe import Size
from sparsity_lab.sweeps import Results, Sweep
from sparsity_lab.training import EVALUATION_SCHEMA, RunConfig

__all__ = ["Study"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment that decides claims. ``recipe(Study(...))`` enters it: called with a size it gives its sweep.

    Attributes:
        name: of the recipe and of its files.
        title: of the page.
        question: what is asked and how, in a paragraph.
        arms: from a size to the arms by name, each with its runs, which differ in their seeds alone.
        claims: what is decided.
        figure: the figure of the page, from the study's rows.
        columns: which measures the page's table shows.
        notes: what was tried, what limits the result; Markdown.
    """

    name: str
    title: str
    question: str
    arms: Callable[[Size], Mapping[str, Sequence[RunConfig]]]
    claims: tuple[Claim, ...]
    figure: Callable[[pl.DataFrame], Figure]
    columns: tuple[str, ...] = ("accuracy", "exact_match")
    notes: str = ""

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, size: Size = "small") -> Sweep:
        """The sweep of this size."""
        return Sweep(name=self.name, runs=tuple(run for runs in self.arms(size).values() for run in runs))

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
        labelled = found.with_columns(
            arm=at({run: name for run, (name, _) in own.items()}),
            seed=pl.col("run").replace_strict({run: seed for run, (_, seed) in own.items()}, return_dtype=pl.Int64),
        ).join(summary, on=["run", "condition"], how="left")
        order = {name: place for place, name in enumerate(arms)}
        # The evaluated task's column is renamed where the config has one of the same name.
        task = pl.col("condition_task" if "condition_task" in labelled.columns else "task").alias("task")
        columns = [name for name in EVALUATION_SCHEMA if name != "task"]
        return (
            labelled.select("arm", "seed", "run", task, *columns, "learned", "reach", "censored")
            .sort(pl.col("arm").replace_strict(order), "seed", "condition", "length")
            .select("arm", "seed", "run", "condition", pl.exclude("arm", "seed", "run", "condition"))
        )
