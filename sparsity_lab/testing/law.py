"""What every locality law must do."""

import itertools
import math
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstest

from sparsity_lab.generators import Law, Stream
from sparsity_lab.generators.certify.findings import chi_square
from sparsity_lab.settings.words import open_unit
from sparsity_lab.testing.failing import made, require, without_global_randomness
from sparsity_lab.testing.setting import check_setting

Places = NDArray[np.int64]

FALSE_ALARM_RATE = 1e-6
"""Of each test of draws, nominally. Seeds are fixed, so a law that passes once passes always."""

_DRAWS = 100_000
_FAR = ((3, 2000), (5, 300))
_FAR_DRAWS = 20_000
_MOST_SETS = 20_000
_SHARED = 200
_TWO_LAWS = "`draw` and `log_pmf` are of different laws."


def check_law(
    law: Law,
    *,
    sizes: tuple[tuple[int, int], ...] = ((1, 9), (2, 9), (3, 9), (4, 7), (3, 4), (2, 2), (1, 2000), (2, 200)),
) -> None:
    """Check a locality law by enumeration of all its sets, at every (k, length) of ``sizes`` whose k it has room for.

    ``log_pmf`` sums to one, ``order_pmf`` and ``support_size`` follow from it, 100,000 draws agree with it
    (chi-square), and a draw is a function of its own words alone. Three places among 2000 and five among 300 have too
    many sets to list. There, 20,000 draws follow ``order_pmf`` (chi-square). Given all other places of a set, each
    place follows ``log_pmf`` (Kolmogorov-Smirnov). ``log_pmf`` sums to ``order_pmf`` over the sets that begin, or
    end, at one place. The false-alarm rate of each test is 1e-6.

    Raises:
        AssertionError: something does not hold; the message says what, and what to do.

    Example:
        >>> from sparsity_lab.generators import PowerLaw
        >>> check_law(PowerLaw(alpha=1.5))
    """
    check_setting(law)
    require(
        law.anchor in ("query", "start", None),
        law,
        f"its anchor is {law.anchor!r}",
        'Say `anchor = "query"` if sets keep their distances from the query, "start" for places, else None.',
    )
    bound = law.bound()
    sizes = tuple((k, length) for k, length in sizes if bound is None or k <= bound[1])
    require(bool(sizes), law, f"it has no room for any k at all: bound() is {bound}", "Let k = 1 be possible.")
    for k, length in sizes:
        _check_at(law, k, length)
    for k, length in _FAR:
        if bound is None or k <= bound[1]:
            _check_far(law, k, length)


def _check_at(law: Law, k: int, length: int) -> None:
    subject = f"{law} at k={k}, length={length}"
    sets = np.array(list(itertools.combinations(range(1, length + 1), k)), dtype=np.int64)
    logs = made(lambda: law.log_pmf(sets, length), subject, "`log_pmf` fails", "It takes (count, k) places.")
    pmf = np.exp(logs)
    require(pmf.shape == (len(sets),), subject, f"`log_pmf` has shape {pmf.shape}", "Give one number for each set.")
    total = f"`log_pmf` sums to {pmf.sum():.9g} over all {len(sets)} sets"
    require(abs(pmf.sum() - 1) < 1e-9, subject, total, "Normalize it over the sets of k places among the length.")
    size, positive = law.support_size(k, length), int(np.isfinite(logs).sum())
    counted = f"`support_size` says {size}, and {positive} sets have a probability"
    require(size == positive, subject, counted, "Count the sets of positive probability.")
    _check_order(law, sets, pmf, length, subject)
    words = Stream(seed=5, name="check_law").words("positions", length, 0, _DRAWS, k)
    drawn = _draws(law, words, length, subject)
    index = np.flatnonzero((sets[None, :, :] == drawn[:1, None, :]).all(axis=2))
    require(
        len(index) == 1, subject, f"`draw` gives {drawn[0].tolist()}, which is no set of places", "See `Law.draw`."
    )
    code = (length + 1) ** np.arange(k)
    order = np.argsort(sets @ code)
    counts = np.bincount(order[np.searchsorted((sets @ code)[order], drawn @ code)], minlength=len(sets))
    for finding in chi_square("draws", "sets", counts, pmf * _DRAWS):
        found = f"draws do not follow `log_pmf` ({finding.test}, p = {finding.p_value:.1e}; {finding.subject})"
        require(finding.p_value >= FALSE_ALARM_RATE, subject, found, _TWO_LAWS)


def _check_order(law: Law, sets: NDArray[np.int64], pmf: NDArray[np.float64], length: int, subject: str) -> None:
    k = sets.shape[1]
    counted = np.array([np.bincount(sets[:, j] - 1, pmf, minlength=length) for j in range(k)])
    declared = np.asarray(law.order_pmf(k, length))
    remedy = "Row j - 1, column i - 1 is the probability that the j-th smallest place is i, shape (k, length)."
    shape = f"`order_pmf` has shape {declared.shape}, not {counted.shape}"
    require(declared.shape == counted.shape, subject, shape, remedy)
    off = np.abs(declared - counted)
    j, i = np.unravel_index(off.argmax(), off.shape)
    found = f"`order_pmf`[{j}, {i}] is {declared[j, i]:.6g}, and `log_pmf` gives {counted[j, i]:.6g}"
    require(bool(off.max() < 1e-9), subject, found, remedy)


