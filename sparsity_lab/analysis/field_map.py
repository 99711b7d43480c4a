"""The map of the field: how many tokens the answers of each task need, and how far back they are, by length.

Both are counted from the sources of sampled sequences, so that tasks of different papers can be told apart by what
they ask of a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from matplotlib.axes import Axes

from sparsity_lab.analysis.measurement import Measurement
from sparsity_lab.analysis.style import GRAY, INK, PALETTE, new_axes, styled
from sparsity_lab.generators import Stream, Task
from sparsity_lab.settings import SettingError, kinds

_POSITIONS = (16, 64, 256)
_SEQUENCES = 64


@dataclass(frozen=True, repr=False)
class FieldMap(Measurement):
    """Tasks by the number of sources of their answers and the distance to them.

    >>> FieldMap(rows=(("copy", 13, 1.0, 6.0),), without=()).frame().columns
    ['task', 'positions', 'sources', 'distance']

    Attributes:
        rows: for each task and length: its name, T, the largest number of sources of a target, and the distance in
            tokens to the farthest one. The numbers are means over sequences.
        without: tasks that list no sources.
    """

    rows: tuple[tuple[str, int, float, float], ...]
    without: tuple[str, ...]

    def frame(self) -> pl.DataFrame:
        """One row for each task and length: ``task``, ``positions``, ``sources``, ``distance``."""
        return pl.DataFrame(self.rows, schema=["task", "positions", "sources", "distance"], orient="row")

    @property
    def finding(self) -> str:
        """How many tasks stay sparse, and how many stay local: their number does not double while sequences grow at
        least fourfold."""
        ends = (
            self.frame()
            .group_by("task")
            .agg(pl.all().sort_by("positions").last() / pl.all().sort_by("positions").first())
        )
        grown = ends.filter(pl.col("positions") >= 4)
        sparse, local = (grown.filter(pl.col(name) < 2).height for name in ("sources", "distance"))
        return (
            f"While sequences grow at least fourfold, the number of needed tokens less than doubles in {sparse} of "
            f"{grown.height} tasks, and the distance of the farthest in {local}"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """A line of each dial for each task, from its shortest to its longest length; tasks that need most on top."""
        frame = self.frame()
        last = frame.group_by("task", maintain_order=True).last().sort("sources", "distance", "task")
        with styled():
            ax = ax or new_axes(7.4, 0.24 * len(last) + 1.2)
            for y, task in enumerate(last["task"]):
                own = frame.filter(task=task)
                for shift, (column, color, marker, _) in zip((0.14, -0.14), _DIALS, strict=True):
                    values = own[column].to_list()
                    sizes = [8 + 10 * i for i in range(len(values))]
                    ax.plot(values, [y + shift] * len(values), color=color, linewidth=1.4)
                    ax.scatter(values, [y + shift] * len(values), s=sizes, color=color, marker=marker)
            ax.set_yticks(range(len(last)), last["task"].to_list(), fontsize=9)
            ax.set_ylim(-0.8, len(last) - 0.2)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
            ax.set_xlabel("tokens (log scale); larger dots are longer sequences")
            ax.grid(axis="y", color=GRAY, alpha=0.25, linewidth=0.6)
            lines = [ax.plot([], [], color=color, marker=mark, label=words)[0] for _, color, mark, words in _DIALS]
            ax.legend(handles=lines, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9, labelcolor=INK)
        return ax


_DIALS = (
    ("sources", PALETTE[1], "s", "how many tokens an answer needs"),
    ("distance", PALETTE[0], "o", "how far back the farthest is"),
)


def field_map(
    tasks: Mapping[str, Task] | None = None, positions: Sequence[int] = _POSITIONS, sequences: int = _SEQUENCES
) -> FieldMap:
    """Count the sources of sampled sequences.

    Args:
        tasks: by name; None takes the first example of every registered task.
        positions: of each task the longest sequences with at most so many positions, where it has any.
        sequences: sampled at each length.

    >>> from sparsity_lab.generators import Copy, ParityAnswer
    >>> field_map({"copy": Copy(), "parity": ParityAnswer()}, positions=(13,)).rows
    (('copy', 13, 1.0, 6.0), ('parity', 13, 9.0, 10.0))
    """
    if tasks is None:
        tasks = {name: cls.examples()[0] for name, cls in kinds("task").items() if issubclass(cls, Task)}
    rows, without = [], []
    for name, task in tasks.items():
        lengths = dict.fromkeys(length for T in positions if (length := _longest(task, T)) is not None)
        for length in lengths:
            batch = task.sample(Stream(name="map"), 0, sequences, length)
            if batch.sources is None:
                without.append(name)
                break
            scored = batch.scored
            sizes = (batch.sources >= 0).sum(dim=2)
            most = sizes.amax(dim=1, keepdim=True)
            hardest = scored & (sizes == most)
            first = torch.where(batch.sources >= 0, batch.sources, batch.tokens.shape[1]).amin(dim=2)
            back = (torch.arange(1, batch.tokens.shape[1] + 1) - first).double()
            distance = (back * hardest).sum(dim=1) / hardest.sum(dim=1)
            rows.append((name, batch.tokens.shape[1], float(most.double().mean()), float(distance.mean())))
    return FieldMap(tuple(rows), tuple(without))


def _longest(task: Task, positions: int) -> int | None:
    """The largest length of at most so many positions."""
    for length in range(positions, 0, -1):
        try:
            task.check_length(length)
        except SettingError:
            continue
        if task.sequence_length(length) <= positions:
            return length
    return None
