"""Result pages in Markdown."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from sparsity_lab.settings import counted
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.training import Evaluation

if TYPE_CHECKING:
    from sparsity_lab.studies.study import Study

FRONT_TITLE = "# Results"
"""The first line of the table of all claims."""

_SPREAD = (
    "Cells hold the mean over seeds, with the smallest and the largest value in brackets. Runs that never learned "
    "are included. If an arm has such runs, its name says how many learned: reached a normalized accuracy of at "
    f"least {Evaluation.threshold:g} at all trained lengths."
)


def page(study: "Study", evidence: Evidence, data: dict[str, Any], figure: str, notes: str) -> str:
    """The page of one study: question, verdicts, figure (a file name), measurements, rules, notes, and how it was
    made."""
    facts = data["run"]
    primary = [one for one in data["claims"] if one["primary"]]
    others = [one for one in data["claims"] if not one["primary"]]
    parts = [
        f"# {study.title}",
        study.question,
        "## What was found",
        *([_verdicts(primary), _PRIMARY] if primary else []),
        *(["### Exploratory claims", _verdicts(others), _EXPLORATORY] if others else []),
        _ESTIMATES,
        *(f"- *{one['id']}*: {one['detail']}" for one in data["claims"] if one["detail"]),
        f"![{data['finding']}]({figure})",
        _LINES,
        "## Measurements",
        *([_SPREAD] if study.columns else []),
        *_measurements(study, evidence.rows),
        *_more_tables(study, evidence),
        _learned(data["arms"]),
        "## Rules, fixed before the runs" if not facts.get("rules_after_runs") and facts.get("rules") else "## Rules",
        *_changes(data),
        *(f"- **{one['id']}** (source: {one['source']}). {one['rule']}" for one in data["claims"]),
        *(["## Notes", notes.strip()] if notes else []),
        "## How it was made",
        _made(facts),
    ]
    return "\n\n".join(parts) + "\n"


def first_verdict(title: str, claims: Sequence[dict[str, Any]]) -> str:
    """A summary of a study: its first primary claim with verdict and estimate, and the number of primary claims by
    verdict."""
    primary = [one for one in claims if one["primary"]]
    if not primary:
        return title
    first, counts = primary[0], Counter(one["verdict"] for one in primary)
    estimate = "" if first["estimate"] is None else f" ({estimate_words(first)})"
    words = f"{first['verdict'].capitalize()}{estimate}: {first['statement']}"
    if len(primary) == 1:
        return words
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"{words} Primary claims: {verdicts}."


_PRIMARY = (
    "Seeds are added until the primary claims are decided. They are judged together, at a false discovery rate of 5 "
    "% in each direction. That rate holds however often one looks at the results."
)
_EXPLORATORY = "No seeds are added for exploratory claims. Each is judged alone, at 5 %."
_LINES = (
    "A line is the median over seeds. If an optimum is known, only seeds that learned count. Fewer than ten seeds "
    "are also drawn as thin lines. For ten or more, a band goes from the smallest to the largest."
)
_ESTIMATES = (
    "Brackets hold the 90 % confidence sequence, which covers the true value at all looks together. If a claim held "
    "or did not hold, its bound is outside the brackets. The three e-values are the evidence that the claim holds, "
    "that it does not, and that the effect is too small to matter."
)


def _verdicts(claims: Sequence[dict[str, Any]]) -> str:
    return _table(
        ["claim", "verdict", "estimate", "seeds", "e-values"],
        (
            [
                one["statement"],
                f"**{one['verdict']}**{_why_not(one)}",
                estimate_words(one),
                one["seeds"],
                " / ".join(f"{value:.3g}" for value in one["e_values"]),
            ]
            for one in claims
        ),
    )


def _why_not(claim: dict[str, Any]) -> str:
    """The reason why a claim is not decided, and the seeds that it needs; empty for decided claims."""
    if claim["verdict"] != "not decided":
        return ""
    if claim["cannot_tell"]:
        return f": {claim['cannot_tell']}"
    if claim["more_seeds"] is None:
        return ""
    minutes = claim["more_core_minutes"]
    cost = "" if minutes is None else f", {counted(max(1, round(minutes)), 'core-minute')}"
    return f": about {counted(claim['more_seeds'], 'more seed')}{cost}"


def _changes(data: dict[str, Any]) -> Iterator[str]:
    """Notes on rules that were not fixed before the runs."""
    if data["run"].get("rules_after_runs") or not data["run"].get("rules"):
        yield "These rules were written after the first runs."
        return
    changed = [one["id"] for one in data["claims"] if one["rule_changed"]]
    if changed:
        yield f"**Changed or added after the first run:** {', '.join(changed)}."


def front_page(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The table of all claims and the costs of the studies, from the folder and the record of each study."""

    def rows(primary: bool) -> list[list[str]]:
        return [
            [
                one["statement"],
                f"**{one['verdict']}**{_why_not(one)}",
                estimate_words(one),
                f"[{result['title']}]({folder}/result.md)",
            ]
            for folder, result in results
            for one in result["claims"]
            if one["primary"] is primary
        ]

    parts = [
        FRONT_TITLE,
        "These claims are tested at a scale that fits two processor cores. Each study is a folder: `study.py` says "
        "what is run and how claims are decided, `notes.md` says what was tried, and `result.md` has the results. "
        "`sparsity-lab decide FOLDER` adds seeds until the primary claims of a study are decided. Every page is "
        "rendered from the frames next to it. `sparsity-lab report --check` renders it again and compares. Claims "
        "that did not hold are listed too.",
        "## Primary claims",
        _table(["claim", "verdict", "estimate", "study"], rows(True)),
        "## What the studies cost",
        "In core-minutes: one run of each arm, all runs so far, and, if it can be estimated, the runs that undecided "
        "primary claims still need.",
        _table(["study", "one of each arm", "so far", "still"], [_costs(*one) for one in results]),
        "## Exploratory claims",
        _EXPLORATORY,
        _table(["claim", "verdict", "estimate", "study"], rows(False)),
    ]
    return "\n\n".join(parts) + "\n"


