"""A sweep is a named list of runs; a grid is a way to write one."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsity_lab.settings import Setting, SettingError, check_that, register, replace_at
from sparsity_lab.training import RunConfig, run_labels

_MOST_RUNS = 2**20


@register
class Sweep(Setting, family="sweep"):
    """A named list of different runs, in the order in which tables show them.

    >>> Sweep(name="by_k", runs=tuple(grid(run.config, {"task.k": [1, 2]}))).name
    'by_k'

    Attributes:
        name: a name for people, and for the default folder in ``runs``.
        runs: at least one run. Two runs with the same id are refused: they could differ only in their evaluation, and
            a run has only one evaluation.
    """

    name: str
    runs: tuple[RunConfig, ...]

    @classmethod
    def examples(cls) -> "tuple[Sweep, ...]":
        return (cls(name="one", runs=RunConfig.examples()[:1]),)

    def check(self) -> None:
        check_that(self.runs, "runs", "at least one run", self.runs)
        first: dict[str, int] = {}
        for i, run in enumerate(self.runs):
            if run.id in first:
                raise SettingError(f"runs[{i}]", f"the same run as runs[{first[run.id]}]")
            first[run.id] = i

    @property
    def is_planned(self) -> bool:
        """Whether the fields of all runs determine their data."""
        return all(run.is_planned for run in self.runs)

    def planned(self) -> "Sweep":
        """This sweep with the hashes of all texts in its fields; see ``RunConfig.planned``."""
        if self.is_planned:
            return self
        return self.replace(runs=tuple(run if run.is_planned else run.planned() for run in self.runs))

    def labels(self) -> dict[str, str]:
        """A short name for each run, by id: the settings that differ among the runs of this sweep."""
        return {run: label or self.name for run, label in run_labels(self.runs).items()}


def folder_of(name: str) -> Path:
    """The default folder for the runs of a sweep: ``runs/NAME``.

    Raises:
        SettingError: the name is not a valid folder name.
    """
    if not name or name in (".", "..") or any(sign in "/\\" or not sign.isprintable() for sign in name):
        expected = "a folder name without / and control characters (or give --out)"
        raise SettingError("name", expected, name)
    return Path("runs") / name


def lineage(run: RunConfig) -> list[RunConfig]:
    """The run, its parent, the parent of its parent, and so on."""
    line = [run]
    while line[-1].parent:
        line.append(line[-1].parent)
    return line


def waves(runs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """The runs and their parents, each once, in lists by number of ancestors. The runs of one list do not depend on
    each other."""
    own = {run.id: run for run in runs}
    found: list[dict[str, RunConfig]] = []
    for run in runs:
        for depth, member in enumerate(reversed(lineage(run))):
            if depth == len(found):
                found.append({})
            # A parent that is also among the runs keeps its own evaluation.
            found[depth][member.id] = own.get(member.id, member)
    return [list(wave.values()) for wave in found]


def grid(base: RunConfig, axes: Mapping[str, Sequence[Any]]) -> list[RunConfig]:
    """Every combination of the values, the last axis fastest.

    >>> [config.task.k for config in grid(run.config, {"task.k": [1, 2], "seed": [0, 1]})]
    [1, 1, 2, 2]

    Args:
        base: the config that all runs share.
        axes: values by the dotted path of the field, as in ``{"task.k": [1, 2], "task.locality": ["Recent(width=8)",
            Uniform()], "seed": [0, 1]}``. A value can be an object, plain data or the short form. ``seed`` sets the
            data seed and the model seed.

    Raises:
        SettingError: there is no such field, an axis has no values, or a combination is invalid.
    """
    for path, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise SettingError(path, "a list of values", values)
    if (count := math.prod(map(len, axes.values()))) > _MOST_RUNS:
        raise SettingError("grid", f"at most {_MOST_RUNS} combinations", count)
    runs = []
    for combination in itertools.product(*axes.values()):
        run = base
        for path, value in zip(axes, combination, strict=True):
            for field in ("data_seed", "model_seed") if path == "seed" else (path,):
                run = replace_at(run, field, value)
        runs.append(run)
    return runs
