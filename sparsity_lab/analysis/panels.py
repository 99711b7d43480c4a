"""Which arms belong in one figure: the panels of a report."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from sparsity_lab.analysis.runs import arms_of, full_name, kind_of, pooled_by, short_name, varying

__all__ = ["Panel", "panels_of", "small_multiples"]

_MOST_ARMS = 4  # more bands than this in one figure hide each other

_GROUP = ("task.rule", "task.marking", "model.position")
_ARMS = ("task.k", "task.locality", "condition")


@dataclass(frozen=True)
class Panel:
    """Arms that share task kind, rule, marking and position scheme.

    Attributes:
        title: what they share, in words.
        position: short name of the position scheme; None if the results do not say.
        by: the columns that tell its arms apart: k, locality and condition where they vary, and whatever else
            would otherwise be pooled with the seeds.
        beside: settings in which its arms differ besides ``by``, though never within one arm.
        rows: their evaluation rows.
    """

    title: str
    position: str | None
    by: tuple[str, ...]
    beside: tuple[str, ...]
    rows: pl.DataFrame


def panels_of(frame: pl.DataFrame) -> list[Panel]:
    """The panels of an evaluation frame, in the order in which it names them."""
    group = [name for name in _GROUP if name in frame.columns]
    kinds = [kind_of(task) for task in frame["task"]] if "task" in frame.columns else [None] * frame.height
    frame = frame.with_columns(pl.Series("_kind", kinds, dtype=pl.String))
    parts = frame.partition_by("_kind", *group, maintain_order=True)
    return [_panel(part) for part in parts]


def small_multiples(panel: Panel) -> list[Panel]:
    """The panel itself; or one for each locality, if k and locality vary and make too many arms for one figure."""
    crossed = {"task.k", "task.locality"} <= set(panel.by)
    if not crossed or len(arms_of(panel.rows, panel.by)) <= _MOST_ARMS:
        return [panel]
    return [one for part in panel.rows.partition_by("task.locality", maintain_order=True) for one in panels_of(part)]


def _panel(part: pl.DataFrame) -> Panel:
    kind = part["_kind"][0]
    part = part.drop("_kind")
    present = [name for name in _ARMS if name in part.columns]
    by = [name for name in present if part[name].n_unique() > 1] or present[:1]
    by += pooled_by(arms_of(part, by))
    beside = tuple(name for name in varying(part, by) if name not in by)

    def one(name: str) -> Any:
        return None if name in by or name not in part.columns else full_name(part, name)

    position = short_name(part["model.position"][0]) if "model.position" in part.columns else None
    marking, locality, k = one("task.marking"), one("task.locality"), one("task.k")
    words = [
        *([kind] if kind and kind != "Planted" else []),
        *([short_name(rule)] if (rule := one("task.rule")) else []),
        *([f"{marking} marking"] if marking else []),
        *([f"k={k}"] if k is not None else []),
        *([f"{short_name(locality)} locality"] if locality else []),
        *([position] if position else []),
    ]
    return Panel(", ".join(words) or "all runs", position, tuple(by), beside, part)
