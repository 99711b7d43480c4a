"""The pages of results, as Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.training import Evaluation

if TYPE_CHECKING:
    from sparsity_lab.studies.study import Study

__all__ = ["FRONT_TITLE", "front_page", "page"]

FRONT_TITLE = "# Results"
"""How the table of all claims begins."""

_SPREAD = (
    "Mean over seeds, and the smallest and largest in brackets: of all runs, of those that never learned too. Where "
    "there are such, the arm says how many learned: reached a normalized accuracy of "
    f"{Evaluation.threshold:g} at all trained lengths."
)


def page(study: "Study", evidence: Evidence, data: dict[str, Any], figure: str, notes: str) -> str:
    """One study: question, verdicts, figure (the name of its file), measurements, rules, notes, how it was made."""
    facts = data["run"]
    parts = [
        f"# {study.title}",
        study.question,
        "## What was found",
        _table(
            ["claim", "verdict", "estimate", "mean over"],
            ([one["statement"], f"**{one['verdict']}**", _estimate(one), _over(one)] for one in data["claims"]),
        ),
        "Estimates are means over what the last column counts, with Student's 95 % interval in brackets; a single "
        "value has none.",
        *(f"- *{one['claim']}*: {one['detail']}" for one in data["claims"] if one["detail"]),
        f"![{study.title}]({figure})",
        "## Measurements",
        *([_SPREAD] if study.columns else []),
        *_measurements(study, evidence.rows),
        *_more_tables(study, evidence),
        _learned(data["arms"]),
        "## Rules, fixed before the runs",
        *(f"- **{one['claim']}** (claim of: {one['source']}). {one['rule']}" for one in data["claims"]),
        *(["## Notes", notes.strip()] if notes else []),
        "## How it was made",
        _made(facts),
    ]
    return "\n\n".join(parts) + "\n"


def front_page(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The table of all claims, from the folder and the record of each study."""
    rows = [
        [
            one["statement"],
            f"**{one['verdict']}**",
            _estimate(one),
            f"[{result['title']}]({folder}/result.md)",
        ]
        for folder, result in results
        for one in result["claims"]
    ]
    parts = [
        FRONT_TITLE,
        "Claims tested at a scale that two processor cores can carry. Each study is a folder here: `study.py` says "
        "what is run and how claims are decided, `notes.md` what was tried, `result.md` what came of it. "
        "`sparsity-lab sweep FOLDER` runs a study. Every page is rendered from the frames beside it, and "
        "`sparsity-lab report --check` does it again and compares. Rules were fixed before the runs; what did not "
        "hold stays in.",
        _table(["claim", "verdict", "estimate", "study"], rows),
    ]
    return "\n\n".join(parts) + "\n"


def _measurements(study: "Study", rows: pl.DataFrame) -> list[str]:
    """A table for each condition and measure: arms by lengths."""
    parts = []
    for (condition,), part in rows.partition_by("condition", as_dict=True, maintain_order=True).items():
        lengths = sorted(part["length"].unique().to_list())
        trained = set(part.filter("trained")["length"].to_list())
        for measure in study.columns:
            if measure not in part.columns or part[measure].count() == 0:
                continue
            title = measure.replace("_", " ") + ("" if condition == "trained" else f", {condition}")
            head = [f"{title} at length", *(f"{length}{' (trained)' * (length in trained)}" for length in lengths)]
            body = [
                [
                    arm + _learned_words(own),
                    *(_spread(own.filter(pl.col("length") == length)[measure]) for length in lengths),
                ]
                for (arm,), own in part.partition_by("arm", as_dict=True, maintain_order=True).items()
            ]
            parts.append(_table(head, body))
    return parts


def _learned_words(rows: pl.DataFrame) -> str:
    """How many runs of an arm learned this condition, if not all did."""
    runs = rows.unique("run")["learned"].drop_nulls()
    return "" if runs.all() else f" ({runs.sum()} of {len(runs)} learned)"


def _more_tables(study: "Study", evidence: Evidence) -> Iterator[str]:
    """The study's own tables, each under its title."""
    for title, frame in (study.tables(evidence) if study.tables else {}).items():
        yield f"### {title}"
        yield _table(frame.columns, ([_cell(value) for value in row] for row in frame.iter_rows()))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    # Without the sign of what rounds to zero.
    return f"{round(value, 3) + 0.0:.3f}" if isinstance(value, float) else str(value)


def _spread(values: pl.Series) -> str:
    numbers: list[float] = values.drop_nulls().to_list()
    if not numbers:
        return "–"
    mean = sum(numbers) / len(numbers)
    return f"{mean:.3f} [{min(numbers):.3f}, {max(numbers):.3f}]" if len(numbers) > 1 else f"{mean:.3f}"


def _estimate(claim: dict[str, Any]) -> str:
    if claim["estimate"] is None:
        return "–"
    ends = f" [{claim['low']:.3f}, {claim['high']:.3f}]" if claim["low"] is not None else ""
    return f"{claim['estimate']:.3f}{ends} {claim['unit']}"


def _over(claim: dict[str, Any]) -> str:
    words = claim["over"].removesuffix("s") if claim["count"] == 1 else claim["over"]
    return f"{claim['count']} {words}" if claim["count"] else "–"


def _learned(arms: dict[str, dict[str, Any]]) -> str:
    judged = [(arm, one["learned"], one["seeds"]) for arm, one in arms.items() if one["learned"] is not None]
    if not judged:
        return "Whether a run learned its task cannot be said: no optimum is declared."
    return _table(["arm", "runs that learned (of several k, any)", "seeds"], judged)


def _made(facts: dict[str, Any]) -> str:
    failed = facts.get("failed", [])
    lines = [
        f"`{facts.get('command', 'not recorded')}`",
        f"{facts.get('planned_runs', '?')} runs, {facts.get('core_minutes', '?')} core minutes of training and "
        f"evaluation, {len(failed)} failed.",
        *(f"- `{one['run']}` failed: {one['reason']}" for one in failed),
    ]
    return "\n\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '¦') for cell in line)} |" for line in lines)
