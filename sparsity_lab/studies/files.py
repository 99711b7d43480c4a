"""The files of a result: written once from runs, then rendered again from the committed frames to check them.

In the folder of a study: ``rows.parquet`` and, if it measures something beyond the evaluation, ``measures.parquet``;
``result.json`` with arms, estimates, rules and verdicts, ``result.svg``, the figure, and ``result.md``, the page. All
but the frames are made from the frames, from what the JSON says of the runs, and from ``notes.md``, which people
write. In a folder of studies ``README.md`` is the table of all claims.
"""

import io
import json
from pathlib import Path
from typing import Any

import polars as pl

from sparsity_lab.analysis import figure_svg
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.settings import SettingError, Shown
from sparsity_lab.studies.agreement import agree
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.studies.loading import load_study, results_folder, studies_in
from sparsity_lab.studies.page import FRONT_TITLE, front_page, page
from sparsity_lab.studies.study import Size, Study
from sparsity_lab.sweeps import Results
from sparsity_lab.training import store

__all__ = ["check_results", "relabel_results", "render_results", "write_result"]

ROWS, MEASURES, RECORD, FIGURE, PAGE = "rows.parquet", "measures.parquet", "result.json", "result.svg", "result.md"
NOTES, FRONT_PAGE = "notes.md", "README.md"


def write_result(study: Study, results: Results, size: Size, folder: Path, command: str = "not recorded") -> Path:
    """Write all files of a result into a folder, which may hold notes; returns the page.

    Args:
        command: what made the runs, for the page.

    Raises:
        SettingError: no finished run, or a file that cannot be written.
    """
    evidence = study.evidence(results, size)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / ROWS, _parquet(evidence.rows))
    if evidence.measures is not None:
        write_whole(folder / MEASURES, _parquet(evidence.measures))
    for name, text in _rendered(study, evidence, _facts(study, results, size, command), folder).items():
        write_whole(folder / name, text.encode())
    return folder / PAGE


def check_results(path: Path) -> list[str]:
    """Names of the files that are missing, or do not ``agree`` with what the committed frames give.

    Args:
        path: a study, or a folder of studies with the table of all claims.

    Raises:
        SettingError: a study that cannot be loaded, or none with a result.
    """
    rendered, wrong = _rendered_again(path)
    return wrong + [str(file) for file, text in rendered.items() if not _holds(file, text)]


def render_results(path: Path) -> list[str]:
    """Render all pages again from the committed frames; returns the names of the files that changed. The frames, and
    what the records say of the runs, stay as they are.

    Args:
        path: a study, or a folder of studies with the table of all claims.

    Raises:
        SettingError: a study that cannot be loaded, or none with a result; a frame that is missing; a README.md that
            is no table of claims. Nothing has been written then.
    """
    rendered, wrong = _rendered_again(path)
    if wrong:
        raise SettingError(str(path), "frames of rows and measures that belong together", wrong)
    changed = [file for file, text in rendered.items() if not _holds(file, text)]
    table = path / FRONT_PAGE
    if table in changed and table.is_file() and not table.read_text(encoding="utf-8").startswith(FRONT_TITLE):
        raise SettingError(str(table), f"a table of claims, which begins with {FRONT_TITLE!r}", Shown("another text"))
    for file in changed:
        write_whole(file, rendered[file].encode())
    return [str(file) for file in changed]


def relabel_results(path: Path) -> list[str]:
    """Give the committed rows the ids that this release gives to their runs, which are known by arm and seed; returns
    the names of the frames that changed. For a change in how ids are made, which changes nothing of the runs.

    Args:
        path: a study, or a folder of studies.

    Raises:
        SettingError: a study that cannot be loaded, or rows of an arm and seed that it does not have. Then nothing is
            written.
    """
    changed: dict[Path, pl.DataFrame] = {}
    for one in studies_in(path):
        study, folder = load_study(one), results_folder(one)
        if not (folder / RECORD).is_file():
            continue
        arms = study.arms(json.loads((folder / RECORD).read_text())["run"]["size"])
        ids = {(arm, run.data_seed): run.id for arm, runs in arms.items() for run in runs}
        for file in (folder / ROWS, folder / MEASURES):
            if not file.is_file():
                continue
            frame = pl.read_parquet(file)
            keys = frame.select("arm", "seed").rows()
            if unknown := [key for key in keys if key not in ids]:
                shown = Shown(f"{unknown[0][0]}, seed {unknown[0][1]}")
                raise SettingError(str(file), f"rows of arms and seeds of {study.name}", shown)
            again = frame.with_columns(run=pl.Series([ids[key] for key in keys], dtype=pl.String))
            if not again.equals(frame):
                changed[file] = again
    for file, frame in changed.items():
        write_whole(file, _parquet(frame))
    return [str(file) for file in changed]


