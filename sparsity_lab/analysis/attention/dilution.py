"""Dilution: what a constant logit gap loses as background is added, apart from attention that goes wrong.

A softmax row whose k sources all score G above all n - k other keys puts

    M(G, k, n) = k e^G / (k e^G + n - k)

on the sources. The gap is taken from the mass at one length, the reference, in two ways, between which the truth is
to be expected:

    one gap   G such that the mean of M over the targets is their mean mass: exact if all
              targets are alike. Only the background keys differ, and their sum averages out as their number grows.
    each gap  every target has the G of its own mass: right if a head finds the sources of some targets only.

At any other length each predicts a mass by its M. What lies between the two (``predicted_low``,
``predicted_high``) is dilution; what lies outside is not:

    mass there = mass here + diluted + misplaced,
    misplaced  = predicted_low - mass here,   if the mass is below both: the gap itself has shrunk (above 0),
               = predicted_high - mass here,  if it is above both: the gap has grown (below 0),
               = 0                            between them.

``misplaced`` is as uncertain as the samples that it comes from: a mass at an edge of the band falls outside about
every other time. Its standard error is that of the distance from the nearer edge, and what is not some two of it away
from 0 may well be nothing. It is also biased where the background is uneven, because the mean mass over few keys is
not the mass at the mean. An example: the gap is a constant 4, with 3 sources among 26 keys at the reference. The
scores of the wrong keys have a standard deviation of 1 nat. At eight times the length, the mass then lies 0.002 below
the band; with 2 nats, it lies 0.02 below.

The split says how much mass left, not where it went. Mass that moves to particular wrong positions raises
``decoy_mass`` (on the k strongest wrong keys) and lowers ``wrong_support``. A gap that shrinks evenly changes both
only as much as dilution does. For mechanisms other than softmax, M is a yardstick and no law: one with a
length-dependent scale should beat it.

Source: the lab's own reading of why softmax attention degrades with length on planted correlations.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from scipy.optimize import brentq
from scipy.special import expit, logit

from sparsity_lab.analysis.attention.measure import (
    AttentionMeasurement,
    Floats,
    mean_and_error,
    mean_row,
    measured_length,
)
from sparsity_lab.analysis.attention.planted_mass import MASSES, Targets, targets_of
from sparsity_lab.analysis.attention.subjects import Models, subjects_of
from sparsity_lab.analysis.findings import change_finding
from sparsity_lab.analysis.length_axis import length_axis
from sparsity_lab.analysis.lines import draw_curve, name_lines, note_below
from sparsity_lab.analysis.measurement import rows_frame
from sparsity_lab.analysis.style import look, new_axes, styled
from sparsity_lab.generators import Batch, Task
from sparsity_lab.settings import SettingError

_LARGEST_GAP = 60.0  # beyond it a mass is 0 or 1 in double precision at any practical length
_MOST = 512  # gaps that enter a prediction, and places that it is made for; more are represented by as many quantiles
_MOST_GROUPS = 16  # of sequences, left out one at a time for a standard error


def diluted_mass(gap: float, k: int, n: int) -> float:
    """M = k e^G / (k e^G + n - k): the mass on k sources among n keys, each G above all others.

    >>> diluted_mass(gap=4.0, k=1, n=10).__round__(3), diluted_mass(gap=4.0, k=1, n=1000).__round__(3)
    (0.858, 0.052)

    Raises:
        SettingError: no source, or more sources than keys.
    """
    _check_counts(k, n)
    return float(expit(gap + _log_odds(k, n)))


def logit_gap(mass: float, k: int, n: int) -> float:
    """G = ln(M (n - k) / ((1 - M) k)), the inverse of ``diluted_mass``.

    >>> logit_gap(diluted_mass(gap=4.0, k=2, n=20), k=2, n=20).__round__(6)
    4.0

    Raises:
        SettingError: a mass outside (0, 1), no source, or no other key.
    """
    _check_counts(k, n)
    if not 0 < mass < 1:
        raise SettingError("mass", "a share above 0 and below 1", mass)
    if k == n:
        raise SettingError("n", f"more keys than the {k} sources", n)
    return float(logit(mass) - _log_odds(k, n))


_READ = (
    "what dilution does not explain, with its standard error. Below two of these it may be nothing; and on a very\n"
    "uneven background (standard deviation of scores 2 nats) a constant gap alone gives some 0.02."
)


@dataclass(frozen=True, repr=False)
class Dilution(AttentionMeasurement):
    """Measured mass compared with the prediction of dilution alone. Made by ``dilution``.

    The frame has one row per model, length, layer and head. Columns: ``arm``, ``length``, ``layer``, ``head``,
    ``reference`` (the length whose gaps predict) and ``reference_mass`` (the mass there). ``gap`` is the single gap
    in nats fitted there, ``gap_here`` the one fitted at this length. Then ``mass``, ``mass_se``, ``predicted_low``,
    ``predicted_high``, ``diluted`` and ``misplaced`` (see the module). ``misplaced_se`` is a jackknife over
    sequences; it is null for one sequence. ``decoy_mass`` is the mass on the k strongest wrong keys.
    ``wrong_support`` is the share of the wrong keys that hold the rest; 1 means evenly spread. A gap is infinite
    where a mass is 0 or 1. On an uneven background it falls slightly with length, because the mean mass over few keys
    is not the mass at the mean. All else are shares of a row.

    >>> dilution(model, task, [8, 16], sequences=4).frame()["reference"].unique().to_list()
    [8]

    Attributes:
        trained: the trained lengths, None if no model tells.
    """

    def summary(self) -> pl.DataFrame:
        """The rows of one head of each model: the one with the largest mass at the reference length."""
        best = (
            self._frame.sort("reference_mass", descending=True)
            .unique("arm", keep="first", maintain_order=True)
            .select("arm", "layer", "head")
        )
        return self._frame.join(best, on=["arm", "layer", "head"], how="semi", maintain_order="left")

    def __repr__(self) -> str:
        return f"{super().__repr__()}\nmisplaced: {_READ}"

    @property
    def finding(self) -> str:
        """From where to where the mass on the sources goes."""
        return change_finding(self.summary().drop("layer"), "length", "mass", "mass on the true sources")

    def plot(self, ax: Axes | None = None, *, layer: int | None = None, head: int | None = None) -> Axes:
        """Draw measured and predicted mass against length, for one head of each model; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            layer, head: which head; by default the one with the largest mass at the reference length.
        """
        drawn = self._chosen(layer, head)
        arms = drawn["arm"].unique(maintain_order=True).to_list()
        with styled():
            ax = new_axes(5.8, 3.3) if ax is None else ax
            for index, arm in enumerate(arms):
                part = drawn.filter(pl.col("arm") == arm).sort("length")
                one = part.row(0, named=True)
                words = f"{arm}, layer {one['layer']} head {one['head']}, gap {one['gap']:.1f} at {one['reference']}"
                style, errors = look(index), part["mass_se"].fill_null(0)
                low, high = part["predicted_low"], part["predicted_high"]
                draw_curve(ax, part["length"], part["mass"], style, words, low=low, high=high)
                ax.errorbar(part["length"], part["mass"], errors, fmt="none", ecolor=style.color)
            length_axis(ax, drawn["length"].unique().to_list(), self.trained, "length (tokens, log scale)")
            ax.set_ylabel("mass on the true sources\n(share of a scored target's row)")
            ax.set_ylim(-0.03, 1.03)
            name_lines(ax)
            note_below(ax, ["band: predicted from the gaps there (dilution alone)"])
        return ax

    def _chosen(self, layer: int | None, head: int | None) -> pl.DataFrame:
        if (layer is None) != (head is None):
            raise SettingError(
                "layer" if layer is None else "head", "missing; give both a layer and a head, or neither"
            )
        if layer is None:
            return self.summary()
        chosen = self._frame.filter((pl.col("layer") == layer) & (pl.col("head") == head))
        if chosen.is_empty():
            raise SettingError("head", "a layer and head that were measured", (layer, head))
        return chosen


def dilution(
    models: Models,
    data: Task | Batch | None = None,
    lengths: Iterable[int] | None = None,
    *,
    reference: int | None = None,
    sequences: int = 64,
    seed: int = 0,
) -> Dilution:
    """How the mass on the true sources falls with length, compared with the loss at a constant logit gap.

    >>> found = dilution(model, task, [8, 16], reference=8, sequences=4)
    >>> found.frame()["length"].unique().sort().to_list()
    [8, 16]

    Args:
        models, data: see ``subjects``.
        lengths: lengths of the task; by default those that a run was evaluated at.
        reference: the measured length at which the gaps are fitted. By default the largest trained one, or the
            smallest length for a model without known trained lengths.
        sequences: of each length.
        seed: of the sequences.

    Raises:
        SettingError: names the argument, what was expected and what came.
    """
    subjects = subjects_of(models)
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        found = list(targets_of([subject], data, lengths, sequences, seed))
        at = measured_length("reference", (place["length"] for place, _ in found), reference, subject.trained)
        there = {place["layer"]: targets for place, targets in found if place["length"] == at}
        for place, targets in found:
            rows += [place | row for row in _rows(targets, at, there[place["layer"]], place["layer"])]
    return Dilution(subjects.trained, rows_frame(rows))


def _rows(here: Targets, reference: int, there: Targets, layer: int) -> list[dict[str, Any]]:
    means, means_there = {name: here.means(name) for name in MASSES}, there.means("mass")
    rows = []
    for head in range(means_there.shape[1]):
        mass_there, _ = mean_and_error(means_there[:, head])
        row = mean_row({name: of[:, head] for name, of in means.items()}, errors=("mass",))
        mass = row["mass"]
        if mass is None or mass_there is None:
            raise SettingError("models", f"no row has any attention weight in layer {layer}, head {head}")
        low, high = _band(there, here, head)
        misplaced = max(low - mass, 0.0) + min(high - mass, 0.0)
        rows.append(
            {
                "head": head,
                "reference": reference,
                "reference_mass": mass_there,
                "gap": _gap_of_mean(*_of_head(there, head)),
                "gap_here": _gap_of_mean(*_of_head(here, head)),
                "mass": mass,
                "mass_se": row["mass_se"],
                "predicted_low": low,
                "predicted_high": high,
                "diluted": mass_there - mass - misplaced,
                "misplaced": misplaced,
                "misplaced_se": _distance_error(there, here, head),
                **{name: row[name] for name in MASSES[1:]},
            }
        )
    return rows


def _band(there: Targets, here: Targets, head: int) -> tuple[float, float]:
    """The smaller and the larger predicted mean mass of the targets here, from the gaps of those there."""
    mass, log_odds, share = _of_head(there, head)
    one = _gap_of_mean(mass, log_odds, share)
    each, share = _thinned(logit(mass.clip(0, 1)) - log_odds, share)
    _, log_odds, weight = _of_head(here, head)
    log_odds, weight = _thinned(log_odds, weight)
    masses = expit(one + log_odds) @ weight, share @ expit(each[:, None] + log_odds) @ weight
    return float(min(masses)), float(max(masses))


def _gap_of_mean(mass: Floats, log_odds: Floats, share: Floats) -> float:
    """The one gap at which the mean predicted mass of these targets is their mean mass; infinite for 0 and 1."""
    wanted = float(share @ mass)
    places, weight = _thinned(log_odds, share)

    def excess(gap: float) -> float:
        return float(expit(gap + places) @ weight) - wanted

    if excess(_LARGEST_GAP) <= 0:
        return math.inf
    return float(brentq(excess, -_LARGEST_GAP, _LARGEST_GAP)) if excess(-_LARGEST_GAP) < 0 else -math.inf


def _of_head(targets: Targets, head: int) -> tuple[Floats, Floats, Floats]:
    """Mass, log-odds under uniform attention and share of each target whose row has weight. A sequence counts by
    itself, not by the number of its targets, as in every mean; the shares add up to 1."""
    mass = targets.values[:, head, MASSES.index("mass")].double().numpy()
    known = ~np.isnan(mass)
    _, sequence, count = np.unique(targets.sequence.numpy()[known], return_inverse=True, return_counts=True)
    log_odds = _log_odds(targets.k.numpy()[known], targets.n.numpy()[known])
    return mass[known], log_odds, 1.0 / count[sequence] / len(count)


def _thinned(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """The different values with their weights; of more than ``_MOST`` those at the middles of as many parts of equal
    weight."""
    different, which = np.unique(values, return_inverse=True)
    weights = np.bincount(which, weights).astype(np.float64)
    if len(different) <= _MOST:
        return different, weights
    middles = (np.arange(_MOST) + 0.5) / _MOST * weights.sum()
    return different[np.searchsorted(weights.cumsum(), middles)], np.full(_MOST, weights.sum() / _MOST)


def _distance_error(there: Targets, here: Targets, head: int) -> float | None:
    """The standard error over sequences of how far the mass is from the nearer edge of the band: the jackknife,

        sqrt((J - 1) / J Σ (d_j - mean d)²),

    where d_j leaves out the j-th of J groups of the sequences, here and there.
    """
    groups = min(_MOST_GROUPS, there.num_sequences, here.num_sequences)
    if groups < 2:
        return None
    distances = []
    for group in range(groups):
        first, second = (one.without(group, groups) for one in (there, here))
        mass, _ = mean_and_error(second.means("mass")[:, head])
        if mass is not None:
            distances.append(min((edge - mass for edge in _band(first, second, head)), key=abs))
    spread = np.asarray(distances) - np.mean(distances)
    return float(np.sqrt((groups - 1) / groups * (spread @ spread)))


def _log_odds(k: Any, n: Any) -> Any:
    """ln(k / (n - k)), the log-odds of the sources under uniform attention."""
    return logit(np.asarray(k, dtype=np.float64) / n)


def _check_counts(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise SettingError("k", f"1 .. n = {n} sources", k)
