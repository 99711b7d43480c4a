"""The files of a result: written once from runs, then rendered again from the committed frames to check them.

The folder of a study has ``rows.parquet`` and, if it measures something beyond the evaluation, ``measures.parquet``.
It also has ``result.json`` with arms, estimates, rules and verdicts, ``result.svg``, the figure, and ``result.md``,
the page. These three are made from the frames, the facts about the runs in the JSON, and ``notes.md``, which people
write. In a folder of studies, ``README.md`` is the table of all claims.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sparsity_lab.analysis import figure_svg, titled
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.settings import SettingError, Shown, read_whole
from sparsity_lab.studies.agreement import agree
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.studies.loading import load_study, results_folder, studies_in
from sparsity_lab.studies.outlook import core_minutes_of_a_seed, outlook, total_core_minutes
from sparsity_lab.studies.page import FRONT_TITLE, first_verdict, front_page, page
from sparsity_lab.studies.rules import came_after_runs, changed_rules, fixed_rules
from sparsity_lab.studies.study import Size, Study
from sparsity_lab.sweeps import Results, Sweep
from sparsity_lab.training import store
from sparsity_lab.training.environment import devices_of
from sparsity_lab.training.files import MOST_BYTES
from sparsity_lab.training.folder import RunFolder

ROWS, MEASURES, RECORD, FIGURE, PAGE = "rows.parquet", "measures.parquet", "result.json", "result.svg", "result.md"
_MOST_BYTES, _MOST_VALUES = 2**28, 2**26
"""The limits of a frame."""
NOTES, FRONT_PAGE = "notes.md", "README.md"


@dataclass(frozen=True)
class FoundResult:
    """The contents of the folder of a result.

    Attributes:
        evidence: the frames; None if there are none.
        facts: facts about the runs that are not in the rows.
    """

    evidence: Evidence | None
    facts: Mapping[str, Any]


def read_found(study: Study, folder: Path) -> FoundResult:
    """The contents of the folder of a result, with frames of the same runs.

    Raises:
        SettingError: the frames cannot be read, or the study's measures are missing.
    """
    rows = read_rows(folder / ROWS)
    if rows is None:
        return FoundResult(None, {})
    record = folder / RECORD
    facts = read_record(record)["run"] if record.is_file() else {}
    if study.measure is None:
        return FoundResult(Evidence(rows), facts)
    measures = read_rows(folder / MEASURES)
    if measures is None:
        raise SettingError(str(folder / MEASURES), f"no such file; it belongs to {ROWS}")
    # If a writer was stopped between the two files, there are measures of runs that have no rows yet.
    return FoundResult(Evidence(rows, measures.filter(pl.col("run").is_in(rows["run"].unique().to_list()))), facts)


def read_record(file: Path) -> dict[str, Any]:
    """The contents of ``result.json``: the claims, and facts about the runs that are not in the rows.

    Raises:
        SettingError: it cannot be read, or is damaged.
    """
    content = read_whole(file, MOST_BYTES)
    try:
        record: dict[str, Any] = json.loads(content)
        claims = all({"primary", "verdict"} <= one.keys() for one in record["claims"])
        whole = claims and isinstance(record["run"], dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise SettingError(str(file), "the record of the result is damaged")
    return record


def write_found(study: Study, found: FoundResult, folder: Path, *, pages: bool = True) -> None:
    """Write frames and record into the folder of a result, and with ``pages`` also the figure and the page.

    Raises:
        SettingError: a file cannot be written.
    """
    assert found.evidence is not None
    folder.mkdir(parents=True, exist_ok=True)
    if found.evidence.measures is not None:
        write_whole(folder / MEASURES, _parquet(found.evidence.measures))
    write_whole(folder / ROWS, _parquet(found.evidence.rows))
    data = record(study, found.evidence, found.facts)
    write_whole(folder / RECORD, _json(data).encode())
    if pages:
        for name, text in _pages(study, found.evidence, data, folder).items():
            write_whole(folder / name, text.encode())


def extended(study: Study, results: Results, size: Size, before: FoundResult, command: str) -> FoundResult:
    """The earlier result, extended by the runs that have finished since.

    Raises:
        SettingError: there are no finished runs and no earlier result.
    """
    evidence = study.evidence(results, size, before.evidence)
    return FoundResult(evidence, _facts(study, results, size, command, before, evidence))


def write_result(study: Study, results: Results, size: Size, folder: Path, command: str = "not recorded") -> Path:
    """Write all files of a result into a folder, which can contain notes. Returns the path of the page. Rows of runs
    that are no longer in the folder of ``results`` are kept if the study still has these runs.

    >>> study = load_study("tiny_study")
    >>> finished = run_sweep(study.sweep("small"), "runs_of_tiny", Serial())
    >>> write_result(study, finished, "small", Path("result")).name
    'result.md'

    Args:
        command: the command that made the runs, to show on the page.

    Raises:
        SettingError: there are no finished runs, or a file cannot be written.
    """
    before = _without(read_found(study, folder), study, size, results)
    write_found(study, extended(study, results, size, before, command), folder)
    return folder / PAGE


def _without(found: FoundResult, study: Study, size: Size, results: Results) -> FoundResult:
    """The part of a result for runs of this size that the study still has, but that are no longer in the runs'
    folder."""
    if found.evidence is None or found.facts.get("size") != size:
        return FoundResult(None, {})
    rows = found.evidence.rows
    arms = study.arms(size)
    kept = [
        run
        for arm, seed, run in rows.select("arm", "seed", "run").unique().iter_rows()
        if arm in arms and arms[arm].run(seed).id == run and not (results.folder / run / store.FINISHED).is_file()
    ]
    if not kept:
        fixed = ("size", "rules", "rules_after_runs")
        return FoundResult(None, {name: found.facts[name] for name in fixed if name in found.facts})
    of = pl.col("run").is_in(kept)
    measures = found.evidence.measures
    return FoundResult(Evidence(rows.filter(of), None if measures is None else measures.filter(of)), found.facts)


def check_results(path: Path) -> list[str]:
    """Names of the files that are missing, or do not ``agree`` with the files rendered from the committed frames.

    >>> check_results(Path("tiny_study"))
    []

    Args:
        path: a study, or a folder of studies with the table of all claims.

    Raises:
        SettingError: a study cannot be loaded, or no study has a result.
    """
    rendered, wrong = _rendered_again(path)
    return wrong + [str(file) for file, text in rendered.items() if not _holds(file, text)]


def render_results(path: Path) -> list[str]:
    """Render all pages again from the committed frames. Returns the names of the files that changed. The frames, and
    the facts about the runs in the records, do not change.

    >>> render_results(Path("tiny_study"))
    []

    Args:
        path: a study, or a folder of studies with the table of all claims.

    Raises:
        SettingError: a study cannot be loaded, no study has a result, a frame is missing, or README.md is not a table
            of claims. Then nothing is written.
    """
    rendered, wrong = _rendered_again(path)
    if wrong:
        raise SettingError(str(path), f"missing or unexpected frames of measures: {', '.join(wrong)}")
    changed = [file for file, text in rendered.items() if not _holds(file, text)]
    table = path / FRONT_PAGE
    if table in changed and table.is_file() and not table.read_text(encoding="utf-8").startswith(FRONT_TITLE):
        raise SettingError(str(table), f"this file is not a table of claims, which starts with {FRONT_TITLE!r}")
    for file in changed:
        write_whole(file, rendered[file].encode())
    return [str(file) for file in changed]


def relabel_results(path: Path) -> list[str]:
    """Update the run ids in the committed rows to those of this release, by arm and seed. Returns the names of the
    frames that changed. Use it after a change of how ids are made that does not change the runs themselves.

    >>> relabel_results(Path("tiny_study"))
    []

    Args:
        path: a study, or a folder of studies.

    Raises:
        SettingError: a study cannot be loaded, or does not have the arm of a row. Then nothing is written.
    """
    changed: dict[Path, pl.DataFrame] = {}
    for one in studies_in(path):
        study, folder = load_study(one), results_folder(one)
        if not (folder / RECORD).is_file():
            continue
        arms = study.arms(read_record(folder / RECORD)["run"]["size"])
        for file in (folder / ROWS, folder / MEASURES):
            if (frame := read_rows(file)) is None:
                continue
            keys = frame.select("arm", "seed").rows()
            if unknown := [arm for arm, _ in keys if arm not in arms]:
                raise SettingError(str(file), f"rows of arms of {study.name}", unknown[0], list(arms))
            ids = {(arm, seed): arms[arm].run(seed).id for arm, seed in set(keys)}
            again = frame.with_columns(run=pl.Series([ids[key] for key in keys], dtype=pl.String))
            if not again.equals(frame):
                changed[file] = again
    for file, frame in changed.items():
        write_whole(file, _parquet(frame))
    return [str(file) for file in changed]


def _rendered_again(path: Path) -> tuple[dict[Path, str], list[str]]:
    """The text of every file rendered from the committed frames, and the names of missing or unexpected frames."""
    rendered: dict[Path, str] = {}
    records: list[tuple[str, dict[str, Any]]] = []
    wrong = []
    studies = studies_in(path)
    for one in studies:
        study, folder = load_study(one), results_folder(one)
        if not (folder / ROWS).is_file():
            wrong.append(str(folder / ROWS))
            continue
        if (folder / MEASURES).is_file() != (study.measure is not None):
            wrong.append(str(folder / MEASURES))
            continue
        texts = _rendered(study, read_found(study, folder), folder)
        rendered |= {folder / name: text for name, text in texts.items()}
        records.append((folder.name, json.loads(texts[RECORD])))
    if not studies:
        raise SettingError(str(path), f"no study with a result ({ROWS}) in it")
    # A table of all claims needs all of them.
    if studies != [path] and not wrong:
        rendered[path / FRONT_PAGE] = front_page(records)
    return rendered, wrong


def read_rows(file: Path) -> pl.DataFrame | None:
    """The frame in a file; None if there is no such file.

    Raises:
        SettingError: it cannot be read, or is too large.
    """
    if not file.is_file():
        return None
    content = read_whole(file, _MOST_BYTES)
    try:
        most = _MOST_VALUES // max(1, len(pl.read_parquet_schema(content)))
        frame = pl.read_parquet(content, n_rows=most + 1)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise SettingError(str(file), f"not a readable parquet file: {str(error).splitlines()[0]}") from None
    if frame.height > most:
        raise SettingError(str(file), f"at most {most} rows of {frame.width} columns", Shown("more"))
    return frame


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and agree(path.read_bytes().decode(errors="replace"), text)


def _facts(
    study: Study, results: Results, size: Size, command: str, before: FoundResult, evidence: Evidence
) -> dict[str, Any]:
    """Facts about the runs that are not in the rows."""
    planned = study.runs(size, results.folder)
    sweep = Sweep(name=study.name, runs=tuple(run for _, run in planned.values()))
    here = Results(results.folder, sweep, trusted=results.trusted)
    environment: dict[str, list[Any]] = {
        name: list(values) for name, values in before.facts.get("environment", {}).items()
    }
    kinds = environment.setdefault("devices", [])
    for run, (_, config) in planned.items():
        recorded = RunFolder(results.folder / run).environment or {}
        kinds += [kind for kind in devices_of(recorded, config.evaluation_id) if kind not in kinds]
        for name in ("python", "packages", "device", "threads"):
            values = environment.setdefault(name, [])
            if name in recorded and recorded[name] not in values:
                values.append(recorded[name])
    failed = [{"run": one.run.id, "reason": one.reason} for one in here.failures]
    # The rules of the first runs count, even if their folder is gone and a new folder was begun.
    rules = before.facts.get("rules") or fixed_rules(results.folder)
    # Frames without rules are from before rules were recorded. A new store does not change this.
    older = before.evidence is not None and not before.facts.get("rules")
    late = before.facts.get("rules_after_runs", older or rules is None or came_after_runs(results.folder))
    return {
        "command": command,
        "size": size,
        "planned_runs": len(planned.keys() | set(evidence.rows["run"])),
        "failed": failed,
        "core_minutes": round(total_core_minutes(evidence.rows), 1),
        "environment": environment,
        "rules": rules or study.rules(),
        **({"rules_after_runs": True} if late else {}),
    }


def record(study: Study, evidence: Evidence, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Arms, estimates, rules and verdicts as plain data, for ``result.json``."""
    decisions = study.judge(evidence)
    changed = changed_rules(study, facts.get("rules"))
    claims = []
    for claim in study.claims:
        decision = decisions[claim.name]
        still = outlook(claim, decision, len(study.primary), evidence.rows)
        claims.append(
            {
                "id": claim.name,
                "primary": decision.primary,
                "verdict": decision.verdict,
                "cannot_tell": decision.cannot_tell,
                "statement": claim.statement,
                "source": claim.source,
                "rule": claim.rule,
                "rule_id": claim.rule_id,
                "rule_changed": claim.name in changed or bool(facts.get("rules_after_runs")),
                "estimate": _rounded(decision.estimate),
                "low": _rounded(decision.low),
                "high": _rounded(decision.high),
                "seeds": decision.count,
                "unit": claim.criterion.unit or decision.outcomes.unit,
                "e_values": [_leading(value) for value in decision.evidences],
                "more_seeds": still.seeds if decision.verdict == "not decided" else 0,
                "more_core_minutes": _rounded(still.core_minutes) if decision.verdict == "not decided" else 0.0,
                "detail": decision.outcomes.detail,
            }
        )
    arms = {
        arm: {"seeds": part["seed"].n_unique(), "learned": _learned(part), "core_minutes": _cost(part, arm)}
        for (arm,), part in evidence.rows.partition_by("arm", as_dict=True, maintain_order=True).items()
    }
    return {
        "study": study.name,
        "title": study.title,
        "finding": study.finding(evidence) if study.finding else first_verdict(study.title, claims),
        "primary": list(study.primary),
        "arms": arms,
        "claims": claims,
        "run": dict(facts),
    }


