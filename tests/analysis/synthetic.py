"""Synthetic results: frames with the columns of ``sweeps.Results``, made from given accuracies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import polars as pl

from sparsity_lab.settings import flatten
from sparsity_lab.training import EVALUATION_SCHEMA, RunConfig, summarize

LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 240)


@dataclass(frozen=True)
class Failed:
    """What analysis needs of ``sweeps.Failure``."""

    run: RunConfig
    reason: str
    step: int | None = None
    status: str = "failed"


@dataclass
class SyntheticResults:
    """What analysis needs of ``sweeps.Results``."""

    evaluation: pl.DataFrame
    runs: Sequence[RunConfig] = ()
    failures: Sequence[Failed] = ()
    folder: Path = Path("nowhere")
    others: Sequence[str] = ()
    devices: Mapping[str, int] = field(default_factory=dict)

    def frame(self, name: str, /) -> pl.DataFrame:
        return self.evaluation if name == "evaluation" else summarize(self.evaluation)

    def state(self, run: RunConfig, *, large: bool = False) -> Failed:
        """No run has files."""
        return Failed(run, "no files", status="missing")

    def environment(self, run: RunConfig, /) -> Mapping[str, Any] | None:
        return None

    def snapshot(self) -> Self:
        return self


def rows_of(
    run: str,
    config: Mapping[str, Any],
    normalized: Sequence[float],
    *,
    lengths: Sequence[int] = LENGTHS,
    trained: tuple[int, int] = (8, 24),
    condition: str = "trained",
    chance: float = 0.5,
    bayes: float = 1.0,
    judged: bool = True,
) -> list[dict[str, Any]]:
    """Evaluation rows of one run with these normalized accuracies; without an optimum if not ``judged``."""
    rows = [
        {
            "run": run,
            "condition": condition,
            "length": length,
            "trained": trained[0] <= length <= trained[1],
            "sequences": 512,
            "accuracy": chance + (bayes - chance) * value,
            "accuracy_se": 0.01,
            "exact_match": chance + (bayes - chance) * value,
            "exact_match_se": 0.01,
            "loss": 0.7 - 0.7 * value,
            "loss_se": 0.01,
            "chance_accuracy": chance,
            "bayes_accuracy": bayes,
            "chance_loss": 0.7,
            "bayes_loss": 0.0,
            "normalized_accuracy": float(value),
            "normalized_accuracy_se": 0.02,
            "excess_loss": 0.7 - 0.7 * value,
            "excess_loss_se": 0.01,
            **config,
        }
        for length, value in zip(lengths, normalized, strict=True)
    ]
    undeclared = ("bayes_accuracy", "bayes_loss", "normalized_accuracy", "normalized_accuracy_se", "excess_loss")
    return rows if judged else [row | dict.fromkeys(undeclared) for row in rows]


def results_of(
    runs: Sequence[tuple[RunConfig, Sequence[float]]], failures: Sequence[Failed] = (), *, judged: bool = True
) -> SyntheticResults:
    """Results of runs given as (config, normalized accuracies)."""
    rows = [
        row
        for config, values in runs
        for row in rows_of(config.id, flatten(config), values, lengths=config.evaluation.lengths, judged=judged)
    ]
    configs = [config for config, _ in runs] + [failed.run for failed in failures]
    return SyntheticResults(_framed(rows), configs, failures)


def frame_of(
    *runs: tuple[str, Mapping[str, Any], Sequence[float]],
    lengths: Sequence[int] = (8, 24, 48, 96),
    judged: bool = True,
) -> pl.DataFrame:
    """Evaluation frame of runs given as (id, columns, normalized accuracies); the id's last digit is the seed."""
    rows = []
    for run, columns, values in runs:
        seed = int(run[-1]) if run[-1].isdigit() else 0
        config = {"data_seed": seed, "model_seed": seed, **columns}
        rows += rows_of(run, config, values, lengths=lengths, judged=judged)
    return _framed(rows)


def _framed(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, infer_schema_length=None)
    # A column that is null throughout would have no type.
    measured = set(EVALUATION_SCHEMA) - {"task"}
    return frame.cast({name: EVALUATION_SCHEMA[name] for name in frame.columns if name in measured})
