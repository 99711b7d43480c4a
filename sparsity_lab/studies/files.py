"""The files of a result: written once from runs, then rendered again from the committed frames to check them.

For a study ``name``: ``name.parquet`` its rows and, if it measures something beyond the evaluation,
``name.measures.parquet``; ``name.json`` arms, estimates, rules and verdicts, ``name.svg`` the figure, ``name.md`` the
page; ``README.md`` is the table of all claims. All but the frames are made from them, and from what the JSON says of
the run itself.
"""

import io
import json
from pathlib import Path
from typing import Any

import polars as pl

from sparsity_lab.analysis import figure_svg
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.settings import SettingError
from sparsity_lab.studies.agreement import agree
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.studies.page import front_page, page
from sparsity_lab.studies.recipe import Size, recipe
from sparsity_lab.studies.study import Study
from sparsity_lab.sweeps import Results
from sparsity_lab.training import store

__all__ = ["check_results", "find_study", "render_results", "write_result"]

FRONT_PAGE = "README.md"
MEASURES = ".measures.parquet"


def find_study(name: str) -> Study:
    """The study of this name.

    Raises:
        SettingError: no such recipe, or one without claims.
    """
    found = recipe.find(name)
    if not isinstance(found, Study):
        studies = [name for name, one in recipe.all().items() if isinstance(one, Study)]
        raise SettingError("study", "a recipe that tests claims", name, studies)
    return found


def write_result(study: Study, results: Results, size: Size, out: Path) -> Path:
    """Write all files of a result into the folder ``out``; returns the page.

    Raises:
        SettingError: no finished run, or a file that cannot be written.
    """
    evidence = study.evidence(results, size)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / f"{study.name}.parquet", _parquet(evidence.rows))
    if evidence.measures is not None:
        write_whole(out / f"{study.name}{MEASURES}", _parquet(evidence.measures))
    for name, text in _rendered(study, evidence, _facts(study, results, size)).items():
        write_whole(out / name, text.encode())
    write_whole(out / FRONT_PAGE, _front_page(out).encode())
    return out / f"{study.name}.md"


def check_results(out: Path) -> list[str]:
    """Names of the files in ``out`` that are missing, or do not ``agree`` with what the committed frames give.

    Raises:
        SettingError: a frame of a study that there is not.
    """
    rendered, wrong = _rendered_again(out)
    return wrong + [name for name, text in rendered.items() if not _holds(out / name, text)]


def render_results(out: Path) -> list[str]:
    """Render every page in ``out`` again from the committed frames; returns the names of the files that changed. The
    frames, and what the records say of the runs, stay as they are.

    Raises:
        SettingError: a frame of a study that there is not, or one that is missing; nothing has been written then.
    """
    rendered, wrong = _rendered_again(out)
    if wrong:
        raise SettingError(str(out), "frames of rows and measures that belong together", wrong)
    changed = [name for name, text in rendered.items() if not _holds(out / name, text)]
    for name in changed:
        write_whole(out / name, rendered[name].encode())
    return changed


def _rendered_again(out: Path) -> tuple[dict[str, str], list[str]]:
    """Name and text of every file that the committed frames give; names of frames that are missing or too many."""
    rendered: dict[str, str] = {}
    wrong = []
    for path in sorted(out.glob("*.parquet")):
        if path.name.endswith(MEASURES):
            # Without its rows it belongs to nothing; with them it is read below.
            rows = path.with_name(path.name.replace(MEASURES, ".parquet"))
            wrong += [] if rows.is_file() else [path.name]
            continue
        study = find_study(path.stem)
        measures = out / f"{study.name}{MEASURES}"
        if measures.is_file() != (study.measure is not None):
            wrong.append(measures.name)
            continue
        evidence = Evidence(pl.read_parquet(path), pl.read_parquet(measures) if study.measure else None)
        record = out / f"{study.name}.json"
        facts = json.loads(record.read_text())["run"] if record.is_file() else {}
        rendered |= _rendered(study, evidence, facts)
    # A table of all claims needs all of them.
    if not wrong:
        records = [json.loads(text) for name, text in sorted(rendered.items()) if name.endswith(".json")]
        rendered[FRONT_PAGE] = front_page(records)
    return rendered, wrong


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and agree(path.read_bytes().decode(errors="replace"), text)


def _facts(study: Study, results: Results, size: Size) -> dict[str, Any]:
    """What the rows do not say of the run."""
    sweep = study(size)
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
        "command": f"sparsity-lab sweep {study.name} --size {size}",
        "size": size,
        "planned_runs": len(wanted),
        "failed": [{"run": one.run.id, "reason": one.reason} for one in results.failures if one.run.id in wanted],
        "core_minutes": round(float(timing["seconds"].sum()) / 60, 1),
        "environment": environment,
    }


def _rendered(study: Study, evidence: Evidence, facts: dict[str, Any]) -> dict[str, str]:
    """Name and text of every file that is made from the frames."""
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
    return {
        f"{study.name}.json": json.dumps(data, indent=1, ensure_ascii=False) + "\n",
        f"{study.name}.svg": _standalone(figure_svg(study.figure(evidence), study.title)),
        f"{study.name}.md": page(study, evidence, data),
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


def _front_page(out: Path) -> str:
    return front_page([json.loads(path.read_text()) for path in sorted(out.glob("*.json"))])
