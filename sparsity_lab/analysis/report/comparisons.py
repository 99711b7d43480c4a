"""Pairs of arms for which theory expects an order, and whether their drops show it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsity_lab.analysis.drop import Drop
from sparsity_lab.analysis.pairing import Difference
from sparsity_lab.analysis.runs import kind_of, natural_key


@dataclass(frozen=True)
class Comparison:
    """Two arms that differ in one setting.

    Attributes:
        difference: the drop of the arm that may drop more, minus the drop of the other.
        expected: which arm theory expects to drop less; None if it expects nothing.
    """

    difference: Difference
    expected: str | None

    @property
    def verdict(self) -> str:
        """What the interval of the difference decides: no more than that."""
        interval = self.difference.interval
        if interval.estimate is None:
            return f"not compared: {self.difference.reason}"
        if not interval.decided:
            return "undecided"
        if self.expected is None:
            less = self.difference.minus if interval.estimate > 0 else self.difference.of
            return f"{less} drops less"
        return "as expected" if interval.estimate > 0 else "the opposite of what is expected"


def comparisons_of(drops: Drop, position: str | None) -> list[Comparison]:
    """The pairs of arms that differ in k only, or in locality only.

    A k is expected to drop less than the next larger one, under any position scheme. ``Recent`` is expected to drop
    less than ``Anchored`` with RoPE; under other schemes the two are compared and no order is expected.
    """
    rows = drops.frame().select("arm", *drops.by).to_dicts()
    rope = kind_of(f"{position}()" if position and "(" not in position else position) == "RoPE"
    found = []
    for of in rows:
        for minus in rows:
            changed = [name for name in drops.by if of[name] != minus[name]]
            if changed == ["task.k"] and _next_smaller(minus["task.k"], of["task.k"], [r["task.k"] for r in rows]):
                found.append(Comparison(drops.difference(of["arm"], minus["arm"]), minus["arm"]))
            if changed == ["task.locality"]:
                kinds = kind_of(of["task.locality"]), kind_of(minus["task.locality"])
                if kinds == ("Anchored", "Recent"):
                    difference = drops.difference(of["arm"], minus["arm"])
                    found.append(Comparison(difference, minus["arm"] if rope else None))
    return found


def _next_smaller(smaller: Any, larger: Any, values: Sequence[Any]) -> bool:
    order = sorted(set(values), key=lambda value: natural_key([value]))
    return order.index(larger) == order.index(smaller) + 1
