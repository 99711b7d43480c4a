"""The explorer: one page in which menus choose a run, and four pictures follow.

The extrapolation curve, the heat map, the attention map and the sample sequences show the same choice. The page holds
its own data and loads nothing. Its size has a limit, so it holds only a part of a large sweep. One run of every arm
comes first, then a second one of each. Attention maps follow in the same order. The page says what it leaves out.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import matplotlib as mpl
import polars as pl
from jinja2.utils import htmlsafe_json_dumps
from matplotlib.colors import to_hex

from sparsity_lab.analysis.attention.attention_map import attention_map
from sparsity_lab.analysis.attention.map_view import MAP_LOOKS, map_data
from sparsity_lab.analysis.extrapolation import extrapolation_curve
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.analysis.panels import telling
from sparsity_lab.analysis.replicates import SEEDS, seed_columns, without_seeds
from sparsity_lab.analysis.report.page import document, framed
from sparsity_lab.analysis.report.samples import MOST_TOKENS, sample_length, sample_sequences
from sparsity_lab.analysis.runs import (
    Frames,
    Measure,
    arms_of,
    evaluation_rows,
    measure_named,
    natural_key,
    nearest_length,
    pooled_by,
    trained_range,
)
from sparsity_lab.analysis.style import DASHES, PALETTE, figure_image, ink_on
from sparsity_lab.generators import Task
from sparsity_lab.settings import SettingError, counted
from sparsity_lab.settings.markup import Markup, element, join, visible
from sparsity_lab.training import Run, RunConfig
from sparsity_lab.training.files import DamagedFile

MENUS = ("task.k", "task.locality", "task.rule", "task.marking", "model.kernel", "model.position", "condition")
"""The first menus, where these settings vary. All others that tell arms apart come after them."""

_FOR_NUMBERS, _FOR_SAMPLES = 0.5, 0.65
"""Shares of the page up to which numbers and then sample sequences may fill it. Attention takes the rest."""
_LONGEST_LABEL = 80
_SEQUENCES = 2


class StoredRuns(Frames, Protocol):
    """The part of ``sweeps.Results`` that an explorer reads: frames, settings, states, and where the weights lie."""

    @property
    def runs(self) -> Sequence[RunConfig]: ...
    @property
    def folder(self) -> Path: ...
    def state(self, run: RunConfig, *, large: bool = False) -> Any: ...


@dataclass(frozen=True, repr=False, eq=False)
class Explorer:
    """Runs by menus. Made by ``explore``.

    >>> found = explore(results)
    >>> found.by, len(found.maps)
    (('task.k',), 4)

    Attributes:
        by: the settings with a menu, as columns of the evaluation frame. Seeds and lengths have theirs as well.
        measure: what curves and heat maps show.
        maps: ids of the runs whose attention is in the page.
        left_out: what is not in it, and why, a line each.
    """

    by: tuple[str, ...]
    measure: Measure
    maps: tuple[str, ...]
    left_out: tuple[str, ...]
    _frame: pl.DataFrame
    _numbers: dict[str, Any]
    _samples: tuple[Markup, ...]

    def frame(self) -> pl.DataFrame:
        """The evaluation rows of the runs in the page."""
        return self._frame

    def page(self, title: str = "Explorer") -> str:
        """The HTML document. Menus, cells of the heat map, and arrow keys on the curves all change the same choice;
        ``#`` and a run's id behind the address choose that run."""
        return _page(title, self._numbers, self._samples, self.left_out)

    def write(self, path: Path | str, title: str = "Explorer") -> Path:
        """Write ``page`` to a file; returns its path.

        Raises:
            SettingError: the file cannot be written.
        """
        return write_whole(Path(path), self.page(title).encode(errors="backslashreplace"))

    def __repr__(self) -> str:
        runs = self._frame["run"].n_unique()
        head = f"Explorer: {counted(runs, 'run')} by {', '.join(self.by) or 'seed'}; attention of {len(self.maps)}"
        return "\n".join([head, *(f"  {words}" for words in self.left_out)])

    def _repr_html_(self) -> str:
        rows, first = self._frame, arms_of(self._frame, self.by)[0]
        fixed = []
        for name in self.by[1:]:
            arm = next(arm for arm in arms_of(rows, name) if arm.values[name] == first.values[name])
            rows = arm.rows
            fixed.append(element("code", _label(arm.label)))
        curve = extrapolation_curve(rows, by=self.by[0] if self.by else "condition", measure=self.measure.name)
        still = element("div", figure_image(curve.figure(), curve.finding))
        words = [element("p", "One choice of the menus: ", join(fixed, ", "), ".")] if fixed else []
        return join([*words, still, framed("Explorer", self.page(), "explorer.html")])