def _check_far(law: Law, k: int, length: int) -> None:
    """What can be told of sets that are too many to list."""
    subject = f"{law} at k={k}, length={length}"
    stream = Stream(seed=6, name="check_law")
    drawn = _draws(law, stream.words("positions", length, 0, _FAR_DRAWS, k), length, subject)
    likely = np.isfinite(law.log_pmf(drawn, length))
    found = f"`draw` gives {drawn[~likely][:1].tolist()}, whose probability is zero"
    require(bool(likely.all()), subject, found, _TWO_LAWS)
    declared = np.asarray(law.order_pmf(k, length))
    for j, (places, pmf) in enumerate(zip(drawn.T, declared, strict=True)):
        counts = np.bincount(places - 1, minlength=length)
        for finding in chi_square("draws", f"place {j + 1}", counts, pmf * len(drawn)):
            found = f"draws do not follow `order_pmf` ({finding.test}, p = {finding.p_value:.1e}; {finding.subject})"
            require(finding.p_value >= FALSE_ALARM_RATE, subject, found, "They are of different laws.")
    some = drawn[: 200_000 // length]
    _check_conditionals(law, some, open_unit(stream.words("ties", length, 0, len(some), k)), length, subject)
    _check_ends(law, declared, length, subject)


def _check_conditionals(law: Law, drawn: Places, unit: NDArray[np.float64], length: int, subject: str) -> None:
    """Given the others, each place follows the probabilities of the sets that differ only in it. So the probability
    of a lower place, plus a random share of its own, is uniform."""
    edges = np.pad(drawn, ((0, 0), (1, 1)), constant_values=((0, 0), (0, length + 1)))
    for j in range(drawn.shape[1]):
        choices = edges[:, j + 2] - edges[:, j] - 1
        starts = np.cumsum(choices) - choices
        row = np.repeat(np.arange(len(drawn)), choices)
        place = np.arange(len(row)) - starts[row] + edges[row, j] + 1
        sets = drawn[row]
        sets[:, j] = place
        logs = law.log_pmf(sets, length)
        pmf = np.exp(logs - np.maximum.reduceat(logs, starts)[row])
        lower = np.add.reduceat(pmf * (place < drawn[row, j]), starts)
        own = np.add.reduceat(pmf * (place == drawn[row, j]), starts)
        p = float(kstest((lower + unit[:, j] * own) / np.add.reduceat(pmf, starts), "uniform").pvalue)
        found = f"given the others, place {j + 1} of the draws does not follow `log_pmf` (p = {p:.1e})"
        require(p >= FALSE_ALARM_RATE, subject, found, _TWO_LAWS)


def _check_ends(law: Law, declared: NDArray[np.float64], length: int, subject: str) -> None:
    """``log_pmf`` summed over all sets that begin at one place, or that end there, whichever place is the likeliest
    of those with few such sets."""
    k = len(declared)
    others = next(n for n in range(length, 0, -1) if math.comb(n, k - 1) <= _MOST_SETS)
    first = int(declared[0, length - 1 - others :].argmax()) + length - others
    last = int(declared[-1, : others + 1].argmax()) + 1
    for j, place, rest in ((0, first, range(first + 1, length + 1)), (k - 1, last, range(1, last))):
        chosen = np.array(list(itertools.combinations(rest, k - 1)), dtype=np.int64).reshape(-1, k - 1)
        sets = np.insert(chosen, j, place, axis=1)
        total = float(np.exp(law.log_pmf(sets, length)).sum())
        found = f"`order_pmf`[{j}, {place - 1}] is {declared[j, place - 1]:.6g}, and `log_pmf` gives {total:.6g}"
        same = math.isclose(total, declared[j, place - 1], rel_tol=1e-6, abs_tol=1e-15)
        require(same, subject, found, "Both are of all sets of k places among the length.")


def _draws(law: Law, words: NDArray[np.uint64], length: int, subject: str) -> Places:
    """Draws from these words, which are sets, and each a function of its own words."""
    given = words.copy()
    drawn = np.asarray(made(lambda: law.draw(words, length), subject, "`draw` fails", "It takes (count, k) words."))
    require(np.array_equal(words, given), subject, "`draw` changes the words it is given", "Work on a copy.")
    shape = f"`draw` gives shape {drawn.shape} and {drawn.dtype} for words of shape {words.shape}"
    require(drawn.shape == words.shape and drawn.dtype == np.int64, subject, shape, "Return int64 places.")
    sets = (np.diff(drawn, axis=1) > 0).all(axis=1) & (drawn[:, 0] >= 1) & (drawn[:, -1] <= length)
    found = f"`draw` gives {drawn[~sets][:1].tolist()}"
    require(bool(sets.all()), subject, found, f"Places are different, ascending, and from 1 to {length}.")
    remedy = "Make each set from its own row of words, without a generator of your own."
    for rows in (slice(_SHARED, None, -1), slice(0, 1), slice(0, 0)):
        again = np.asarray(without_global_randomness(partial(law.draw, words[rows], length), subject, "`draw`"))
        same = np.array_equal(again, drawn[rows])
        require(same, subject, "a set depends on more than its own words", remedy)
    return drawn
