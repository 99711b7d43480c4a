"""Short names for runs that belong together: what differs among them, and nothing twice."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from sparsity_lab.settings import Setting, short_form
from sparsity_lab.training.config import RunConfig

_Path = tuple[str, ...]
_Columns = dict[_Path, dict[int, str]]
"""Texts of settings by path and, where a run has the setting, by the run's place."""

_ORDER = ("task", "model", "adapter", "parent", "training", "data_seed", "model_seed", "seed")
"""From what a reader looks for to what goes with it. The evaluation tells no runs apart."""

_LONG = 60


def run_labels(runs: Sequence[RunConfig]) -> dict[str, str]:
    """A short name for each run, by id: the settings in which these runs differ, their seed last.

    What follows from other settings that are shown is left out: steps that go with the task, a position seed that
    goes with the run's. Settings are shown one level below the run's own fields; of parents, what differs among them.
    Different runs have different names; the name of a single run is empty.

    >>> list(run_labels([run.config, run.config.replace(task=Planted(k=2))]).values())
    ['k=1', 'k=2']
    """
    columns = dict(sorted(_columns(runs).items(), key=lambda item: _rank(item[0])))
    kept = _needed(columns, len(runs))
    names = _names(kept)
    return {
        run.id: " ".join(f"{names[path]}={columns[path][place]}" for path in kept if place in columns[path])
        for place, run in enumerate(runs)
    }


def _columns(runs: Sequence[RunConfig]) -> _Columns:
    """The settings in which the runs differ."""
    columns: _Columns = {}
    for path, column in _differing(dict(enumerate(runs))):
        columns.setdefault(path, {}).update(column)
    for path in [path for path in columns if path[-1] == "data_seed"]:
        of_model = (*path[:-1], "model_seed")
        if columns.get(of_model) == columns[path]:
            columns[*path[:-1], "seed"] = columns.pop(path)
            del columns[of_model]
    return columns


def _differing(values: Mapping[int, Any], path: _Path = (), depth: int = 0) -> Iterator[tuple[_Path, dict[int, str]]]:
    """The parts in which values differ: their kind, and what differs among those of one kind."""
    first = next(iter(values.values()), None)
    if all(value == first for value in values.values()):
        return
    kinds: dict[str | None, dict[int, Any]] = {}
    for place, value in values.items():
        kinds.setdefault(value.kind if isinstance(value, Setting) else None, {})[place] = value
    if depth == 2 or set(kinds) == {None}:
        yield path, {place: short_form.write(value).removesuffix("()") for place, value in values.items()}
        return
    if len(kinds) > 1:
        yield path, {place: text for members in kinds.values() for place, text in _kinds(members).items()}
    for kind, members in kinds.items():
        if kind is None:
            continue
        one = next(iter(members.values()))
        # A parent shows as much of itself as a run does.
        below = 1 if isinstance(one, RunConfig) else depth + 1
        for field in dataclasses.fields(cast(Any, one)):
            if below > 1 or field.name in _ORDER:
                inner = {place: getattr(value, field.name) for place, value in members.items()}
                yield from _differing(inner, (*path, field.name), below)


def _kinds(members: Mapping[int, Any]) -> dict[int, str]:
    """The kind of members of one kind, or the start of the id of what is one and the same run."""
    one = next(iter(members.values()))
    if not isinstance(one, Setting):
        return {place: short_form.write(value) for place, value in members.items()}
    one_run = isinstance(one, RunConfig) and all(value == one for value in members.values())
    return dict.fromkeys(members, cast(RunConfig, one).id[:8] if one_run else one.kind)


def _rank(path: _Path) -> tuple[int, ...]:
    """Fields of a setting keep their order."""
    return tuple(_ORDER.index(name) for name in path if name in _ORDER)


def _needed(columns: _Columns, runs: int) -> list[_Path]:
    """The columns without which runs, or settings that were run from several seeds, could not be told apart."""
    kept = list(columns)

    def parts(paths: Sequence[_Path]) -> int:
        return len({tuple(columns[path].get(place) for path in paths) for place in range(runs)})

    def is_seed(path: _Path) -> bool:
        return path[-1].endswith("seed")

    seeds = [path for path in reversed(columns) if is_seed(path)]
    for path in sorted(seeds, key=len, reverse=True):
        others = [one for one in kept if one != path]
        if parts(others) == parts(kept):
            kept = others
    # The least looked for first, and what takes long to say. That all seeds differ is no reason to leave out more.
    rest = [path for path in reversed(columns) if not is_seed(path)]
    long = {path for path in rest if max(map(len, columns[path].values())) > _LONG}
    for path in sorted(rest, key=lambda path: (path[0] not in ("training", "parent"), path not in long)):
        # Nor does a kind follow from the presence of its own fields.
        others = [one for one in kept if one[: len(path)] != path and not is_seed(one)]
        if parts(others) == parts([*others, path]):
            kept.remove(path)
    return kept


def _names(paths: Sequence[_Path]) -> dict[_Path, str]:
    """The last part of each path, after ``parent`` if it is a parent's; the whole path where two are alike."""
    last = {path: ".".join([name for name in path[:-1] if name == "parent"] + [path[-1]]) for path in paths}
    alike = list(last.values())
    return {path: name if alike.count(name) == 1 else ".".join(path) for path, name in last.items()}
