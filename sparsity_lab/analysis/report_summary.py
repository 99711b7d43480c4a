"""The head of a report: what was computed for each panel, and in words what was seen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import polars as pl

from sparsity_lab.analysis.comparisons import Comparison, comparison_words, comparisons_of, overall_words
from sparsity_lab.analysis.drop import Drop, drop
from sparsity_lab.analysis.extrapolation import ExtrapolationCurve, extrapolation_curve
from sparsity_lab.analysis.heatmap import HeatMap, heat_map
from sparsity_lab.analysis.panels import Panel
from sparsity_lab.analysis.runs import Frames, arms_of
from sparsity_lab.analysis.words import (
    counts_words,
    drop_words,
    lengths_words,
    listed,
    others_words,
    same_lengths,
)
from sparsity_lab.settings.markup import Markup, details, element, join, table
from sparsity_lab.training import RunConfig, run_labels
from sparsity_lab.training.environment import devices_words

__all__ = ["Failed", "ReportResults", "Seen", "look_at", "run_states", "summary"]


class Failed(Protocol):
    """A run without a result, as ``sweeps.Failure``."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def reason(self) -> str: ...
    @property
    def step(self) -> int | None: ...


class ReportResults(Frames, Protocol):
    """What a report needs of ``sweeps.Results``: configs of all runs in their order, those that failed, ids of the
    finished runs that belong to other sweeps, the kinds of device that they were made on, the store."""

    @property
    def runs(self) -> Sequence[RunConfig]: ...
    @property
    def failures(self) -> Sequence[Failed]: ...
    @property
    def others(self) -> Sequence[str]: ...
    @property
    def devices(self) -> Mapping[str, int]: ...
    @property
    def folder(self) -> Path: ...


@dataclass(frozen=True)
class Seen:
    """A panel with what was computed for it."""

    panel: Panel
    curve: ExtrapolationCurve
    drops: Drop
    comparisons: tuple[Comparison, ...]
    maps: tuple[tuple[str, HeatMap], ...]


def look_at(panel: Panel, factor: float) -> Seen:
    """Curve, drops, comparisons and heat maps of a panel."""
    curve = extrapolation_curve(panel.rows, by=panel.by, measure=panel.measure)
    drops = drop(panel.rows, panel.by, factor, measure=panel.measure)
    return Seen(panel, curve, drops, tuple(comparisons_of(drops, panel.position)), tuple(_maps_of(panel, factor)))


def run_states(rows: pl.DataFrame) -> pl.DataFrame:
    """``run`` and ``learned``: true if it learned every condition that it was judged on, null if it was on none."""
    each = rows.unique(["run", "condition"], maintain_order=True)
    learned = pl.when(pl.col("learned").is_not_null().any()).then(pl.col("learned").all())
    return each.group_by("run", maintain_order=True).agg(learned)


def summary(results: ReportResults, rows: pl.DataFrame, seen: Sequence[Seen], factor: float) -> Markup:
    """How many runs there are, what each panel shows, and the runs that failed.

    Args:
        rows: evaluation rows of all runs; empty if none has finished.
    """
    failed, finished = len(results.failures), rows["run"].n_unique() if rows.width else 0
    unfinished = len(results.runs) - failed - finished
    others = [element("p", others_words(len(results.others)), class_="note")] if results.others else []
    if words := devices_words(results.devices):
        others.append(element("p", f"{words[0].upper()}{words[1:]}.", class_="note"))
    if not finished:
        lead = element("p", counts_words(0, 0, failed, unfinished), class_="lead")
        return join([lead, *others, _failures(results)])
    states = run_states(rows)["learned"].drop_nulls()
    thresholds = {config.evaluation.threshold for config in results.runs}
    threshold = thresholds.pop() if len(thresholds) == 1 else None
    counts = counts_words(finished, int(states.sum()), failed, unfinished, threshold, len(states))
    parts: list[Markup] = [element("p", counts, class_="lead"), *others]
    for one in seen:
        parts += [element("h3", one.panel.title), *_panel(one, factor)]
    note = (
        f"A drop is the value at the largest trained length minus that at the evaluated length nearest to {factor:g} "
        f"times it, within one run. Numbers in brackets are {seen[0].drops.confidence:.0%} Student intervals over "
        "seeds; with few seeds they are wide, and where all seeds agree exactly they have no width, which is no "
        "proof of certainty. They are not corrected for the number of comparisons on this page."
    )
    notes = [element("p", note, class_="note")] if any(one.drops.runs().height for one in seen) else []
    return join([*parts, *notes, _failures(results)])