def _costs(folder: str, result: dict[str, Any]) -> list[str]:
    each = [arm["core_minutes"] for arm in result["arms"].values()]
    open_claims = [one for one in result["claims"] if one["primary"] and one["verdict"] == "not decided"]
    still = [one["more_core_minutes"] for one in open_claims]
    return [
        f"[{result['title']}]({folder}/result.md)",
        "–" if None in each else f"{sum(each):.0f}",
        f"{result['run'].get('core_minutes', 0):.0f}",
        "–" if None in still else f"{sum(still):.0f}",
    ]


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
    """The number of runs of an arm that learned this condition, in words; empty if all did."""
    runs = rows.unique("run")["learned"].drop_nulls()
    return "" if runs.all() else f" ({runs.sum()} of {len(runs)} learned)"


def _more_tables(study: "Study", evidence: Evidence) -> Iterator[str]:
    """The study's own tables, each with its title."""
    for title, frame in (study.tables(evidence) if study.tables else {}).items():
        yield f"### {title}"
        yield _table(frame.columns, ([_cell(value) for value in row] for row in frame.iter_rows()))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(value, 3) + 0.0:.3f}" if isinstance(value, float) else str(value)


def _spread(values: pl.Series) -> str:
    numbers: list[float] = values.drop_nulls().to_list()
    if not numbers:
        return "–"
    mean = sum(numbers) / len(numbers)
    return f"{mean:.3f} [{min(numbers):.3f}, {max(numbers):.3f}]" if len(numbers) > 1 else f"{mean:.3f}"


def estimate_words(claim: dict[str, Any]) -> str:
    """The estimate of a claim with its confidence sequence and unit."""
    if claim["estimate"] is None:
        return "–"
    ends = f" [{claim['low']:.3f}, {claim['high']:.3f}]" if claim["low"] is not None else ""
    return f"{claim['estimate']:.3f}{ends} {claim['unit']}"


def _learned(arms: dict[str, dict[str, Any]]) -> str:
    judged = [(arm, one["learned"], one["seeds"]) for arm, one in arms.items() if one["learned"] is not None]
    if not judged:
        return "No optimum is declared, so it is not known whether a run learned its task."
    return _table(["arm", "runs that learned (with several k: at least one)", "seeds"], judged)


_OTHER_DEVICES = "Runs were made on different kinds of device ({}), so small differences can be due to that."


def _made(facts: dict[str, Any]) -> str:
    failed, kinds = facts.get("failed", []), facts.get("environment", {}).get("devices", [])
    lines = [
        f"`{facts.get('command', 'not recorded')}`",
        f"{facts.get('planned_runs', '?')} runs, {facts.get('core_minutes', '?')} core-minutes of training and "
        f"evaluation, {len(failed)} failed.",
        *(f"- `{one['run']}` failed: {one['reason']}" for one in failed),
        *([_OTHER_DEVICES.format("; ".join(kinds))] if len(kinds) > 1 else []),
    ]
    return "\n\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '¦') for cell in line)} |" for line in lines)
