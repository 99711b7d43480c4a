"""Which arms belong in one figure: the panels of a report."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from sparsity_lab.analysis.replicates import without_seeds
from sparsity_lab.analysis.runs import arms_of, full_name, kind_of, pooled_by, short_name, varying

_MOST_ARMS = 4  # more bands than this in one figure hide each other

_GROUP = ("task.rule", "task.marking", "model.position")
_ARMS = ("task.k", "task.locality", "condition")


@dataclass(frozen=True)
class Panel:
    """Arms that share task kind, rule, marking and position scheme, and whether an optimum is declared.

    Attributes:
        title: what they share, in words.
        position: short name of the position scheme; None if the results do not say.
        by: the columns that distinguish its arms: k, locality and condition if they vary, and any setting that would
            otherwise be pooled with the seeds. For a single arm, k or the task.
        also: settings in which its arms differ besides ``by``, though never within one arm.
        measure: what its figures show: normalized accuracy, or accuracy where no optimum is declared.
        rows: their evaluation rows.
    """

    title: str
    position: str | None
    by: tuple[str, ...]
    also: tuple[str, ...]
    measure: str
    rows: pl.DataFrame


def panels_of(frame: pl.DataFrame) -> list[Panel]:
    """The panels of an evaluation frame, in the order in which it names them."""
    group = [name for name in _GROUP if name in frame.columns]
    kinds = [kind_of(task) for task in frame["task"]] if "task" in frame.columns else [None] * frame.height
    measured = pl.col("normalized_accuracy").is_not_null().any().over("run", "condition")
    frame = frame.with_columns(pl.Series("_kind", kinds, dtype=pl.String), measured.alias("_measured"))
    parts = without_seeds(frame, group).partition_by("_kind", *group, "_measured", maintain_order=True)
    return [_panel(part) for part in parts]


def small_multiples(panel: Panel) -> list[Panel]:
    """The panel itself; or one for each locality, if k and locality vary and make too many arms for one figure."""
    crossed = {"task.k", "task.locality"} <= set(panel.by)
    if not crossed or len(arms_of(panel.rows, panel.by)) <= _MOST_ARMS:
        return [panel]
    parts = without_seeds(panel.rows, ["task.locality"]).partition_by("task.locality", maintain_order=True)
    return [one for part in parts for one in panels_of(part)]


def telling(part: pl.DataFrame, by: list[str]) -> list[str]:
    """The columns without those whose values follow from the others: first of the training, then numbers and
    switches, then settings, which say more; the last named first. Of a single arm, k or the task."""
    if not by:
        alone = ("task.k", "task.locality", "task")
        return [name for name in alone if name in part.columns and part[name].count()][:1]
    texts, kept = without_seeds(part, by), by
    says_more = [name for name in by if any(str(value).endswith(")") for value in part[name].unique())]
    last_first = sorted(by, key=lambda name: (name.startswith("training."), name not in says_more, by.index(name)))
    for name in reversed(last_first):
        others = [one for one in kept if one != name]
        if name not in _ARMS and others and texts.select(others).n_unique() == texts.select(kept).n_unique():
            kept = others
    return kept


def _panel(part: pl.DataFrame) -> Panel:
    kind, measured = part["_kind"][0], part["_measured"][0]
    part = part.drop("_kind", "_measured")
    present = [name for name in _ARMS if name in part.columns]
    by = [name for name in present if part[name].n_unique() > 1]
    by += pooled_by(arms_of(part, by))
    by = telling(part, by)
    also = tuple(name for name in varying(part, by) if name not in by)

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
    title = (", ".join(words) or "all runs") + ("" if measured else " (no optimum declared)")
    measure = "normalized_accuracy" if measured else "accuracy"
    return Panel(title, position, tuple(by), also, measure, part)