def _rendered_again(path: Path) -> tuple[dict[Path, str], list[str]]:
    """Every file that the committed frames give, with its text; names of frames that are missing or too many."""
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
        measures = pl.read_parquet(folder / MEASURES) if study.measure else None
        record = folder / RECORD
        facts = json.loads(record.read_text())["run"] if record.is_file() else {}
        texts = _rendered(study, Evidence(pl.read_parquet(folder / ROWS), measures), facts, folder)
        rendered |= {folder / name: text for name, text in texts.items()}
        records.append((folder.name, json.loads(texts[RECORD])))
    if not studies:
        raise SettingError(str(path), f"a study, or a folder of studies, with a result ({ROWS})", Shown("none"))
    # A table of all claims needs all of them.
    if studies != [path] and not wrong:
        rendered[path / FRONT_PAGE] = front_page(records)
    return rendered, wrong


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and agree(path.read_bytes().decode(errors="replace"), text)


def _facts(study: Study, results: Results, size: Size, command: str) -> dict[str, Any]:
    """What the rows do not say of the run."""
    sweep = study.sweep(size)
    timing = results.frame("timing")
    environment: dict[str, list[Any]] = {}
    for run in sweep.runs:
        recorded = store.read_environment(results.folder / run.id) or {}
        for name in ("python", "packages", "device", "threads"):
            values = environment.setdefault(name, [])
            if name in recorded and recorded[name] not in values:
                values.append(recorded[name])
    wanted = {run.id for run in sweep.runs}
    return {
        "command": command,
        "size": size,
        "planned_runs": len(wanted),
        "failed": [{"run": one.run.id, "reason": one.reason} for one in results.failures if one.run.id in wanted],
        "core_minutes": round(float(timing["seconds"].sum()) / 60, 1),
        "environment": environment,
    }


def _rendered(study: Study, evidence: Evidence, facts: dict[str, Any], folder: Path) -> dict[str, str]:
    """Name and text of every file that is made from the frames and the notes in the folder."""
    decisions = [(claim, claim.decide(evidence)) for claim in study.claims]
    claims = [
        {
            "claim": claim.name,
            "statement": claim.statement,
            "source": claim.source,
            "rule": claim.rule,
            "verdict": decision.verdict,
            "estimate": _rounded(decision.interval.estimate),
            "low": _rounded(decision.interval.low),
            "high": _rounded(decision.interval.high),
            "count": decision.interval.count,
            "over": decision.over,
            "unit": decision.unit,
            "detail": decision.detail,
        }
        for claim, decision in decisions
    ]
    arms = {
        arm: {"seeds": part["seed"].n_unique(), "learned": _learned(part)}
        for (arm,), part in evidence.rows.partition_by("arm", as_dict=True, maintain_order=True).items()
    }
    data = {"study": study.name, "title": study.title, "arms": arms, "claims": claims, "run": facts}
    notes = folder / NOTES
    return {
        RECORD: json.dumps(data, indent=1, ensure_ascii=False) + "\n",
        FIGURE: _standalone(figure_svg(study.figure(evidence), study.title)),
        PAGE: page(study, evidence, data, FIGURE, notes.read_text(encoding="utf-8") if notes.is_file() else ""),
    }


def _rounded(value: float | None) -> float | None:
    """Four digits behind the point: more would differ between processors."""
    return None if value is None else round(value, 4) + 0.0


def _learned(rows: pl.DataFrame) -> int | None:
    judged = rows.drop_nulls("learned")
    return None if judged.is_empty() else judged.filter("learned")["seed"].n_unique()


def _standalone(svg: str) -> str:
    """An SVG file on a white ground: what shows it may be dark, and has no color to lend."""
    opened = svg.replace("<svg ", '<svg color="#20242b" ', 1)
    end = opened.index(">") + 1
    return f'{opened[:end]}<rect width="100%" height="100%" fill="white"/>{opened[end:]}\n'
