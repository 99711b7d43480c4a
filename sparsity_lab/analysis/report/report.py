"""The report of a sweep: one page with a summary, figures, tables, sample sequences and all settings."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import quote

import polars as pl

from sparsity_lab.analysis.drop import Drop, drop, drop_table
from sparsity_lab.analysis.extrapolation import ExtrapolationCurve, extrapolation_curve
from sparsity_lab.analysis.heatmap import HeatMap, heat_map
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.analysis.panels import Panel, panels_of, small_multiples
from sparsity_lab.analysis.reach import reach_of
from sparsity_lab.analysis.replicates import seed_columns
from sparsity_lab.analysis.report.comparisons import Comparison, comparisons_of
from sparsity_lab.analysis.report.explorer import StoredRuns, explore
from sparsity_lab.analysis.report.page import Section, macros, page
from sparsity_lab.analysis.report.samples import sample_length, sample_sequences
from sparsity_lab.analysis.runs import NOT_JUDGED, arms_of, evaluation_rows
from sparsity_lab.analysis.style import Look, Point, figure_svg, looks_of
from sparsity_lab.generators import Task
from sparsity_lab.settings import to_data
from sparsity_lab.settings.markup import Markup, cell, number, signed_interval
from sparsity_lab.training import RunConfig, run_labels
from sparsity_lab.training.environment import devices_words

_SAMPLES = 3
_OPEN_SAMPLES = 6


class Failed(Protocol):
    """A run without a result, as ``sweeps.Failure``."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def reason(self) -> str: ...
    @property
    def step(self) -> int | None: ...


class ReportResults(StoredRuns, Protocol):
    """The part of ``sweeps.Results`` that a report reads. In addition to what an explorer reads, these are the
    failures, the ids of finished runs of other sweeps, the kinds of device, and where each run was made."""

    @property
    def failures(self) -> Sequence[Failed]: ...
    @property
    def others(self) -> Sequence[str]: ...
    @property
    def devices(self) -> Mapping[str, int]: ...
    def environment(self, run: RunConfig, /) -> Mapping[str, Any] | None: ...
    def snapshot(self) -> Self: ...


def write_report(
    results: ReportResults,
    path: Path | str,
    *,
    title: str = "Extrapolation in length",
    command: str | None = None,
    factor: float = 4,
    explorer: bool = False,
    first: Section | None = None,
) -> Path:
    """Write the report of ``results`` as one HTML file that opens from disk and loads nothing.

    The same results give the same bytes. The file is written whole or not at all.

    >>> write_report(results, "report.html").name
    'report.html'

    Args:
        path: the file; its folder must exist.
        title: title of the page.
        command: the command that made the results, as it was typed.
        factor: drops and heat maps are taken at this multiple of the trained length.
        explorer: also write ``explore(results)`` into the same folder, as ``report_explorer.html`` for
            ``report.html``. The report then links to it, and to the attention map of each run in it.
        first: a section of the caller's before all others.

    Returns:
        The path.

    Raises:
        SettingError: the file cannot be written.
    """
    path = Path(path)
    results, address, maps = results.snapshot(), None, tuple[str, ...]()
    if explorer and not results.frame("evaluation").is_empty():
        found = explore(results)
        written = found.write(path.with_stem(f"{path.stem}_explorer"), f"Explorer: {title}")
        address, maps = quote(written.name), found.maps
    attention = {run: f"{address}#{run}" for run in maps}
    sections = _sections(results, command, factor, path.parent, address, attention)
    text = page(title, [*([] if first is None else [first]), *sections])
    # A name may hold half of a surrogate pair, from a file name or from JSON. UTF-8 has no bytes for it.
    return write_whole(path, text.encode(errors="backslashreplace"))


