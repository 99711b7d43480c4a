"""Whether ``diagnose`` is right, on sources whose answers are known."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sparsity_lab.analysis import Diagnosis, diagnose, read_tokens
from sparsity_lab.benchmarks.known_sources import SOURCES, Known
from sparsity_lab.settings import SettingError
from sparsity_lab.training.files import write_file


def verdicts(
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2, 3),
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Diagnoses of twenty sources whose answers are known, at the default settings and for four seeds of the sources.

    One row for each source and seed: the verdict and the findings of the diagnosis, with what is ``wrong`` in them,
    null where all is right. Half an hour of processor time; with ``--out`` a call goes on where the one before ended.

    Args:
        out: folder that keeps what each diagnosis said and gives it to later calls. It knows the data and not the
            code of the diagnosis, so that a change of that needs another folder.
        settings: of ``diagnose``, in place of its defaults.
    """
    for name in only:
        if name not in SOURCES:
            raise SettingError("--only", "a source", name, SOURCES)
    if settings and out:
        raise SettingError("settings", "the defaults where rows are kept", str(dict(settings)))
    names = [name for name in SOURCES if not only or name in only]
    return pl.DataFrame([_row(name, seed, out, settings or {}) for seed in seeds for name in names], schema=_SCHEMA)


_SCHEMA = pl.Schema(
    {
        "source": pl.String(),
        "seed": pl.Int64(),
        "verdict": pl.String(),
        "learned": pl.Boolean(),
        "k": pl.Float64(),
        "near": pl.Boolean(),
        "beyond": pl.Int64(),
        "wrong": pl.String(),
    }
)


def _row(name: str, seed: int, out: Path | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file, known = SOURCES[name].write(Path(folder), seed)
        kept = out and out / f"{name}-{seed}-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.json"
        if kept and kept.is_file():
            found = json.loads(kept.read_text())
        else:
            found = said(diagnose(read_tokens([file]), **settings))
            if kept:
                write_file(kept, json.dumps(found).encode())
    return {"source": name, "seed": seed, **found, "wrong": ", ".join(wrong(found, known)) or None}


def said(found: Diagnosis) -> dict[str, Any]:
    """What a diagnosis says: the columns of ``verdicts`` from the verdict to ``beyond``."""
    _, local, *schemes = found.answers
    beyond = found.beyond
    far = beyond.distance if beyond.gain is beyond.repeats else beyond.lag
    return {
        "verdict": found.verdict,
        "learned": any(answer.answer for answer in schemes[::2]),
        "k": found.k.estimate,
        "near": local.answer,
        "beyond": far if beyond.matters else None,
    }


def wrong(found: Mapping[str, Any], known: Known) -> list[str]:
    """Which of this is not as known."""
    right = {
        "verdict": found["verdict"] in known.verdicts,
        "learned": found["learned"] == known.learned,
        "k": _within(found["k"], known.k),
        "near": found["near"] == known.near,
        "beyond": _within(found["beyond"], known.beyond),
    }
    return [name for name, holds in right.items() if not holds]


def _within(value: float | None, bounds: tuple[int, int] | None) -> bool:
    if value is None or bounds is None:
        return value is None and bounds is None
    return bounds[0] <= value <= bounds[1]
