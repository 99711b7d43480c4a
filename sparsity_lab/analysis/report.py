"""The report of a sweep: one page with what was seen in words, figures, tables, samples and exact configurations."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from sparsity_lab.analysis.drop import Drop, drop, drop_table
from sparsity_lab.analysis.extrapolation import ExtrapolationCurve, extrapolation_curve, reach_of
from sparsity_lab.analysis.heatmap import HeatMap, heat_map
from sparsity_lab.analysis.markup import Markup, cell, details, element, join, signed_interval, table
from sparsity_lab.analysis.panels import Panel, panels_of, small_multiples
from sparsity_lab.analysis.report_page import Section, page
from sparsity_lab.analysis.runs import SEEDS, Frames, arms_of, evaluation_rows
from sparsity_lab.analysis.samples import sequence_html
from sparsity_lab.analysis.style import figure_svg
from sparsity_lab.analysis.words import comparison_words, comparisons_of, counts_words, drop_words, listed
from sparsity_lab.generators import Stream, Task
from sparsity_lab.settings import SettingError, to_data
from sparsity_lab.training import RunConfig, store

__all__ = ["write_report"]

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


class ReportResults(Frames, Protocol):
    """What a report needs of ``sweeps.Results``: configs of all runs in their order, those that failed, the store."""

    @property
    def runs(self) -> Sequence[RunConfig]: ...
    @property
    def failures(self) -> Sequence[Failed]: ...
    @property
    def folder(self) -> Path: ...


@dataclass(frozen=True)
class _Seen:
    """A panel with what was computed for it."""

    panel: Panel
    curve: ExtrapolationCurve
    drops: Drop
    maps: tuple[tuple[str, HeatMap], ...]


def write_report(
    results: ReportResults,
    path: Path | str,
    *,
    title: str = "Extrapolation in length",
    command: str | None = None,
    factor: float = 4,
) -> Path:
    """Write the report of ``results`` as one HTML file that opens from disk and loads nothing.

    The same results give the same bytes.

    Args:
        path: the file; its folder must exist.
        title: of the page.
        command: what reproduces the results, as typed.
        factor: the ratio of lengths at which drops and heat maps are taken.

    Returns:
        The path.

    Raises:
        SettingError: the file cannot be written.
    """
    path = Path(path)
    text = page(title, list(_sections(results, command, factor)))
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise SettingError("path", "a file that can be written", f"{path} ({error.strerror})") from None
    return path


def _sections(results: ReportResults, command: str | None, factor: float) -> Iterator[Section]:
    finished = not results.frame("evaluation").is_empty()
    rows = evaluation_rows(results, by=("condition",)) if finished else pl.DataFrame()
    seen = [_look_at(panel, factor) for panel in panels_of(rows)] if finished else []
    yield Section("summary", "Summary", _summary(results, rows, seen, factor))
    if finished:
        yield Section("curves", "Extrapolation curves", _curves(seen))
        yield Section("drops", f"Drop at {factor:g} x the trained length", _drops(seen))
        if any(one.maps for one in seen):
            yield Section("heat-maps", "k by locality", _heat_maps(seen))
        yield Section("reach", "Reach", _reach(seen))
        yield Section("evaluation", "All measurements", _evaluation(rows))
    yield Section("samples", "Sample sequences", _samples(results.runs))
    yield Section("configurations", "Configurations", _configurations(results, rows))
    yield Section("reproduce", "Environment and command", _reproduce(command, results))


def _look_at(panel: Panel, factor: float) -> _Seen:
    curve = extrapolation_curve(panel.rows, by=panel.by)
    return _Seen(panel, curve, drop(panel.rows, panel.by, factor), tuple(_maps_of(panel, factor)))


def _maps_of(panel: Panel, factor: float) -> Iterator[tuple[str, HeatMap]]:
    """One heat map for each value of what the arms differ in besides k and locality."""
    if not {"task.k", "task.locality"} <= set(panel.rows.columns):
        return
    others = [name for name in panel.by if name not in ("task.k", "task.locality")]
    for arm in arms_of(panel.rows, others):
        label = f"{panel.title}, {arm.label}" if others else panel.title
        yield label, heat_map(arm.rows, factor=factor)


# --- sections


def _summary(results: ReportResults, rows: pl.DataFrame, seen: Sequence[_Seen], factor: float) -> Markup:
    failed, finished = len(results.failures), rows["run"].n_unique() if rows.width else 0
    unfinished = len(results.runs) - failed - finished
    if not finished:
        return join([element("p", counts_words(0, 0, failed, unfinished), class_="lead"), _failures(results)])
    judged = rows.unique(["run", "condition"])
    # A run counts as learned if it learned every condition that it was evaluated on.
    learned = judged.group_by("run").agg(pl.col("learned").fill_null(False).all())["learned"].sum()
    thresholds = {config.evaluation.threshold for config in results.runs}
    threshold = thresholds.pop() if len(thresholds) == 1 else None
    parts: list[Markup] = [
        element("p", counts_words(finished, int(learned), failed, unfinished, threshold), class_="lead")
    ]
    for one in seen:
        parts.append(element("h3", one.panel.title))
        parts.append(element("ul", join([element("li", words) for words in _panel_words(one, factor)])))
    parts.append(
        element(
            "p",
            f"A drop is the normalised accuracy at the largest trained length minus that at the evaluated length "
            f"nearest to {factor:g} times it, within one run. Numbers in brackets are {seen[0].drops.confidence:.0%} "
            "Student intervals over seeds; with few seeds they are wide, and where all seeds agree exactly they have "
            "no width, which is no proof of certainty. They are not corrected for the number of comparisons on this "
            "page.",
            class_="note",
        )
    )
    return join([*parts, _failures(results)])


def _panel_words(one: _Seen, factor: float) -> Iterator[str]:
    position = one.panel.position
    reaches = dict(one.curve.summary().select("arm", "reach").iter_rows())
    for row in one.drops.frame().iter_rows(named=True):
        yield drop_words(row, position, factor, reaches[row["arm"]])
    for comparison in comparisons_of(one.drops, position):
        yield comparison_words(comparison, position)
    if one.panel.beside:
        yield f"These arms also differ in {listed(one.panel.beside)}, so a difference may be due to that."


def _failures(results: ReportResults) -> Markup:
    if not results.failures:
        return Markup("")
    rows = [(failed.run.id, failed.reason, failed.step, str(failed.run)) for failed in results.failures]
    return join([element("h3", "Failed runs"), table(["run", "reason", "step", "configuration"], rows)])


def _picture(caption: str, svg: str) -> Markup:
    return element("figure", element("figcaption", caption), element("div", Markup(svg), class_="picture"))


def _curves(seen: Sequence[_Seen]) -> Markup:
    pictures = []
    for panel in (small for one in seen for small in small_multiples(one.panel)):
        figure = extrapolation_curve(panel.rows, by=panel.by).figure()
        pictures.append(_picture(panel.title, figure_svg(figure, f"Extrapolation curves: {panel.title}")))
    note = (
        "Lines are medians over the runs that learned, bands are percentile bootstraps of the median over them. "
        "With two or three runs a band is close to their range; a single run has none."
    )
    return join([element("p", note, class_="note"), element("div", join(pictures), class_="figures")])


def _drops(seen: Sequence[_Seen]) -> Markup:
    parts: list[Markup] = []
    for one in seen:
        parts += [element("h3", one.panel.title), drop_table(one.drops)]
        rows = []
        for comparison in comparisons_of(one.drops, one.panel.position):
            difference = comparison.difference
            interval = difference.interval
            shown = "–" if interval.estimate is None else signed_interval(interval.low, interval.high)
            verdict = "undecided" if difference.pairs else "not comparable"
            if interval.decided and interval.estimate is not None:
                verdict = "drops more" if interval.estimate > 0 else "drops less"
            rows.append((difference.of, difference.minus, interval.estimate, shown, difference.pairs, verdict))
        if rows:
            head = ["arm", "minus", "difference", "interval", "paired seeds", "the first"]
            parts.append(table(head, rows, digits=2))
    return join(parts)


def _heat_maps(seen: Sequence[_Seen]) -> Markup:
    pictures = []
    for one in seen:
        for label, chart in one.maps:
            figure = chart.plot().get_figure(root=True)
            assert figure is not None
            pictures.append(_picture(label, figure_svg(figure, f"Heat map: {label}")))
    return element("div", join(pictures), class_="figures")


def _reach(seen: Sequence[_Seen]) -> Markup:
    rows = []
    for one in seen:
        for arm in arms_of(one.panel.rows, one.panel.by):
            reach = reach_of(arm)
            each = ", ".join(f"{'≥ ' if censored else ''}{value}" for value, censored in reach.values)
            counts = f"{arm.learned} of {arm.runs}"
            rows.append((arm.label, str(reach), counts, each or "–", reach.censored, one.panel.title))
    note = (
        "Reach is the largest evaluated length up to which a run stays at or above the threshold. “≥” marks a run "
        "that still held at the end of its grid, so that its true reach may be larger."
    )
    head = ["arm", "median reach", "learned", "each learned run", "held to the end", "panel"]
    return join([element("p", note, class_="note"), table(head, rows)])


def _evaluation(rows: pl.DataFrame) -> Markup:
    task = ["task.k", "task.locality", "task.rule", "task.marking", "model.position"]
    accuracy = ["accuracy", "accuracy_se", "chance_accuracy", "bayes_accuracy", "normalised_accuracy"]
    loss = ["normalised_accuracy_se", "exact_match", "loss", "loss_se", "bayes_loss", "excess_loss", "excess_loss_se"]
    wanted = ["run", "condition", *task, *SEEDS, "length", "trained", "learned", "sequences", *accuracy, *loss]
    shown = rows.select(name for name in wanted if name in rows.columns)
    head = [name.removeprefix("task.").removeprefix("model.").replace("_", " ") for name in shown.columns]
    note = "Losses are in nats per scored target; “se” is the standard error over sequences of the column before."
    count = f"{shown.height} rows: run, condition and length"
    return join([element("p", note, class_="note"), details(count, table(head, shown.iter_rows()))])


def _samples(runs: Sequence[RunConfig]) -> Markup:
    tasks: dict[str, tuple[Task, int]] = {}
    for config in runs:
        length = config.training.curriculum.range()[1]
        for task in config.conditions.values():
            tasks.setdefault(str(task), (task, length))
    parts: list[Markup] = [
        element(
            "p",
            "Framed tokens enter the rule; the answer stands after the arrow. Colours only repeat this.",
            class_="note",
        )
    ]
    for index, (name, (task, length)) in enumerate(tasks.items()):
        batch = task.sample(Stream(seed=0, name="sample"), 0, _SAMPLES, length)
        sequences = join([sequence_html(task, batch, row) for row in range(len(batch))])
        if index < _OPEN_SAMPLES:
            heading = element("h3", element("code", name), f" at length {length}")
            parts += [heading, sequences]
        else:
            parts.append(details(element("code", name), sequences))
    return join(parts)


def _configurations(results: ReportResults, rows: pl.DataFrame) -> Markup:
    failed = {failure.run.id for failure in results.failures}
    learned = set(rows.filter(pl.col("learned"))["run"]) if rows.width else set()
    evaluated = set(rows["run"]) if rows.width else set()
    parts = []
    for config in results.runs:
        run = config.id
        state = (
            "failed" if run in failed
            else "learned" if run in learned
            else "never learned" if run in evaluated
            else "not finished"
        )  # fmt: skip
        text = json.dumps(to_data(config), indent=1, sort_keys=True, ensure_ascii=False)
        summary = join([element("code", run), f" {state}: ", element("code", config)], "")
        parts.append(details(summary, element("pre", text)))
    note = "Every run with its id, its short form (defaults left out) and, opened, all its settings as JSON."
    return join([element("p", note, class_="note"), *parts])


def _reproduce(command: str | None, results: ReportResults) -> Markup:
    parts: list[Markup] = []
    found: dict[str, list[str]] = {}
    for name, value in _environment_values(results):
        if value not in found.setdefault(name, []):
            found[name].append(value)
    if found:
        parts.append(table(["environment", "of these runs"], [(name, " | ".join(v)) for name, v in found.items()]))
    else:
        parts.append(element("p", "The environment was not recorded.", class_="note"))
    if command is None:
        words = "The command was not recorded. The configurations above are complete and give the same runs."
        parts.append(element("p", words, class_="note"))
    else:
        parts += [element("p", "The command that reproduces this:"), element("pre", command)]
    return join(parts)


def _environment_values(results: ReportResults) -> Iterator[tuple[str, str]]:
    """Name and value of all that the runs' ``environment.json`` say."""
    for config in results.runs:
        file = results.folder / config.id / store.ENVIRONMENT
        if not file.exists():
            continue
        for name, value in json.loads(file.read_text(encoding="utf-8")).items():
            inner = value.items() if isinstance(value, dict) else [(None, value)]
            for key, text in inner:
                yield f"{name}: {key}" if key else name, cell(text)
