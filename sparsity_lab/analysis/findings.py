"""What a figure shows, in one sentence that is made from its frame: its title, and its words for screen readers."""

import re
import textwrap
from collections.abc import Iterable
from typing import Any

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis.style import styled
from sparsity_lab.settings.markup import number

_EACH, _NAMED = 4, 3
"""Reaches that are told one by one, and arms that are named together, at most."""
_LINES, _LETTERS = 2, 10.8
"""Of a title, and of one of its lines in an inch."""
_HOLDS, _NOT_LEARNED = ("holds", "hold"), ("was not learned", "were not learned")


def told(each: Iterable[tuple[str, tuple[str, str], str]]) -> list[str]:
    """What each arm does, as clauses: those that do the same share one, and a verb stands once.

    >>> falls = ("falls", "fall")
    >>> told([("a", ("holds", "hold"), "to 8"), ("b", falls, "at 4"), ("c", falls, "at 2"), ("d", falls, "at 2")])
    ['a holds to 8', 'b falls at 4', 'c and d at 2']

    Args:
        each: its name, the verb for one and for several, and where.
    """
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, verb, where in each:
        groups.setdefault(verb, {}).setdefault(where, []).append(name)
    several = sum(map(len, groups.values())) > 1
    clauses = []
    for (one, many), places in groups.items():
        for place, (where, names) in enumerate(places.items()):
            subject = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
            if len(names) > _NAMED:
                subject = f"{len(names)} others" if several else f"all {len(names)}"
            does = "" if place else one if len(names) == 1 else many
            clauses.append(" ".join(words for words in (subject, does, where) if words))
    return clauses


def curve_finding(frame: pl.DataFrame, words: str) -> str:
    """How far each arm holds, and what arms without a learned run reached at the largest trained length; of many
    reaches the farthest and the shortest. Without an optimum, from where to where the measure goes.

    Args:
        frame: of an extrapolation curve.
        words: of the measure.
    """
    arms = frame.unique("arm", keep="first", maintain_order=True)
    learned = arms.filter(pl.col("reach").is_not_null()).sort("reach", "reach_at_least", descending=True)
    trained = frame.filter("trained").group_by("arm", maintain_order=True).last()
    failed = trained.filter((pl.col("judged") > 0) & (pl.col("learned") == 0)).drop_nulls("unlearned")
    if learned.is_empty() and failed.is_empty():
        return change_finding(frame, "length", "median", words)
    ends = learned if learned["reach"].n_unique() <= _EACH else learned[[0, -1]]
    each = [
        (row["arm"], _HOLDS, f"to {row['reach']:g}{' or more' if row['reach_at_least'] else ''}")
        for row in ends.iter_rows(named=True)
    ]
    if failed.height:
        most: Any = failed["unlearned"].max()
        where = f"length {failed['length'][0]}" if failed["length"].n_unique() == 1 else "the trained lengths"
        reached = f"({'at most ' * (failed.height > 1)}{most:.2f} at {where})"
        each += [(name, _NOT_LEARNED, reached) for name in failed["arm"]]
    between = learned.height - ends.height
    return "; ".join([*told(each), *([f"{between} arms lie between"] if between else [])])


def change_finding(frame: pl.DataFrame, x: str, y: str, words: str) -> str:
    """From where to where a measure goes between the ends of the axis, as means for each model and layer. Of many
    lines only two are told: the one that changes most and the one that changes least.

    >>> frame = pl.DataFrame({"arm": ["a", "a"], "length": [8, 16], "mass": [0.9, 0.4]})
    >>> change_finding(frame, "length", "mass", "mass")
    'Mass from length 8 to 16: 0.90 to 0.40 (a)'
    """
    known = frame.drop_nulls(y)
    if known.is_empty():
        return f"No values of {words}"
    keys = [name for name in ("arm", "layer") if name in frame.columns]
    means = known.group_by(*keys, x, maintain_order=True).agg(pl.col(y).mean()).sort(x, maintain_order=True)
    ends = means.group_by(keys, maintain_order=True).agg(first=pl.col(y).first(), last=pl.col(y).last())
    change = (pl.col("last") - pl.col("first")).abs()
    rows = ends.sort(change, descending=True, maintain_order=True).rows(named=True)
    low, high = (float(value) for value in known[x].sort()[[0, -1]])
    each = []
    for row in rows if len(rows) < 3 else (rows[0], rows[-1]):
        start = "" if low == high else f"{number(row['first'])} to "
        line = f"{row['arm']}, layer {row['layer']}" if "layer" in keys else row["arm"]
        each.append(f"{start}{number(row['last'])} ({line})")
    place = f"at {x} {low:g}" if low == high else f"from {x} {low:g} to {high:g}"
    return f"{words[:1].upper()}{words[1:]} {place}: {', '.join(each)}"


def map_finding(frame: pl.DataFrame, rows: str, columns: str) -> str:
    """The cell with the largest median and the one with the smallest; how many cells were not learned."""
    known = frame.drop_nulls("median").sort("median", descending=True, maintain_order=True)
    failed = frame.filter(pl.col("state") == "none learned").height
    rest = [f"{failed} of {frame.height} not learned"] if failed else []
    if known.is_empty():
        return "; ".join(rest) or "No values"
    ends = [known.row(0, named=True), *([known.row(-1, named=True)] if known.height > 1 else [])]
    words = [
        f"{name}: {cell[rows]}, {cell[columns]} ({cell['median']:.2f})"
        for name, cell in zip(("Highest", "lowest"), ends, strict=False)
    ]
    return "; ".join([*words, *rest])


def titled(figure: Figure, finding: str) -> Figure:
    """The figure with the finding as its title, and taller by the height of the title. A title has at most two lines:
    of a finding that takes more it has the first clauses, as far as they fit.

    >>> from matplotlib.figure import Figure
    >>> titled(Figure(), "The loss falls.").get_suptitle()
    'The loss falls.'
    """
    width, height = figure.get_size_inches()
    lines = _title_lines(finding, int(width * _LETTERS))
    with styled():
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    figure.set_size_inches(width, height + 0.2 * len(lines) + 0.08)
    return figure


def _title_lines(finding: str, letters: int) -> list[str]:
    clauses = re.split(r"(?<=[;.]) ", finding)
    for count in range(len(clauses), 0, -1):
        words = " ".join(clauses[:count]) if count == len(clauses) else f"{' '.join(clauses[:count])} …"
        lines = textwrap.wrap(words, letters, break_on_hyphens=False)
        if len(lines) <= _LINES:
            return lines
    return textwrap.wrap(finding, letters, break_on_hyphens=False, max_lines=_LINES, placeholder=" …")