def explore(results: StoredRuns, measure: str | None = None, *, megabytes: float = 3) -> Explorer:
    """All runs of a sweep in one page with menus: k, locality, rule, marking, kernel, position, every other setting
    in which arms differ, seed and length.

    >>> explore(results).write("explorer.html").name
    'explorer.html'

    Args:
        results: ``sweeps.Results``.
        measure: by default normalized accuracy, or accuracy if some task declares no optimum.
        megabytes: the page has at most so many million bytes.

    Raises:
        SettingError: no run has been evaluated, the measure is unknown, or the page is too small for one run.
    """
    frame = evaluation_rows(results, by=("condition",))
    if measure is None:
        measure = "accuracy" if frame["normalized_accuracy"].has_nulls() else "normalized_accuracy"
    shown = measure_named(measure, frame)
    by = _menus(frame)
    most = int(megabytes * 1e6) - len(_page("", {}, (), ("",) * 8)) - 4000
    kept, size = _first(_members(results, frame, by, shown), int(most * _FOR_NUMBERS))
    if not kept:
        raise SettingError("megabytes", "room for at least one run", megabytes)
    samples, size = _samples(kept, size, int(most * _FOR_SAMPLES))
    maps, unread = _maps(results, kept, most - size)
    tasks = {member.sample for member in kept}
    left_out = {
        f"Runs that do not fit into {megabytes:g} MB": frame.select("run", "condition").n_unique() - len(kept),
        "Tasks whose sample sequences do not fit, or are too long or from files": len(tasks) - len(samples),
        "Runs whose attention maps do not fit": len(kept) - len(maps) - unread,
        "Runs without an attention map: no weights, not a Decoder, or sequences too long or from files": unread,
    }
    numbers = _numbers(kept, by, shown, list(samples), maps)
    runs = [member.config.id for member in kept]
    return Explorer(
        by=by,
        measure=shown,
        maps=tuple(dict.fromkeys(kept[place].config.id for place in maps)),
        left_out=tuple(f"{words}: {count}." for words, count in left_out.items() if count),
        _frame=frame.filter(pl.col("run").is_in(runs)),
        _numbers=numbers,
        _samples=tuple(samples.values()),
    )


class _Member(NamedTuple):
    """A run under one condition.

    Attributes:
        arm: number of its arm, from 0.
        at: for each menu, the place of its value in natural order, and its label.
        seed: its seeds in words.
        values: (length, value) of the measure.
    """

    arm: int
    at: tuple[tuple[int, str], ...]
    seed: str
    config: RunConfig
    task: Task
    learned: bool | None
    trained: tuple[int, int] | None
    values: tuple[tuple[int, float | None], ...]

    @property
    def sample(self) -> tuple[str, int | None]:
        return str(self.task), sample_length(self.config, self.task)


def _menus(frame: pl.DataFrame) -> tuple[str, ...]:
    """The settings that distinguish the arms, except those that other settings determine; of a single arm its k."""
    present = [name for name in MENUS if name in frame.columns]
    by = [name for name in present if without_seeds(frame, present)[name].n_unique() > 1]
    by += [name for name in pooled_by(arms_of(frame, by)) if name not in by]
    return tuple(telling(frame, by))


def _members(results: StoredRuns, frame: pl.DataFrame, by: Sequence[str], measure: Measure) -> Iterator[_Member]:
    """The first seed of every arm, then the second of every one, and so on."""
    configs = {run.id: run for run in results.runs}
    places = [{arm.values[name]: (i, _label(arm.label)) for i, arm in enumerate(arms_of(frame, name))} for name in by]
    seeds = seed_columns(frame, by)
    one = frame.sort("length").group_by("run", "condition", maintain_order=True)
    found = one.agg("length", measure.name, pl.col("learned").first(), *(pl.col(name).first() for name in seeds))
    rows = {(row["run"], row["condition"]): row for row in found.iter_rows(named=True)}
    ranked: list[tuple[int, int, _Member]] = []
    for number, arm in enumerate(arms_of(frame, by)):
        at = tuple(place[arm.values[name]] for name, place in zip(by, places, strict=True))
        own = [rows[key] for key in arm.rows.select("run", "condition").unique(maintain_order=True).iter_rows()]
        own.sort(key=lambda row: natural_key([row[name] for name in seeds]))
        trained = trained_range(arm.rows)
        told = [name for name in seeds if name in SEEDS or arm.rows[name].n_unique() > 1]
        for rank, row in enumerate(own):
            config = configs[row["run"]]
            member = _Member(
                arm=number,
                at=at,
                seed=_seed_words({name: row[name] for name in told}),
                config=config,
                task=config.conditions[row["condition"]],
                learned=row["learned"],
                trained=trained,
                values=tuple(zip(row["length"], row[measure.name], strict=True)),
            )
            ranked.append((rank, number, member))
    return (member for _, _, member in sorted(ranked, key=lambda one: one[:2]))


def _seed_words(seeds: dict[str, Any]) -> str:
    values = list(seeds.values())
    if len(set(values)) == 1:
        return f"seed {values[0]}"
    return ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in seeds.items()) or "one run"