def _panel(one: Seen, factor: float) -> Iterator[Markup]:
    """What was seen overall, the lengths, the arms, and the pairs of arms where several were compared."""
    position = one.panel.position
    rows = one.drops.frame().to_dicts()
    trained = one.curve.trained if one.curve.same_training else None
    if all(row["judged"] and not row["learned"] for row in rows):
        runs = sum(row["runs"] for row in rows)
        scheme = f"With {position}, n" if position else "N"
        yield element("p", f"{scheme}o run learned (0 of {runs}), so nothing is said of drops.")
        yield element("p", lengths_words([], trained, factor), class_="note")
        return
    common = (rows[0]["trained_length"], rows[0]["length"]) if same_lengths(rows) else None
    kinds = [list(group) for _, group in groupby(sorted(one.comparisons, key=_kind), _kind)]
    for comparisons in kinds:
        yield element("p", overall_words(comparisons, position, lengths=_other_lengths(comparisons[0], common)))
    measure = "" if one.panel.measure == "normalized_accuracy" else f" Drops are of {one.drops.measure.words}."
    yield element("p", lengths_words(rows, trained, factor) + measure, class_="note")
    if one.panel.beside:
        words = f"These arms also differ in {listed(one.panel.beside)}, so a difference may be due to that."
        yield element("p", words, class_="note")
    reaches = dict(one.curve.summary().select("arm", "reach").iter_rows())
    arms = [drop_words(row, position, factor, reaches[row["arm"]], lengths=common is None) for row in rows]
    yield element("ul", join([element("li", words) for words in arms]))
    pairs = [
        element("li", comparison_words(pair, position, lengths=_other_lengths(pair, common), brief=True))
        for comparisons in kinds
        if len(comparisons) > 1
        for pair in comparisons
    ]
    if pairs:
        yield details(f"{len(pairs)} pairs of arms, compared by seed", element("ul", join(pairs)))


def _kind(comparison: Comparison) -> tuple[str, str]:
    return comparison.less, comparison.more


def _other_lengths(comparison: Comparison, common: tuple[int, int] | None) -> bool:
    """Whether a comparison is over other lengths than those said of the whole panel."""
    return (comparison.difference.trained_length, comparison.difference.length) != common


def _maps_of(panel: Panel, factor: float) -> Iterator[tuple[str, HeatMap]]:
    """One heat map for each value of what the arms differ in besides k and locality."""
    if not {"task.k", "task.locality"} <= set(panel.rows.columns):
        return
    others = [name for name in panel.by if name not in ("task.k", "task.locality")]
    for arm in arms_of(panel.rows, others):
        # One cell is no map, and tasks without k have none.
        if arm.rows.drop_nulls(["task.k", "task.locality"]).select("task.k", "task.locality").n_unique() < 2:
            continue
        label = f"{panel.title}, {arm.label}" if others else panel.title
        yield label, heat_map(arm.rows, factor=factor, measure=panel.measure)


def _failures(results: ReportResults) -> Markup:
    if not results.failures:
        return Markup("")
    labels = run_labels(results.runs)
    rows = [(failed.run.id, labels[failed.run.id], failed.reason, failed.step) for failed in results.failures]
    return join([element("h3", "Failed runs"), table(["run", "settings", "reason", "step"], rows)])
