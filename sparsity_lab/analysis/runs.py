"""From results to arms: the evaluation rows of one condition, split by what the user compares.

An *arm* is a set of runs that agree in the columns ``by``. Its runs should differ in their seeds only; what else
differs is *pooled* and named, never hidden.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import polars as pl

from sparsity_lab.analysis.replicates import is_seed, without_seeds
from sparsity_lab.settings import SettingError
from sparsity_lab.training import EVALUATION_SCHEMA, summarize

NOT_JUDGED = "not judged (no optimum declared)"
"""State of a run whose task declares no chance or no optimum: whether it learned cannot be said."""

_FOUND = {"run", "condition_task", "learned", "reach", "censored", "chance", "bayes"}
_NOT_CONFIG = (set(EVALUATION_SCHEMA) - {"task"}) | _FOUND

_THRESHOLD = "evaluation.threshold"


class Frames(Protocol):
    """Anything that gives the ``"evaluation"`` and ``"summary"`` frames, as ``sweeps.Results`` does."""

    def frame(self, name: Literal["evaluation", "summary"], /) -> pl.DataFrame: ...


@dataclass(frozen=True)
class Measure:
    """A column of the evaluation frame that can be drawn.

    >>> Measure("loss", "loss", "nats").words
    'loss'

    Attributes:
        name: the column.
        words: what it is, for titles.
        unit: its unit, for axes.
        chance, bayes: the two levels as polars expressions; None if they are not defined.
    """

    name: str
    words: str
    unit: str
    chance: pl.Expr | None = None
    bayes: pl.Expr | None = None

    @property
    def label(self) -> str:
        """Text of an axis, in two lines."""
        return f"{self.words}\n({self.unit})"


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("normalized_accuracy", "normalized accuracy", "0 = chance, 1 = Bayes", pl.lit(0.0), pl.lit(1.0)),
        Measure(
            "accuracy", "accuracy", "share of scored targets", pl.col("chance_accuracy"), pl.col("bayes_accuracy")
        ),
        Measure("exact_match", "exact match", "share of sequences"),
        Measure("loss", "loss", "nats per scored target", pl.col("chance_loss"), pl.col("bayes_loss")),
        Measure(
            "excess_loss",
            "loss above Bayes",
            "nats per scored target",
            pl.col("chance_loss") - pl.col("bayes_loss"),
            pl.lit(0.0),
        ),
    )
}


@dataclass(frozen=True)
class ArmRuns:
    """Runs that agree in some columns.

    Attributes:
        values: column to value, as given by ``by``.
        label: short name for legends and tables, such as ``k=3`` or ``Recent(width=8)``.
        rows: their evaluation rows.
    """

    values: dict[str, Any]
    label: str
    rows: pl.DataFrame

    @property
    def runs(self) -> int:
        """Number of runs."""
        return self.rows["run"].n_unique()

    @property
    def learned_rows(self) -> pl.DataFrame:
        """The rows of the runs that learned their task."""
        return self.rows.filter(pl.col("learned"))

    @property
    def counted_rows(self) -> pl.DataFrame:
        """The rows that medians and drops count: all but those of runs that never learned their task."""
        return self.rows.filter(pl.col("learned").fill_null(True))

    @property
    def learned(self) -> int:
        """Number of runs that learned their task."""
        return self.learned_rows["run"].n_unique()

    @property
    def judged(self) -> int:
        """Number of runs of which it can be said whether they learned."""
        return self.rows.filter(pl.col("learned").is_not_null())["run"].n_unique()


def learned_words(learned: int, judged: int, runs: int) -> str:
    """``2 of 3 runs learned``; runs that are not judged are counted apart."""
    noun = f"run{'s' if runs != 1 else ''}"
    if not judged:
        return f"{runs} {noun} {NOT_JUDGED}"
    rest = f", {runs - judged} {NOT_JUDGED}" if judged < runs else ""
    return f"{learned} of {runs} {noun} learned{rest}"


def evaluation_rows(
    results: pl.DataFrame | Frames, *, condition: str | None = None, by: Sequence[str] = ()
) -> pl.DataFrame:
    """The evaluation rows of one condition, joined with ``learned``, ``reach`` and ``censored`` of each run.

    ``Results`` know these three; for a bare evaluation frame (one that was filtered by hand, say) they are computed
    from its rows by the same definition.

    Args:
        condition: name of the condition; may be left out if there is only one, or if ``by`` holds ``"condition"``.

    Raises:
        SettingError: no rows, a missing column, an unknown condition, or several conditions and no choice.
    """
    frame = results if isinstance(results, pl.DataFrame) else results.frame("evaluation")
    if frame.is_empty():
        failures = getattr(results, "failures", ())
        why = f"; the first failure: {failures[0].reason}" if failures else ""
        raise SettingError("results", f"no run has been evaluated{why}")
    for needed in ("run", "condition", "length", "trained"):
        if needed not in frame.columns:
            raise SettingError("results", f"a frame with the column {needed!r}", frame.columns)
    if not {"learned", "reach", "censored"} <= set(frame.columns):
        frame = frame.drop("learned", "reach", "censored", strict=False)
        if isinstance(results, pl.DataFrame):
            judged = _judge(frame)
        else:
            judged = results.frame("summary").select("run", "condition", "learned", "reach", "censored")
        frame = frame.join(judged, on=["run", "condition"], how="left", maintain_order="left")
    conditions = sorted(frame["condition"].unique())
    if condition is not None:
        if condition not in conditions:
            raise SettingError("condition", "a condition of these results", condition, conditions)
        frame = frame.filter(pl.col("condition") == condition)
    elif len(conditions) > 1 and "condition" not in by:
        raise SettingError("condition", "missing; choose a condition, or put 'condition' in `by`", known=conditions)
    return frame


def _judge(frame: pl.DataFrame) -> pl.DataFrame:
    """``training.summarize`` with each run's own threshold, if the frame tells it."""
    if _THRESHOLD not in frame.columns:
        return summarize(frame)
    parts = frame.partition_by(_THRESHOLD, as_dict=True, maintain_order=True)
    return pl.concat([summarize(part, threshold) for (threshold,), part in parts.items()])


