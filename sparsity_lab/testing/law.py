"""What every locality law must do."""

import itertools

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators import Law, Stream
from sparsity_lab.generators.certify.findings import chi_square
from sparsity_lab.testing.failing import made, require
from sparsity_lab.testing.setting import check_setting

__all__ = ["check_law"]

FALSE_ALARM_RATE = 1e-6
"""Of the test of draws at each size, nominally."""

_DRAWS = 100_000
_LONG = 300


def check_law(
    law: Law, *, sizes: tuple[tuple[int, int], ...] = ((1, 9), (2, 9), (3, 9), (4, 7), (3, 4), (2, 2))
) -> None:
    """Check a locality law by enumeration of all its sets, at every (k, length) of ``sizes`` whose k it has room for.

    ``log_pmf`` sums to one, ``order_pmf`` and ``support_size`` follow from it, 100,000 draws agree with it
    (chi-square, false-alarm rate 1e-6), and a draw is a function of its own words alone. At a length of 300, draws
    are sets that have a probability.

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
    _check_far(law, sizes[-1][0])


def _check_at(law: Law, k: int, length: int) -> None:
    subject = f"{law} at k={k}, length={length}"
    sets = np.array(list(itertools.combinations(range(1, length + 1), k)), dtype=np.int64)
    pmf = np.exp(made(lambda: law.log_pmf(sets, length), subject, "`log_pmf` fails", "It takes (count, k) places."))
    require(pmf.shape == (len(sets),), subject, f"`log_pmf` has shape {pmf.shape}", "Give one number for each set.")
    total = f"`log_pmf` sums to {pmf.sum():.9g} over all {len(sets)} sets"
    require(abs(pmf.sum() - 1) < 1e-9, subject, total, "Normalize it over the sets of k places among the length.")
    size, positive = law.support_size(k, length), int((pmf > 0).sum())
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
        found = f"draws do not follow `log_pmf` (chi-square, p = {finding.p_value:.1e}; {finding.subject})"
        require(finding.p_value >= FALSE_ALARM_RATE, subject, found, "`draw` and `log_pmf` are of different laws.")


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


def _check_far(law: Law, k: int) -> None:
    subject = f"{law} at k={k}, length={_LONG}"
    drawn = _draws(law, Stream(seed=6, name="check_law").words("positions", _LONG, 0, 500, k), _LONG, subject)
    likely = np.isfinite(law.log_pmf(drawn, _LONG))
    found = f"`draw` gives {drawn[~likely][:1].tolist()}, whose probability is zero"
    require(bool(likely.all()), subject, found, "`draw` and `log_pmf` are of different laws.")
    sums = np.asarray(law.order_pmf(k, _LONG)).sum(axis=1)
    found = f"rows of `order_pmf` sum to {sums.tolist()}"
    require(bool(np.abs(sums - 1).max() < 1e-6), subject, found, "Each is a distribution over places.")


def _draws(law: Law, words: NDArray[np.uint64], length: int, subject: str) -> NDArray[np.int64]:
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
    again = np.asarray(law.draw(words[::-1][:200], length))
    same = np.array_equal(again, drawn[::-1][:200])
    require(same, subject, "a set depends on more than its own words", remedy)
    return drawn