def _sections(
    results: ReportResults,
    command: str | None,
    factor: float,
    page_folder: Path,
    explorer: str | None,
    attention: Mapping[str, str],
) -> Iterator[Section]:
    finished = not results.frame("evaluation").is_empty()
    rows = evaluation_rows(results, by=("condition",)) if finished else pl.DataFrame()
    panels = panels_of(rows) if finished else []
    states = _run_states(rows) if finished else {}
    write = macros("report.html")
    told = _summary(results, panels, states, factor)
    yield Section("summary", "Summary", write.summary(**told, explorer=explorer))
    if finished:
        note = (
            "Lines are medians over the runs that learned. Fewer than ten runs are thin lines; of more a band is the "
            "interval of the median by the order of the runs. Point at a mark to read its value."
        )
        small = [one for panel in panels for one in small_multiples(panel)]
        drawn = [_extrapolation(one) for one in small]
        looks = looks_of(*(curve.labels for curve in drawn))
        curves = [_curve(panel, curve, looks) for panel, curve in zip(small, drawn, strict=True)]
        yield Section("curves", "Extrapolation curves", write.figures(curves, note))
        if maps := [_map(*one) for panel in panels for one in _maps_of(panel, factor)]:
            yield Section("heat-maps", "k by locality", write.figures(maps))
        yield Section("reach", "Reach", write.reach(_reach(panels)))
        yield Section("evaluation", "All measurements", write.evaluation(_evaluation(rows)))
    yield Section("samples", "Sample sequences", write.samples(_samples(results), _OPEN_SAMPLES))
    runs = _configurations(results, states, page_folder, attention)
    yield Section("configurations", "Configurations", write.configurations(runs))
    found = _environment(results)
    yield Section("reproduce", "Environment and commands", write.reproduce(found, command, _again(results.folder)))


# --- the summary


def _run_states(rows: pl.DataFrame) -> dict[str, bool | None]:
    """Whether each run learned every condition that it was judged on; None if it was judged on none."""
    each = rows.unique(["run", "condition"], maintain_order=True)
    learned = pl.when(pl.col("learned").is_not_null().any()).then(pl.col("learned").all())
    return dict(each.group_by("run", maintain_order=True).agg(learned).iter_rows())


def _summary(
    results: ReportResults, panels: Sequence[Panel], states: Mapping[str, bool | None], factor: float
) -> dict[str, Any]:
    drops = [drop(panel.rows, panel.by, factor, measure=panel.measure) for panel in panels]
    thresholds = {config.evaluation.threshold for config in results.runs}
    judged = [learned for learned in states.values() if learned is not None]
    devices = devices_words(results.devices)
    notes = [f"{devices[:1].upper()}{devices[1:]}."] if devices else []
    if results.others:
        notes.append(f"Finished runs of other sweeps in this folder, which are not shown: {len(results.others)}.")
    labels = run_labels(results.runs)
    return {
        "runs": len(results.runs),
        "finished": len(states),
        "failed": len(results.failures),
        "learned": sum(judged),
        "judged": len(judged),
        "threshold": f"{thresholds.pop():g}" if len(thresholds) == 1 else "its threshold",
        "notes": notes,
        "panels": [_panel(panel, dropped) for panel, dropped in zip(panels, drops, strict=True)],
        "factor": f"{factor:g}",
        "confidence": f"{drops[0].confidence:.0%}" if drops else "",
        "failures": [(one.run.id, labels[one.run.id], one.reason, one.step) for one in results.failures],
    }


def _panel(panel: Panel, drops: Drop) -> dict[str, Any]:
    curve = _extrapolation(panel)
    trained = curve.trained if curve.same_training else None
    return {
        "title": panel.title,
        "trained": "differ by arm" if trained is None else " to ".join(str(end) for end in sorted(set(trained))),
        "measure": drops.measure.words,
        "also": panel.also,
        "drops": drop_table(drops),
        "pairs": [_pair(one) for one in comparisons_of(drops, panel.position)],
    }


def _pair(comparison: Comparison) -> tuple[Any, ...]:
    difference = comparison.difference
    interval = difference.interval
    less, more, estimate, low, high = difference.minus, difference.of, interval.estimate, interval.low, interval.high
    if estimate is not None and estimate < 0:
        less, more, estimate = more, less, -estimate
        low, high = None if high is None else -high, None if low is None else -low
    shown = None if estimate is None else number(estimate)
    expected = comparison.expected or "–"
    return less, more, expected, shown, signed_interval(low, high), difference.pairs, comparison.verdict


# --- the other sections


def _extrapolation(panel: Panel) -> ExtrapolationCurve:
    return extrapolation_curve(panel.rows, by=panel.by, measure=panel.measure)


def _curve(panel: Panel, curve: ExtrapolationCurve, looks: Mapping[str, Look]) -> tuple[str, Markup]:
    figure = curve.figure(looks)
    places = {str(line.get_label()): ax for ax in figure.axes for line in ax.lines}
    drawn = curve.frame().filter(pl.col("median").is_not_null()).iter_rows(named=True)
    points = [Point(places[row["arm"]], row["length"], row["median"], _value_words(row)) for row in drawn]
    return panel.title, Markup(figure_svg(figure, f"{panel.title}: {curve.finding}", points))


def _value_words(row: dict[str, Any]) -> str:
    band = "" if row["low"] is None else f" {signed_interval(row['low'], row['high'])}"
    runs = f"{row['used']} run{'s' if row['used'] != 1 else ''}"
    return f"{row['arm']}, length {row['length']}: {number(row['median'])}{band}, {runs}"