def _pages(study: Study, evidence: Evidence, data: dict[str, Any], folder: Path) -> dict[str, str]:
    """The texts of the figure and the page, by file name."""
    notes = folder / NOTES
    words = data["finding"]
    return {
        FIGURE: standalone(figure_svg(titled(study.figure(evidence), words), words)),
        PAGE: page(study, evidence, data, FIGURE, notes.read_text(encoding="utf-8") if notes.is_file() else ""),
    }


def _rendered(study: Study, found: FoundResult, folder: Path) -> dict[str, str]:
    """The texts of all files that are made from the frames and the notes in the folder, by name."""
    assert found.evidence is not None
    data = record(study, found.evidence, found.facts)
    return {RECORD: _json(data), **_pages(study, found.evidence, data, folder)}


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _leading(value: float) -> float:
    """An e-value with three significant digits. More digits would differ between processors."""
    return float(f"{min(value, 1e12):.3g}")


def _cost(rows: pl.DataFrame, arm: str) -> float | None:
    return _rounded(core_minutes_of_a_seed(rows, (arm,)))


def _rounded(value: float | None) -> float | None:
    """A value with four decimals. More decimals would differ between processors."""
    return None if value is None else round(value, 4) + 0.0


def _learned(rows: pl.DataFrame) -> int | None:
    judged = rows.drop_nulls("learned")
    return None if judged.is_empty() else judged.filter("learned")["seed"].n_unique()


def standalone(svg: str) -> str:
    """An SVG file with a white background and its own text color, because the viewer may be dark."""
    opened = svg.replace("<svg ", '<svg color="#20242b" ', 1)
    end = opened.index(">") + 1
    return f'{opened[:end]}<rect width="100%" height="100%" fill="white"/>{opened[end:]}\n'
