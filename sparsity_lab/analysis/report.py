"""The report of a sweep: one page with what was seen in words, figures, tables, samples and exact configurations."""

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from sparsity_lab.analysis.drop import drop_table
from sparsity_lab.analysis.extrapolation import ExtrapolationCurve, extrapolation_curve
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.analysis.panels import panels_of, small_multiples
from sparsity_lab.analysis.reach import reach_of
from sparsity_lab.analysis.replicates import seed_columns
from sparsity_lab.analysis.report_page import Section, page
from sparsity_lab.analysis.report_summary import ReportResults, Seen, look_at, run_states, summary
from sparsity_lab.analysis.runs import NOT_JUDGED, arms_of, evaluation_rows
from sparsity_lab.analysis.style import Point, figure_svg
from sparsity_lab.generators import Stream, Task, sequence_html
from sparsity_lab.settings import to_data
from sparsity_lab.settings.markup import Markup, cell, details, element, join, number, signed_interval, table
from sparsity_lab.training import RunConfig, run_labels, store

__all__ = ["write_report"]

_SAMPLES = 3
_OPEN_SAMPLES = 6


def write_report(
    results: ReportResults,
    path: Path | str,
    *,
    title: str = "Extrapolation in length",
    command: str | None = None,
    factor: float = 4,
) -> Path:
    """Write the report of ``results`` as one HTML file that opens from disk and loads nothing.

    The same results give the same bytes. The file is written whole or not at all.

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
    text = page(title, list(_sections(results, command, factor, path.parent)))
    # A name may hold what UTF-8 cannot: half of a surrogate pair, from a file name or from JSON.
    return write_whole(path, text.encode(errors="backslashreplace"))


def _sections(results: ReportResults, command: str | None, factor: float, beside: Path) -> Iterator[Section]:
    finished = not results.frame("evaluation").is_empty()
    rows = evaluation_rows(results, by=("condition",)) if finished else pl.DataFrame()
    seen = [look_at(panel, factor) for panel in panels_of(rows)] if finished else []
    yield Section("summary", "Summary", summary(results, rows, seen, factor))
    if finished:
        yield Section("curves", "Extrapolation curves", _curves(seen))
        yield Section("drops", f"Drop at {factor:g} x the trained length", _drops(seen))
        if any(one.maps for one in seen):
            yield Section("heat-maps", "k by locality", _heat_maps(seen))
        yield Section("reach", "Reach", _reach(seen))
        yield Section("evaluation", "All measurements", _evaluation(rows))
    yield Section("samples", "Sample sequences", _samples(_unfailed(results)))
    yield Section("configurations", "Configurations", _configurations(results, rows, beside))
    yield Section("reproduce", "Environment and commands", _reproduce(command, results))


# --- sections


def _picture(caption: str, svg: str) -> Markup:
    return element("figure", element("figcaption", caption), element("div", Markup(svg), class_="picture"))


def _curves(seen: Sequence[Seen]) -> Markup:
    pictures = []
    for panel in (small for one in seen for small in small_multiples(one.panel)):
        curve = extrapolation_curve(panel.rows, by=panel.by, measure=panel.measure)
        ax = curve.plot()
        figure = ax.get_figure(root=True)
        assert figure is not None
        points = [Point(ax, row["length"], row["median"], _value_words(row)) for row in _drawn(curve)]
        pictures.append(_picture(panel.title, figure_svg(figure, f"Extrapolation curves: {panel.title}", points)))
    note = (
        "Lines are medians over the runs that learned. A band is the interval of that median by the order of the "
        "runs: with five or fewer it is their range, and the legend says how often such a band covers; a single run "
        "has none. Point at a mark to read its value."
    )
    return join([element("p", note, class_="note"), element("div", join(pictures), class_="figures")])


def _drawn(curve: ExtrapolationCurve) -> Iterator[dict[str, Any]]:
    """The marks of a curve."""
    return curve.frame().filter(pl.col("median").is_not_null()).iter_rows(named=True)


def _value_words(row: dict[str, Any]) -> str:
    band = "" if row["low"] is None else f" {signed_interval(row['low'], row['high'])}"
    runs = f"{row['used']} run{'s' if row['used'] != 1 else ''}"
    return f"{row['arm']}, length {row['length']}: {number(row['median'])}{band}, {runs}"


def _drops(seen: Sequence[Seen]) -> Markup:
    parts = []
    for one in seen:
        parts += [element("h3", one.panel.title), drop_table(one.drops)]
    return join(parts)


def _heat_maps(seen: Sequence[Seen]) -> Markup:
    pictures = []
    for one in seen:
        for label, chart in one.maps:
            figure = chart.plot().get_figure(root=True)
            assert figure is not None
            pictures.append(_picture(label, figure_svg(figure, f"Heat map: {label}")))
    return element("div", join(pictures), class_="figures")


def _reach(seen: Sequence[Seen]) -> Markup:
    rows = []
    for one in seen:
        for arm in arms_of(one.panel.rows, one.panel.by):
            reach = reach_of(arm)
            each = ", ".join(f"{'≥ ' if censored else ''}{value}" for value, censored in reach.values)
            counts = f"{arm.learned} of {arm.runs}" if arm.judged else NOT_JUDGED
            rows.append((arm.label, str(reach), counts, each or "–", reach.censored, one.panel.title))
    note = (
        "Reach is the largest evaluated length up to which a run stays at or above the threshold. “≥” marks a run "
        "that still held at the end of its grid, so that its true reach may be larger."
    )
    head = ["arm", "median reach", "learned", "each learned run", "held to the end", "panel"]
    return join([element("p", note, class_="note"), table(head, rows)])


def _evaluation(rows: pl.DataFrame) -> Markup:
    task = ["task.k", "task.locality", "task.rule", "task.marking", "model.position"]
    accuracy = ["accuracy", "accuracy_se", "chance_accuracy", "bayes_accuracy", "normalized_accuracy"]
    loss = ["normalized_accuracy_se", "exact_match", "loss", "loss_se", "bayes_loss", "excess_loss", "excess_loss_se"]
    wanted = [
        "run",
        "condition",
        *task,
        *seed_columns(rows),
        "length",
        "trained",
        "learned",
        "sequences",
        *accuracy,
        *loss,
    ]
    shown = rows.select(name for name in wanted if name in rows.columns)
    head = [name.removeprefix("task.").removeprefix("model.").replace("_", " ") for name in shown.columns]
    note = "Losses are in nats per scored target; “se” is the standard error over sequences of the column before."
    count = f"{shown.height} rows: run, condition and length"
    return join([element("p", note, class_="note"), details(count, table(head, shown.iter_rows()))])


def _unfailed(results: ReportResults) -> list[RunConfig]:
    """The runs that did not fail: a task may be the reason, and would fail here again."""
    failed = {failure.run.id for failure in results.failures}
    return [run for run in results.runs if run.id not in failed]


def _samples(runs: Sequence[RunConfig]) -> Markup:
    tasks: dict[str, tuple[Task, int]] = {}
    for config in runs:
        length = config.training.curriculum.range()[1]
        for task in config.conditions.values():
            tasks.setdefault(str(task), (task, length))
    parts: list[Markup] = [
        element(
            "p",
            "Framed tokens enter the rule; the answer stands after the arrow. Colors only repeat this.",
            class_="note",
        )
    ]
    for index, (name, (task, length)) in enumerate(tasks.items()):
        batch = task.sample(Stream(seed=0, name="sample"), 0, _SAMPLES, length)
        sequences = join([sequence_html(batch.view(row)) for row in range(len(batch))])
        if index < _OPEN_SAMPLES:
            heading = element("h3", element("code", name), f" at length {length}")
            parts += [heading, sequences]
        else:
            parts.append(details(element("code", name), sequences))
    return join(parts)


def _configurations(results: ReportResults, rows: pl.DataFrame, beside: Path) -> Markup:
    failed = {failure.run.id for failure in results.failures}
    learned = dict(run_states(rows).iter_rows()) if rows.width else {}
    words = {True: "learned", False: "never learned", None: NOT_JUDGED}
    labels = run_labels(results.runs)
    parts = []
    for config in results.runs:
        run = config.id
        state = "failed" if run in failed else words[learned[run]] if run in learned else "not finished"
        text = json.dumps(to_data(config), indent=1, sort_keys=True, ensure_ascii=False)
        label = [": ", element("code", labels[run])] if labels[run] else []
        summary = join([element("code", run), f" {state}", *label], "")
        folder = element("p", "Files: ", element("a", f"{run}/", href=_link(results.folder / run, beside)))
        short = element("p", element("code", config))
        parts.append(details(summary, folder, short, element("pre", text)))
    note = (
        "Every run with its id and what tells it from the others; opened, the folder of its files, its short form "
        "(defaults left out) and all its settings as JSON."
    )
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
    if command is not None:
        parts += [element("p", "The command that made this:"), element("pre", command)]
    folder = shlex.quote(str(results.folder))
    again = f"sparsity-lab sweep {folder}/sweep.json --out ANOTHER_FOLDER"
    words = "The sweep is in the folder of the runs, so that these make it again, and this page from what is there:"
    if not (results.folder / "sweep.json").is_file():
        again = f"sparsity-lab train {folder}/RUN/config.json --out ANOTHER_FOLDER"
        words = "Every run's configuration is in its folder, so that these make a run again, and this page:"
    parts += [element("p", words), element("pre", f"{again}\nsparsity-lab report {folder}")]
    return join(parts)


def _link(folder: Path, beside: Path) -> str:
    """The way from the page to a folder, as a link that needs no server."""
    relative = os.path.relpath(folder, beside).replace(os.sep, "/")
    return quote(relative) + "/"


def _environment_values(results: ReportResults) -> Iterator[tuple[str, str]]:
    """Name and value of all that the runs' ``environment.json`` say."""
    for config in results.runs:
        # Without it, or with a damaged one, a run is as good as before.
        recorded = store.read_environment(results.folder / config.id) or {}
        for name, value in recorded.items():
            inner = value.items() if isinstance(value, dict) else [(None, value)]
            for key, text in inner:
                yield f"{name}: {key}" if key else name, cell(text)
