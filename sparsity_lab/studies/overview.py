"""An overview of the studies in a folder."""

from collections import Counter
from pathlib import Path
from typing import Any

from sparsity_lab.settings import SettingError, Shown
from sparsity_lab.studies.files import RECORD, ROWS, read_record, read_rows
from sparsity_lab.studies.loading import load_study, results_folder


def studies_overview(folder: Path) -> list[dict[str, Any]]:
    """One entry per study: ``study`` (its path), ``title``, and the ``arms`` and ``runs`` of its sweep. Also the
    ``finished`` runs, ``core_minutes`` and number of primary claims by verdict of its result, or None if there is no
    result.

    Raises:
        SettingError: there is no such folder, no study in it, or a study cannot be loaded.
    """
    places = [folder] if (folder / "study.py").is_file() else [file.parent for file in folder.glob("*/study.py")]
    places += [file for file in folder.glob("*.py") if "Study(" in file.read_text(encoding="utf-8")]
    places = sorted(set(places) - {folder / "study.py"})
    if not places:
        raise SettingError(str(folder), "a folder of studies", Shown("none" if folder.is_dir() else "no folder"))
    return [_overview(place) for place in places]


def _overview(place: Path) -> dict[str, Any]:
    study, results = load_study(place), results_folder(place)
    finished = core_minutes = verdicts = None
    if (results / RECORD).is_file() and (results / ROWS).is_file():
        record, rows = read_record(results / RECORD), read_rows(results / ROWS)
        finished = None if rows is None else rows["run"].n_unique()
        core_minutes = record["run"].get("core_minutes")
        verdicts = dict(Counter(one["verdict"] for one in record["claims"] if one["primary"]))
    arms = study.arms("small")
    return {
        "study": str(place),
        "title": study.title,
        "arms": len(arms),
        "runs": len(study.sweep("small").runs),
        "finished": finished,
        "core_minutes": core_minutes,
        "verdicts": verdicts,
    }
