import numpy as np
import pytest

from sparsity_lab.analysis import mean_interval, median_interval
from sparsity_lab.settings import SettingError


def test_mean_interval_of_three_by_hand():
    # mean 2, s = 1, t(0.975, 2 degrees of freedom) = 4.302653, half width 4.302653 / sqrt(3)
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.estimate == 2
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-6)
    assert found.count == 3


def test_mean_interval_follows_confidence():
    # t(0.75, 1 degree of freedom) = 1 exactly; s / sqrt(2) = 1 for values 0 and 2
    found = mean_interval([0.0, 2.0], confidence=0.5)
    assert (found.low, found.high) == (pytest.approx(0), pytest.approx(2))


def test_median_interval_of_few_values_is_their_range():
    """Which misses the median if all values lie on one side of it: 2 / 2^n."""
    for n, coverage in ((2, 0.5), (3, 0.75), (4, 0.875), (5, 0.9375)):
        found = median_interval([float(value) for value in range(n, 0, -1)])
        assert (found.estimate, found.low, found.high, found.count) == ((n + 1) / 2, 1, n, n)
        assert found.coverage == pytest.approx(coverage)


def test_median_interval_of_more_values_by_hand():
    """Of ten the second to the ninth: P(fewer than two of ten on one side) = 2 (1 + 10) / 2^10."""
    found = median_interval([float(value) for value in range(1, 11)])
    assert (found.estimate, found.low, found.high) == (5.5, 2, 9)
    assert found.coverage == pytest.approx(1 - 22 / 1024)
    assert median_interval([1.0, 2.0, 3.0, 4.0], confidence=0.3).low == 2


def percentile_bootstrap(values):
    """The mutant: what passes for a 95 % interval of the median, of any number of values."""
    chosen = np.random.default_rng(0).integers(len(values), size=(200, len(values)))
    low, high = np.quantile(np.median(np.asarray(values)[chosen], axis=1), [0.025, 0.975])
    return low, high, 0.95


def order_statistics(values):
    found = median_interval(values)
    return found.low, found.high, found.coverage


def students(values):
    found = mean_interval(values)
    return found.low, found.high, 0.95


# The law of the values, its center, and what is estimated: a median of a skewed law, a mean of a normal one.
SKEWED, NORMAL = (
    (lambda random, size: random.lognormal(size=size), 1.0),
    (lambda random, size: random.normal(size=size), 0.0),
)


@pytest.mark.parametrize(
    ("interval", "law", "n", "holds"),
    [
        *((order_statistics, SKEWED, n, True) for n in (2, 3, 5, 6, 10)),
        (students, NORMAL, 3, True),
        (percentile_bootstrap, SKEWED, 3, False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)) if not isinstance(value, tuple) else "law",
)
def test_intervals_cover_as_often_as_they_say(interval, law, n, holds):
    """3000 samples: a standard error of at most 0.009 of the share that covers, five of which are allowed."""
    draw, center = law
    samples = draw(np.random.default_rng(1), (3000, n)).tolist()
    found = [interval(values) for values in samples]
    covered = np.mean([low <= center <= high for low, high, _ in found])
    promised = found[0][2]
    error = np.sqrt(promised * (1 - promised) / len(samples))
    assert bool(abs(covered - promised) < 5 * error) is holds


@pytest.mark.parametrize("interval", [median_interval, mean_interval])
def test_one_value_has_no_interval_and_none_no_estimate(interval):
    assert interval([0.7]).estimate == 0.7
    assert interval([0.7]).low is interval([0.7]).high is None
    assert interval([]).estimate is None
    assert not interval([0.7]).decided


@pytest.mark.parametrize(("low", "decided"), [([1.0, 1.1, 1.2], True), ([-1.0, 0.0, 1.2], False)])
def test_decided_means_that_zero_is_outside(low, decided):
    assert mean_interval(low).decided is decided


def test_zero_on_the_edge_is_undecided():
    assert not mean_interval([0.0, 0.0]).decided


@pytest.mark.parametrize("interval", [median_interval, mean_interval])
@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_checked(interval, confidence):
    with pytest.raises(SettingError, match=r"confidence: expected a number between 0 and 1"):
        interval([1.0, 2.0], confidence=confidence)