def measure_named(name: str, frame: pl.DataFrame) -> Measure:
    """The measure of this name.

    Raises:
        SettingError: no such measure, or the frame has no such column.
    """
    known = [known for known in MEASURES if known in frame.columns]
    if name not in known:
        raise SettingError("measure", "a measure of these results", name, known)
    return MEASURES[name]


def arms_of(frame: pl.DataFrame, by: str | Sequence[str]) -> list[ArmRuns]:
    """The arms of a frame, in natural order: numbers by size, texts with their numbers by size, None last.

    Values that differ in seeds only are one: runs with ``Lookup(seed=0)`` and ``Lookup(seed=1)`` are replicates.

    Raises:
        SettingError: a name in ``by`` is not a column.
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    for name in by:
        if name not in frame.columns:
            raise SettingError("by", "a column of the evaluation frame", name, frame.columns)
    if not by:
        return [ArmRuns({}, "all runs", frame)]
    parts = without_seeds(frame, by).partition_by(by, as_dict=True, maintain_order=True)
    return [
        ArmRuns(dict(zip(by, key, strict=True)), arm_label(by, [full_name(part, name) for name in by]), part)
        for key, part in sorted(parts.items(), key=lambda item: natural_key(item[0]))
    ]


def arm_named(arms: Mapping[str, ArmRuns], wanted: Any, path: str) -> ArmRuns:
    """The arm that is meant by its label (``"k=3"``), its value in the one column that tells arms apart (``3``), or a
    mapping of columns to values.

    Raises:
        SettingError: there is none; ``path`` is the argument's name.
    """
    for label, arm in arms.items():
        single = next(iter(arm.values.values())) if len(arm.values) == 1 else None
        is_mapping = isinstance(wanted, Mapping) and dict(wanted) == arm.values
        if wanted == label or is_mapping or (arm.values and wanted == single):
            return arm
    raise SettingError(path, "an arm", wanted, list(arms))


def varying(frame: pl.DataFrame, among: Iterable[str] = ()) -> list[str]:
    """Settings that differ between the runs of a frame, seeds and evaluation grids aside, as dotted paths of at
    most two names: ``task.locality`` stands for all fields below it.

    Args:
        among: settings (and all above and below them) that are not counted.
    """
    columns = [name for name in frame.columns if name not in _NOT_CONFIG]
    containers = {name for name in columns if any(other.startswith(f"{name}.") for other in columns)}
    skipped = tuple(among)
    found: list[str] = []
    for name in columns:
        if is_seed(name) or "evaluation" in name.split("."):
            continue
        if any(name == other or name.startswith(f"{other}.") for other in skipped):
            continue
        # A container's text repeats its fields; only its kind is its own.
        values = {kind_of(value) for value in frame[name]} if name in containers else set(frame[name])
        outer = ".".join(name.split(".")[:2])
        if len(values) > 1 and outer not in found and outer.split(".")[0] not in found:
            found.append(outer)
    return found


def pooled_by(arms: Sequence[ArmRuns]) -> tuple[str, ...]:
    """Settings other than the seeds in which runs of one arm differ."""
    return tuple(dict.fromkeys(name for arm in arms for name in varying(arm.rows, arm.values)))


def trained_range(frame: pl.DataFrame) -> tuple[int, int] | None:
    """Smallest and largest trained length: the curriculum's own bounds if it names them, else the evaluated lengths
    that are marked as trained; None if there are none."""
    bounds = ("training.curriculum.low", "training.curriculum.high")
    if set(bounds) <= set(frame.columns) and not any(frame[name].has_nulls() for name in bounds):
        return int(frame.select(pl.col(bounds[0]).min()).item()), int(frame.select(pl.col(bounds[1]).max()).item())
    lengths = frame.filter(pl.col("trained"))["length"].to_list()
    return (min(lengths), max(lengths)) if lengths else None


def nearest_length(lengths: Iterable[int], target: float) -> int | None:
    """The length nearest to ``target`` in ratio, the smaller of two equally near; None without lengths."""
    return min(lengths, key=lambda length: (max(length / target, target / length), length), default=None)


def common_lengths(rows: pl.DataFrame, *, trained: bool | None = None) -> list[int]:
    """Lengths at which every run of these rows was evaluated, ascending."""
    if trained is not None:
        rows = rows.filter(pl.col("trained") == trained)
    if rows.is_empty():
        return []
    return sorted(set.intersection(*(set(part["length"]) for part in rows.partition_by("run"))))


def kind_of(value: Any) -> Any:
    """``Recent`` of ``Recent(width=8)``; other values as they are."""
    return value.split("(")[0] if isinstance(value, str) and value.endswith(")") else value


def short_name(value: Any) -> str:
    """A value as figures show it: ``RoPE`` for ``RoPE()``."""
    return str(value).removesuffix("()")


def full_name(rows: pl.DataFrame, column: str) -> Any:
    """The one value of a column over these rows. A setting with a single field shows that field even at its default
    (``Recent(width=8)`` for ``Recent()``), for it is all there is to know about it; a seed tells nothing."""
    value = rows[column][0]
    fields = [
        name for name in rows.columns if re.fullmatch(rf"{re.escape(column)}\.[^.]+", name) and not is_seed(name)
    ]
    given = {name.rpartition(".")[2]: rows[name][0] for name in fields if rows[name][0] is not None}
    if isinstance(value, str) and value.endswith("()") and len(given) == 1:
        ((field, content),) = given.items()
        return f"{kind_of(value)}({field}={content})"
    return value


def arm_label(by: Sequence[str], values: Sequence[Any]) -> str:
    """``k=3, Recent(width=8)`` for task.k and task.locality. Settings, arms and conditions speak for themselves;
    plain values are named."""
    parts = []
    for name, value in zip(by, values, strict=True):
        speaks = name in ("arm", "condition") or (isinstance(value, str) and value.endswith(")"))
        parts.append(short_name(value) if speaks else f"{name.rpartition('.')[2]}={value}")
    return ", ".join(parts)


def natural_key(values: Sequence[Any]) -> tuple[Any, ...]:
    """A sort key for values of any kind: numbers first and by size, texts with their digits by size, None last."""

    def key(value: Any) -> tuple[Any, ...]:
        if value is None:
            return (2,)
        if isinstance(value, bool | int | float):
            return (0, value)
        return (1, tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", str(value)) if p))

    return tuple(key(value) for value in values)
