import pytest

from sparsity_lab.analysis import bootstrap_median, mean_interval
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


def test_bootstrap_of_two_values_by_hand():
    # medians of resamples: 0, 0.5, 1 with probabilities 1/4, 1/2, 1/4
    wide = bootstrap_median([1.0, 0.0])
    assert (wide.estimate, wide.low, wide.high) == (0.5, 0.0, 1.0)
    narrow = bootstrap_median([1.0, 0.0], confidence=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_bootstrap_of_three_values_by_hand():
    # P(median is the smallest) = P(two or three of three draws are it) = 7/27 = 0.259; the middle has 13/27
    values = [0.0, 10.0, 1.0]
    assert bootstrap_median(values).estimate == 1
    inner = bootstrap_median(values, confidence=0.46)  # quantiles 0.27 and 0.73 lie in the middle mass
    assert (inner.low, inner.high) == (1, 1)
    outer = bootstrap_median(values, confidence=0.52)  # 0.24 and 0.76 do not
    assert (outer.low, outer.high) == (0, 10)


def test_bootstrap_is_decided_by_its_seed_and_not_by_the_order():
    values = [0.1, 0.9, 0.4, 0.7, 0.35]
    first = bootstrap_median(values, resamples=50, seed=1)
    assert first == bootstrap_median(values[::-1], resamples=50, seed=1)
    others = {bootstrap_median(values, confidence=0.5, resamples=5, seed=seed).low for seed in range(20)}
    assert len(others) > 1


@pytest.mark.parametrize("interval", [bootstrap_median, mean_interval])
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


@pytest.mark.parametrize("interval", [bootstrap_median, mean_interval])
@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_checked(interval, confidence):
    with pytest.raises(SettingError, match=r"confidence: expected a number between 0 and 1"):
        interval([1.0, 2.0], confidence=confidence)


def test_resamples_are_checked():
    with pytest.raises(SettingError, match="resamples"):
        bootstrap_median([1.0, 2.0], resamples=0)
