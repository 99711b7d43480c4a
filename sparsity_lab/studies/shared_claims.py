"""Claims that several studies make, and the numbers by seed that claims test: differences, growths, shares, slopes
and rank correlations.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import polars as pl
from scipy import stats

from sparsity_lab.analysis import Replicates, by_seed, paired
from sparsity_lab.studies.claim import Claim, Outcomes
from sparsity_lab.studies.criteria import BoundedMean, Criterion, MostSeeds
from sparsity_lab.studies.drops import differences_at, learned_words, means_at, slopes
from sparsity_lab.studies.evidence import Evidence

MATTERS = 0.05
"""The smallest difference of normalized accuracies that matters, unless a study names another."""
RISE = 0.2
"""A drop of normalized accuracy counts as growing if it is larger by at least this amount at the far end."""

DIFFERENT = BoundedMean(above=0.0, matters=MATTERS)
"""The default criterion for differences of normalized accuracies."""

_WORDS = {"value": "normalized accuracy", "drop": "drop of normalized accuracy"}


def growths(first: Replicates, later: Replicates) -> Replicates:
    """The relative growth of each number: later / first - 1.

    >>> growths({0: 2.0, 1: 4.0}, {0: 3.0, 1: 4.0})
    {0: 0.5, 1: 0.0}
    """
    return paired(lambda one, other: other / one - 1, first, later)


def shares_of_way(start: Replicates, own: Replicates, end: Replicates) -> Replicates:
    """The completed share of the way from start to end: (own - start) / (end - start).

    >>> shares_of_way({0: 1.0}, {0: 0.25}, {0: 0.0})
    {0: 0.75}
    """
    return paired(lambda begin, at, goal: (at - begin) / (goal - begin), start, own, end)


def rank_correlations(rows: pl.DataFrame, column: str, other: str, fewest: int) -> Replicates:
    """Spearman's rank correlation of two columns over the arms of each seed. Seeds with fewer than ``fewest`` arms,
    or with a constant column, are left out.

    >>> frame = pl.DataFrame({"arm": ["a", "b", "c"], "seed": [0, 0, 0], "x": [1, 2, 3], "y": [3, 4, 9]})
    >>> rank_correlations(frame, "x", "y", fewest=3)
    {0: 1.0}

    Args:
        rows: one row for each arm and ``seed``.
    """
    found = {}
    for (seed,), part in sorted(rows.partition_by("seed", as_dict=True, maintain_order=True).items()):
        first, second = part[column].to_numpy(), part[other].to_numpy()
        if part.height >= fewest and np.ptp(first) > 0 and np.ptp(second) > 0:
            found[seed] = float(stats.spearmanr(first, second).statistic)
    return found


def means_listed(
    numbers: Mapping[str, Replicates], places: int = 2, *, between: str = "; ", missing: str = ""
) -> str:
    """``elu 2.61; softmax 1.69``: the mean of each entry. Entries without numbers are left out, or shown with
    ``missing``.

    >>> means_listed({"elu": {0: 2.6, 1: 2.62}, "softmax": {0: 1.69}})
    'elu 2.61; softmax 1.69'
    """
    words = []
    for name, one in numbers.items():
        if one:
            # Adding 0.0 turns -0.0 into 0.0.
            words.append(f"{name} {round(fmean(one.values()), places) + 0.0:.{places}f}")
        elif missing:
            words.append(f"{name} {missing}")
    return between.join(words)


def slope_claim(
    name: str, statement: str, arms: Mapping[str, Mapping[str, float]], *, lengths: tuple[int, int], source: str
) -> Claim:
    """The claim that, in every arm, the drop between two lengths grows with the number of a condition.

    >>> arms = {"one": {"trained": 1.0}}
    >>> slope_claim("slope", "The drop grows with k.", arms, lengths=(8, 16), source="this lab").arms
    ('one',)

    Args:
        arms: the number of each condition, by arm and condition.
    """

    def rises(evidence: Evidence, *, only_learned: bool) -> Replicates:
        each = []
        for arm, at in arms.items():
            span = max(at.values()) - min(at.values())
            found = slopes(evidence.rows, arm, lengths[1], at, only_learned=only_learned)
            each.append({seed: slope * span for seed, slope in found.items()})
        return paired(lambda *values: min(values), *each)

    def numbers(evidence: Evidence) -> Outcomes:
        words = []
        for arm, at in arms.items():
            drops = {one: means_at(evidence.rows, arm, lengths[1], "drop", [one]) for one in at}
            words.append(f"{arm} {means_listed(drops, between=', ', missing='not learned')}")
        found = rises(evidence, only_learned=True)
        every = means_listed({"Mean rise, over all seeds, learned or not:": rises(evidence, only_learned=False)})
        return Outcomes(found, "of accuracy", f"Mean drop of what was learned: {'; '.join(words)}. {every}.")

    return Claim(
        name=name,
        statement=statement,
        source=source,
        outcome=f"The least-squares line through the drops of normalized accuracy from length {lengths[0]} to "
        f"{lengths[1]} over {', '.join(dict.fromkeys(map(_range_words, arms.values())))}, those that the seed "
        "learned (at least three): by how much it rises from one end to the other"
        f"{', the smallest of the arms' if len(arms) > 1 else ''}.",
        numbers=numbers,
        criterion=MostSeeds(at_least=RISE),
        arms=tuple(arms),
    )


def difference_claim(
    name: str,
    statement: str,
    arm: str | Sequence[str],
    minus: str | Sequence[str],
    *,
    lengths: tuple[int, int],
    source: str,
    column: str = "value",
    conditions: Sequence[str] | None = None,
    criterion: Criterion = DIFFERENT,
) -> Claim:
    """The claim that ``arm`` is above ``minus`` in normalized accuracy at the second of two lengths (``value``), or
    in the drop from the first to the second (``drop``). For several arms, it is about the mean over the pairs.

    >>> claim = difference_claim("k", "One beats two.", "one", "two", lengths=(8, 16), source="this lab")
    >>> claim.arms
    ('one', 'two')
    """
    pairs = _pairs(arm, minus)
    every_arm = tuple(dict.fromkeys(one for pair in pairs for one in pair))
    measure = f"{_WORDS[column]} " + (
        f"from length {lengths[0]} to {lengths[1]}" if column == "drop" else f"at length {lengths[1]}"
    )

    def differences(evidence: Evidence, *, only_learned: bool) -> Replicates:
        found: dict[tuple[int, int], float] = {}
        for place, (of, other) in enumerate(pairs):
            own = differences_at(evidence.rows, of, other, lengths[1], column, conditions, only_learned=only_learned)
            found |= {(seed, place): number for seed, number in own.items()}
        return by_seed(found)

    def numbers(evidence: Evidence) -> Outcomes:
        rows = evidence.rows
        parts = []
        for one in every_arm:
            mean = means_listed({one: means_at(rows, one, lengths[1], column, conditions)}, missing="not learned")
            parts.append(f"{mean} ({learned_words(rows, one, conditions)})")
        every = means_listed(
            {"Difference over all seeds, learned or not:": differences(evidence, only_learned=False)}
        )
        detail = f"{_WORDS[column].capitalize()}: {', '.join(parts)}. {every}."
        levels = {one: means_at(rows, one, lengths[1], "value", conditions) for one in every_arm}
        return Outcomes(differences(evidence, only_learned=True), "of accuracy", detail, levels)

    return Claim(
        name=name,
        statement=statement,
        source=source,
        outcome=f"{'; '.join(f'{of} minus {other}' for of, other in pairs)}: difference of the {measure}, by seed, "
        f"over what both learned{_averaged(pairs, conditions)}.",
        numbers=numbers,
        criterion=criterion,
        arms=every_arm,
    )


def _pairs(arm: str | Sequence[str], minus: str | Sequence[str]) -> list[tuple[str, str]]:
    first, second = ([one] if isinstance(one, str) else one for one in (arm, minus))
    return list(zip(first, second, strict=True))


def _averaged(pairs: Sequence[tuple[str, str]], conditions: Sequence[str] | None) -> str:
    """The average that the difference of a seed is, in words."""
    over = (["these pairs"] if len(pairs) > 1 else []) + ([" and ".join(conditions)] if conditions else [])
    return f", the mean over {' and '.join(over)}" if over else ""


def _range_words(at: Mapping[str, float]) -> str:
    return f"{next(iter(at))} to {list(at)[-1]}"