def _maps_of(panel: Panel, factor: float) -> Iterator[tuple[str, HeatMap]]:
    """One heat map for each value of the settings in which the arms differ, except k and locality."""
    if not {"task.k", "task.locality"} <= set(panel.rows.columns):
        return
    others = [name for name in panel.by if name not in ("task.k", "task.locality")]
    for arm in arms_of(panel.rows, others):
        # One cell is no map, and some tasks have no k.
        if arm.rows.drop_nulls(["task.k", "task.locality"]).select("task.k", "task.locality").n_unique() < 2:
            continue
        label = f"{panel.title}, {arm.label}" if others else panel.title
        yield label, heat_map(arm.rows, factor=factor, measure=panel.measure)


def _map(label: str, chart: HeatMap) -> tuple[str, Markup]:
    return label, Markup(figure_svg(chart.figure(), f"{label}: {chart.finding}"))


def _reach(panels: Sequence[Panel]) -> Iterator[tuple[Any, ...]]:
    for panel in panels:
        for arm in arms_of(panel.rows, panel.by):
            reach = reach_of(arm)
            each = ", ".join(f"{'≥ ' if censored else ''}{value}" for value, censored in reach.values)
            learned = f"{arm.learned} of {arm.runs}" if arm.judged else NOT_JUDGED
            yield arm.label, str(reach), learned, each or "–", reach.censored, panel.title


def _evaluation(rows: pl.DataFrame) -> pl.DataFrame:
    task = ["task.k", "task.locality", "task.rule", "task.marking", "model.position"]
    accuracy = ["accuracy", "accuracy_se", "chance_accuracy", "bayes_accuracy", "normalized_accuracy"]
    loss = ["normalized_accuracy_se", "exact_match", "loss", "loss_se", "bayes_loss", "excess_loss", "excess_loss_se"]
    state = ["length", "trained", "learned", "sequences"]
    wanted = ["run", "condition", *task, *seed_columns(rows), *state, *accuracy, *loss]
    shown = rows.select(name for name in wanted if name in rows.columns)
    return shown.rename(lambda name: name.removeprefix("task.").removeprefix("model.").replace("_", " "))


def _samples(results: ReportResults) -> Iterator[tuple[str, int, Markup]]:
    """Sequences of each task. A task of a run that failed is left out: it may be the reason, and fail here too."""
    failed = {failure.run.id for failure in results.failures}
    tasks: dict[str, tuple[Task, int | None]] = {}
    for config in results.runs:
        if config.id not in failed:
            for task in config.conditions.values():
                tasks.setdefault(str(task), (task, sample_length(config, task)))
    return sample_sequences(tasks.values(), _SAMPLES)


def _configurations(
    results: ReportResults, states: Mapping[str, bool | None], page_folder: Path, attention: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    failed = {failure.run.id for failure in results.failures}
    words = {True: "learned", False: "did not learn", None: NOT_JUDGED}
    labels = run_labels(results.runs)
    for config in results.runs:
        run = config.id
        # A relative address, so that the page needs no server.
        folder = os.path.relpath(results.folder / run, page_folder).replace(os.sep, "/")
        yield {
            "id": run,
            "state": "failed" if run in failed else words[states[run]] if run in states else "not finished",
            "label": labels[run],
            "link": f"{quote(folder)}/",
            "attention": attention.get(run),
            "short": config,
            "json": json.dumps(to_data(config), indent=1, sort_keys=True, ensure_ascii=False),
        }


def _environment(results: ReportResults) -> list[tuple[str, str]]:
    """Each value in the ``environment.json`` files of the runs. A run is good without one, or with a damaged one."""
    found: dict[str, dict[str, None]] = {}
    for config in results.runs:
        for name, value in (results.environment(config) or {}).items():
            inner = value.items() if isinstance(value, dict) else [(None, value)]
            for key, text in inner:
                found.setdefault(f"{name}: {key}" if key else name, {})[cell(text)] = None
    return [(name, " | ".join(values)) for name, values in found.items()]


def _again(folder: Path) -> str:
    """The commands that repeat the runs from their stored settings."""
    place = shlex.quote(str(folder))
    again = f"sparsity-lab sweep {place}/sweep.json --out ANOTHER_FOLDER"
    if not (folder / "sweep.json").is_file():
        again = f"sparsity-lab train {place}/RUN/config.json --out ANOTHER_FOLDER"
    return f"{again}\nsparsity-lab report {place}"
