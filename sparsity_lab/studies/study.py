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
"""Primary claims that a study may have."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment that decides claims. A file that defines one is run by its path, see ``load_study``.

    >>> study = Study(name="tiny", title="Tiny", question="Does it train?",
    ...               arms=lambda size: {"one": Arm(seeded(run.config), seeds=2)}, claims=(),
    ...               figure=lambda evidence: panels(1)[0])
    >>> len(study.sweep("small").runs)
    2

    Attributes:
        name: of the study and of its sweep.
        title: of the page.
        question: what is asked and how, in a paragraph.
        arms: from a size to the arms by name.
        claims: what is decided.
        primary: names of the claims that ``decide`` runs seeds for, at most five. The others are exploratory.
        figure: the figure of the page.
        finding: what the figure shows, in one sentence that is computed from the evidence: its title, and its words
            for screen readers. By default the verdict on the first primary claim.
        columns: which columns of the evaluation the page's tables show.
        measure: what is measured on each finished run beyond its evaluation, when the result is written.
        tables: more tables of the page, each under its title; mostly of what ``measure`` found.

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
        """A hash of what decides each claim, by its name, and of which claims are primary, by ``primary``."""
        return {
            "primary": ", ".join(sorted(self.primary)),
            **{claim.name: claim.rule_id for claim in self.claims},
        }

    def runs(self, size: Size, folder: Path | None = None) -> dict[str, tuple[str, RunConfig]]:
        """Arm and run by id: those of the sweep, and those with further seeds that lie in a folder."""
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
        """Rows of the finished runs in the folder of ``results``, and what is measured on each of them now.

        Args:
            known: evidence of other runs, or of some of these; what it holds is not read again.

        Raises:
            SettingError: no run of this size of the study has finished, and none is known.
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
        # A column may be null throughout one run, or be missing where an arm has nothing of the kind.
        measures = pl.concat(frames, how="diagonal_relaxed")
        return Evidence(self._in_order(every, size, "condition", "length"), self._in_order(measures, size))

    def rows(self, results: Results, size: Size) -> pl.DataFrame:
        """The evaluation rows of the finished runs: ``arm``, ``seed``, ``run`` and the columns of the evaluation.
        Also ``learned``, ``reach``, ``censored`` and ``seconds`` of the run, and ``parent_seconds``, the seconds of
        the runs it was made from.

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
        # The evaluated task's column is renamed where the config has one of the same name.
        task = pl.col("condition_task" if "condition_task" in labeled.columns else "task").alias("task")
        columns = [name for name in EVALUATION_SCHEMA if name not in ("task", "condition")]
        more = ("learned", "reach", "censored", "seconds", "parent_seconds")
        return labeled.select("arm", "seed", "run", "condition", task, *columns, *more)

    def _in_order(self, frame: pl.DataFrame, size: Size, *more: str) -> pl.DataFrame:
        """By the order of the arms, by seed, and by more columns."""
        order = {name: place for place, name in enumerate(self.arms(size))}
        place = pl.col("arm").replace_strict(order, default=len(order), return_dtype=pl.Int64)
        return frame.sort(place, "seed", *more, maintain_order=True)


def _seeds_in(folder: Path) -> set[int]:
    """The seeds of all runs in a folder, of whatever study."""
    configs = (store.read_object(file) or {} for file in folder.glob(f"*/{store.CONFIG}"))
    return {seed for config in configs if isinstance(seed := config.get("data_seed"), int)}


def _seconds(results: Results, run: RunConfig) -> list[float]:
    """What the clocks say of a run and of those that it was made from, one after the other."""
    return [float(results.timing(one)["seconds"].sum()) for one in lineage(run)]
