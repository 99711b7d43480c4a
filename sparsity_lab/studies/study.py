"""``Study``: named arms, claims and a figure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.settings import SettingError
from sparsity_lab.studies.arms import Arm
from sparsity_lab.studies.claim import Claim, Decision
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.studies.judge import judge
from sparsity_lab.sweeps import Results, Sweep
from sparsity_lab.sweeps.sweep import lineage
from sparsity_lab.training import EVALUATION_SCHEMA, Run, RunConfig, store

Size = Literal["smoke", "small", "full"]
"""``smoke`` is for tests, ``small`` for two processor cores, ``full`` for a larger machine."""
SIZES: tuple[Size, ...] = ("smoke", "small", "full")

MOST_PRIMARY = 5
"""The largest number of primary claims of a study."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment that decides claims. It is defined in a file and run by the path of the file, see ``load_study``.

    >>> study = Study(name="tiny", title="Tiny", question="Does it train?",
    ...               arms=lambda size: {"one": Arm(seeded(run.config), seeds=2)}, claims=(),
    ...               figure=lambda evidence: panels(1)[0])
    >>> len(study.sweep("small").runs)
    2

    Attributes:
        name: the name of the study and of its sweep.
        title: the title of the page.
        question: the question and the method, in a paragraph.
        arms: a function from a size to the arms by name.
        claims: the claims to decide.
        primary: names of the claims that ``decide`` runs seeds for, at most five. The others are exploratory.
        figure: a function that draws the figure of the page.
        finding: a function that computes the message of the figure in one sentence: its title, and its text for
            screen readers. By default the verdict on the first primary claim.
        columns: the columns of the evaluation that the page's tables show.
        measure: a function that measures each finished run beyond its evaluation, when the result is written.
        tables: a function that makes more tables of the page by title, mostly from the results of ``measure``.

    Raises:
        SettingError: two claims have the same name, or there are more than five primary claims. Or a primary claim is
            unknown, named twice, or does not name its arms.
    """

    name: str
    title: str
    question: str
    arms: Callable[[Size], Mapping[str, Arm]]
    claims: tuple[Claim, ...]
    figure: Callable[[Evidence], Figure]
    finding: Callable[[Evidence], str] | None = None
    primary: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("accuracy", "exact_match")
    measure: Callable[[Run], pl.DataFrame] | None = None
    tables: Callable[[Evidence], Mapping[str, pl.DataFrame]] | None = None

    def __post_init__(self) -> None:
        claims = {claim.name: claim for claim in self.claims}
        if len(claims) < len(self.claims):
            raise SettingError("claims", "two claims have the same name")
        if len(self.primary) > MOST_PRIMARY:
            raise SettingError("primary", f"at most {MOST_PRIMARY} claims", len(self.primary))
        for place, name in enumerate(self.primary):
            if name not in claims or name in self.primary[:place]:
                raise SettingError("primary", "names of claims, each once", name, list(claims))
            if not claims[name].arms:
                raise SettingError("primary", f"claim {name!r} names no arms")

    def sweep(self, size: Size = "small") -> Sweep:
        """The sweep of this size."""
        return Sweep(name=self.name, runs=tuple(run for arm in self.arms(size).values() for run in arm.runs))

    def judge(self, evidence: Evidence) -> dict[str, Decision]:
        """The decision on each claim, by name."""
        return judge(self.claims, self.primary, evidence)

    def rules(self) -> dict[str, str]:
        """A hash of the rule of each claim by its name, and the names of the primary claims by ``primary``."""
        return {
            "primary": ", ".join(sorted(self.primary)),
            **{claim.name: claim.rule_id for claim in self.claims},
        }

    def runs(self, size: Size, folder: Path | None = None) -> dict[str, tuple[str, RunConfig]]:
        """Arm and run by id: the runs of the sweep, and runs with other seeds in a folder."""
        arms = self.arms(size)
        found = {run.id: (name, run) for name, arm in arms.items() for run in arm.runs}
        if folder is None:
            return found
        for seed in sorted(_seeds_in(folder)):
            for name, arm in arms.items():
                run = arm.run(seed)
                if run.id not in found and (folder / run.id).is_dir():
                    found[run.id] = (name, run)
        return found

    def evidence(self, results: Results, size: Size, known: Evidence | None = None) -> Evidence:
        """Rows of the finished runs in the folder of ``results``, and the measures of each run.

        Args:
            known: evidence of other runs, or of some of these; its runs are not read again.

        Raises:
            SettingError: no run of this size of the study has finished, and ``known`` has none.
        """
        skipped = set() if known is None else set(known.rows["run"])
        rows = self._rows(results, size, skipped)
        before = [] if known is None else [known.rows]
        if rows.is_empty() and not before:
            raise SettingError("folder", f"finished runs of {self.name} in size {size}", str(results.folder))
        # Frames of an earlier release lack columns.
        every = pl.concat([*before, rows], how="diagonal_relaxed")
        if self.measure is None:
            return Evidence(self._in_order(every, size, "condition", "length"))
        frames = [] if known is None or known.measures is None else [known.measures]
        for arm, seed, run in rows.select("arm", "seed", "run").unique(maintain_order=True).iter_rows():
            found = self.measure(Run.load(results.folder / run, trusted=results.trusted))
            names = [pl.lit(value).alias(name) for name, value in (("arm", arm), ("seed", seed), ("run", run))]
            frames.append(found.select(*names, pl.all()))
        # A column may be null for a whole run, or missing for an arm that has no such measure.
        measures = pl.concat(frames, how="diagonal_relaxed")
        return Evidence(self._in_order(every, size, "condition", "length"), self._in_order(measures, size))

    def rows(self, results: Results, size: Size) -> pl.DataFrame:
        """The evaluation rows of the finished runs: ``arm``, ``seed``, ``run`` and the columns of the evaluation.
        Also ``learned``, ``reach``, ``censored`` and ``seconds`` of the run, and ``parent_seconds``, the seconds of
        its parents.

        Raises:
            SettingError: no run of this size of the study has finished.
        """
        rows = self._rows(results, size, set())
        if rows.is_empty():
            raise SettingError("folder", f"finished runs of {self.name} in size {size}", str(results.folder))
        return self._in_order(rows, size, "condition", "length")

    def _rows(self, results: Results, size: Size, skipped: set[str]) -> pl.DataFrame:
        own = {run: one for run, one in self.runs(size, results.folder).items() if run not in skipped}
        if not own:
            return pl.DataFrame(schema={"arm": pl.String(), "seed": pl.Int64(), "run": pl.String()})
        sweep = Sweep(name=self.name, runs=tuple(run for _, run in own.values()))
        here = Results(results.folder, sweep, trusted=results.trusted)
        found = here.frame("evaluation")
        summary = here.frame("summary").select("run", "condition", "learned", "reach", "censored")
        at = partial(pl.col("run").replace_strict, return_dtype=pl.String)
        seconds = {run: _seconds(here, config) for run, (_, config) in own.items()}
        labeled = found.with_columns(
            arm=at({run: name for run, (name, _) in own.items()}),
            seed=pl.col("run").replace_strict(
                {run: config.data_seed for run, (_, config) in own.items()}, return_dtype=pl.Int64
            ),
            seconds=pl.col("run").replace_strict(
                {run: one[0] for run, one in seconds.items()}, return_dtype=pl.Float64
            ),
            parent_seconds=pl.col("run").replace_strict(
                {run: sum(one[1:], 0.0) for run, one in seconds.items()}, return_dtype=pl.Float64
            ),
        ).join(summary, on=["run", "condition"], how="left")
        # The column of the evaluated task has another name if the config has a column of the same name.
        task = pl.col("condition_task" if "condition_task" in labeled.columns else "task").alias("task")
        columns = [name for name in EVALUATION_SCHEMA if name not in ("task", "condition")]
        more = ("learned", "reach", "censored", "seconds", "parent_seconds")
        return labeled.select("arm", "seed", "run", "condition", task, *columns, *more)

    def _in_order(self, frame: pl.DataFrame, size: Size, *more: str) -> pl.DataFrame:
        """The frame sorted by arm, by seed, and by ``more`` columns."""
        order = {name: place for place, name in enumerate(self.arms(size))}
        place = pl.col("arm").replace_strict(order, default=len(order), return_dtype=pl.Int64)
        return frame.sort(place, "seed", *more, maintain_order=True)


def _seeds_in(folder: Path) -> set[int]:
    """The seeds of all runs in a folder, of any study."""
    configs = (store.read_object(file) or {} for file in folder.glob(f"*/{store.CONFIG}"))
    return {seed for config in configs if isinstance(seed := config.get("data_seed"), int)}


def _seconds(results: Results, run: RunConfig) -> list[float]:
    """The seconds of a run and of each of its parents."""
    return [float(results.timing(one)["seconds"].sum()) for one in lineage(run)]
