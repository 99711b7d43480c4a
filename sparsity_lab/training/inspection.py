"""What state a run's folder is in, and which of its files is damaged. Nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import polars as pl

from sparsity_lab.settings import SettingError, canonical_json
from sparsity_lab.training.checkpoint import verify_checkpoint
from sparsity_lab.training.config import RunConfig
from sparsity_lab.training.evaluate import EVALUATION_SCHEMA
from sparsity_lab.training.files import DamagedFile, first_link
from sparsity_lab.training.frames import ParseFrame, parse_frame
from sparsity_lab.training.lease import LEASE
from sparsity_lab.training.store import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    METRICS_SCHEMA,
    MODEL,
    Marker,
    evaluation_file,
    examine,
    examine_weights,
    most_bytes,
    most_rows,
    parse_config,
    read_marker,
)

__all__ = ["Inspection", "Status", "inspect", "status"]


class Status(Enum):
    """What a run folder holds.

    >>> status(run.config, run.folder.parent)
    <Status.FINISHED: 'finished'>
    """

    MISSING = "missing"
    """Nothing yet."""
    INTERRUPTED = "interrupted"
    """Training began and did not end; it goes on from the checkpoint, if there is one."""
    BROKEN = "broken"
    """It ended, and a file of the training was damaged since; it will be repeated."""
    UNEVALUATED = "unevaluated"
    """Trained; this evaluation is missing or damaged."""
    FINISHED = "finished"
    """Trained and evaluated, all files intact."""
    DIVERGED = "diverged"
    """The loss, the gradient or the weights stopped being finite. A result: it is not repeated."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self in (Status.FINISHED, Status.DIVERGED)


@dataclass(frozen=True)
class Inspection:
    """What was found in a run's folder.

    Attributes:
        status: its state.
        damage: the file that is not what was written, and what is wrong with it; None if there is none.
        evaluated: the run was brought to its end, be it with another evaluation than the one that is asked for now:
            its weights can be used.
        contents: the metrics, and of a finished run the evaluation, by name: the bytes that were verified, for the
            next reader. Another process may repeat the run meanwhile.
    """

    status: Status
    damage: str | None = None
    evaluated: bool = False
    contents: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return self.status.value + (f": {self.damage}" if self.damage else "")


def status(config: RunConfig, out: Path | str) -> Status:
    """State of a run in the store ``out``: all checksums are verified, nothing is written. A text is opened only if
    its hash is not yet a field.

    >>> status(run.config, run.folder.parent).value
    'finished'
    """
    config = config if config.is_planned else config.planned()
    return inspect(config, Path(out) / config.id).status


def inspect(config: RunConfig, folder: Path, *, large: bool = True, parse: ParseFrame | None = None) -> Inspection:
    """What is in the folder of a run.

    Args:
        large: verify the weights and the checkpoint too, by far the largest files, and that frames are frames;
            otherwise their reader finds out.
        parse: what parses frames; ``parse_frame`` if None.
    """
    if link := first_link(folder, folder / LEASE, (folder / evaluation_file(config)).parent):
        return Inspection(Status.BROKEN, f"{link.relative_to(folder.parent)} is a link, which is not followed")
    marker = read_marker(folder)
    if marker is None:
        begun = (folder / CONFIG).exists() or (folder / CHECKPOINT).exists()
        damage = _checkpoint_damage(folder, config) if large else None
        return Inspection(Status.INTERRUPTED if begun else Status.MISSING, damage)
    if marker.status == "damaged":
        return Inspection(Status.BROKEN, marker.reason)
    diverged = marker.status == "diverged"
    said, config_damage = _config(config, folder, marker)
    contents: dict[str, bytes] = {}

    def frame_damage(name: str, schema: pl.Schema) -> str | None:
        contents[name], wrong = examine(folder, name, marker, most_bytes(config, name))
        if large and not wrong:
            try:
                (parse or parse_frame)(folder / name, contents[name], schema, most_rows(config, name))
            except DamagedFile as error:
                wrong = error.what
        return wrong and f"{folder.name}/{name} {wrong}"

    damage = frame_damage(METRICS, METRICS_SCHEMA)
    if damage is None and large and not diverged:
        wrong = examine_weights(folder, marker, most_bytes(config, MODEL))
        damage = wrong and f"{folder.name}/{MODEL} {wrong}"
    # A folder with the config of another run has its weights too. Of what diverged, the config is half of the record.
    if damage is None and (diverged or said not in (config.id, None)):
        damage = config_damage
    if damage:
        return Inspection(Status.BROKEN, damage)
    if diverged:
        return Inspection(Status.DIVERGED, contents=contents)
    if marker.status == "trained":
        return Inspection(Status.UNEVALUATED)
    file = evaluation_file(config)
    damage = config_damage
    if file in marker.files:
        damage = damage or frame_damage(file, EVALUATION_SCHEMA)
    whole = damage is None and file in marker.files
    return Inspection(Status.FINISHED if whole else Status.UNEVALUATED, damage, damage is None, contents)


def _config(config: RunConfig, folder: Path, marker: Marker) -> tuple[str | None, str | None]:
    """The run that ``config.json`` says, None if it says none, and what is wrong with the file, None if nothing.

    It may differ from ``config`` in the evaluation of the run and its parents. The file records the last requested
    evaluation; other frames in the folder are equally valid.
    """
    content, wrong = examine(folder, CONFIG, marker)
    said = config.id
    if content != canonical_json(config).encode():
        try:
            said = parse_config(folder / CONFIG, content).id
        except SettingError as error:
            # Of a newer release, for instance, with fields that this one does not know.
            return None, str(error) if content else f"{folder.name}/{CONFIG} {wrong}"
    if said != config.id:
        wrong = f"belongs to another run, {said}"
    return said, wrong and f"{folder.name}/{CONFIG} {wrong}"


def _checkpoint_damage(folder: Path, config: RunConfig) -> str | None:
    try:
        verify_checkpoint(folder / CHECKPOINT, config.id, most_bytes(config, CHECKPOINT))
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        return f"{folder.name}/{CHECKPOINT} {error.what}"
    return None