def _first(members: Iterable[_Member], most: int) -> tuple[list[_Member], int]:
    """As many as fit into so many bytes, and the bytes they take."""
    kept: list[_Member] = []
    labels: set[str] = set()
    size = 0
    for member in members:
        new = {label for _, label in member.at} - labels
        size += _size(_run_data(member)) + _size(list(new)) + 120  # with what an arm needs
        if size > most:
            break
        labels |= new
        kept.append(member)
    return kept, size


def _samples(kept: Sequence[_Member], size: int, most: int) -> tuple[dict[tuple[str, int | None], Markup], int]:
    """Sequences of each task at its ``sample_length``, while they fit."""
    found: dict[tuple[str, int | None], Markup] = {}
    for name, length, sequences in sample_sequences(((one.task, one.sample[1]) for one in kept), _SEQUENCES):
        html = join([element("p", element("code", name), f" at length {length}", class_="note"), sequences])
        size += len(html.encode(errors="backslashreplace")) + 60
        if size > most:
            break
        found[name, length] = html
    return found, min(size, most)


def _maps(results: StoredRuns, kept: Sequence[_Member], room: int) -> tuple[dict[int, dict[str, Any]], int]:
    """Attention maps by place in ``kept``, while they fit; and how many runs have no weights that can be read."""
    found: dict[int, dict[str, Any]] = {}
    unread = 0
    for place, member in enumerate(kept):
        data = _attention(results, member)
        if data is None:
            unread += 1
            continue
        room -= _size(data)
        if room < 0:
            break
        found[place] = data
    return found, unread


def _attention(results: StoredRuns, member: _Member) -> dict[str, Any] | None:
    """The maps of a run at a trained length and at one about four times as long; None without weights."""
    config, task = member.config, member.task
    high = member.sample[1]
    if high is None or results.state(config, large=True).status != "finished":
        return None
    lengths = [length for length in config.evaluation.lengths if length > high]
    longer = nearest_length((one for one in lengths if task.sequence_length(one) <= MOST_TOKENS), 4 * high)
    try:
        config.check_memory()  # of a store from elsewhere, whose model may be larger than this machine
        model: Any = Run(config, results.folder / config.id).model()
        found = attention_map(model, 0, task, (high, *([] if longer is None else [longer])))
    except (SettingError, DamagedFile, OSError):
        return None
    trained = replace(found.views[0], name=f"{found.views[0].name} (trained)")
    return map_data((trained, *found.views[1:]), found.head, found.largest)


def _numbers(
    kept: Sequence[_Member],
    by: Sequence[str],
    measure: Measure,
    samples: Sequence[tuple[str, int | None]],
    maps: dict[int, dict[str, Any]],
) -> dict[str, Any]:
    """What the page's script reads."""
    values = [sorted({member.at[axis] for member in kept}) for axis in range(len(by))]
    names = [name.rpartition(".")[2] for name in by]
    seeds = list(dict.fromkeys(member.seed for member in sorted(kept, key=lambda one: natural_key([one.seed]))))
    arms: dict[int, dict[str, Any]] = {}
    for place, member in enumerate(kept):
        at = [own.index(value) for own, value in zip(values, member.at, strict=True)]
        arm = arms.setdefault(member.arm, {"at": at, "trained": member.trained, "runs": []})
        run = _run_data(member) | {"seed": seeds.index(member.seed)}
        if member.sample in samples:
            run["sample"] = samples.index(member.sample)
        if place in maps:
            run["map"] = maps[place]
        arm["runs"].append(run)
    shades = [to_hex(color) for color in mpl.colormaps["cividis"](range(0, 256, 15))]
    return {
        "measure": {"label": f"{measure.words} ({measure.unit})", "words": measure.words},
        "whole": measure.unit.startswith(("0 =", "share")),
        "levels": {"chance": 0, "Bayes": 1} if measure.name == "normalized_accuracy" else {},
        "menus": [
            {"name": visible(short if names.count(short) == 1 else name), "values": [label for _, label in own]}
            for name, short, own in zip(by, names, values, strict=True)
        ],
        "seeds": [visible(seed) for seed in seeds],
        "lengths": sorted({length for member in kept for length, _ in member.values}),
        "arms": [arms[number] for number in sorted(arms)],
        "colors": PALETTE,
        "dashes": [" ".join(f"{2 * part:g}" for part in dash) if dash else "" for dash in DASHES],
        "shades": [[shade, ink_on(shade)] for shade in shades],
        "looks": MAP_LOOKS,
    }


def _run_data(member: _Member) -> dict[str, Any]:
    values = {length: float(f"{value:.4g}") for length, value in member.values if value is not None}
    return {"id": member.config.id, "learned": member.learned, "values": values}


def _label(text: str) -> str:
    text = visible(text)
    return text if len(text) <= _LONGEST_LABEL else f"{text[:_LONGEST_LABEL]}…"


def _size(data: Any) -> int:
    """Bytes in the page, with the comma."""
    return len(htmlsafe_json_dumps(data, separators=(",", ":"))) + 2


def _page(title: str, numbers: dict[str, Any], samples: Sequence[Markup], left_out: Sequence[str]) -> str:
    return document("explorer.html", title=title, numbers=numbers, samples=samples, left_out=left_out)
