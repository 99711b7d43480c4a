import pytest
from analysis.synthetic import frame_of

from sparsity_lab.analysis import Difference, Interval, drop
from sparsity_lab.analysis.report.comparisons import Comparison, comparisons_of


def compared(estimate, low, high, pairs=3, unpaired=0, expected="Recent", reason=None):
    interval = Interval(estimate, low, high, pairs)
    difference = Difference("Anchored", "Recent", interval, pairs, unpaired, 24, 96, reason)
    return Comparison(difference, expected)


FOR, AGAINST = compared(0.5, 0.2, 0.8), compared(-0.5, -0.8, -0.2)
APART = compared(None, None, None, pairs=0, reason="they differ")


@pytest.mark.parametrize(
    ("comparison", "verdict"),
    [
        (FOR, "as expected"),
        (AGAINST, "the opposite of what is expected"),
        (compared(0.5, 0.2, 0.8, expected=None), "Recent drops less"),
        (compared(-0.5, -0.8, -0.2, expected=None), "Anchored drops less"),
        (compared(-0.1, -0.2, 0.4), "undecided"),
        (compared(0.1, -0.2, 0.4, expected=None), "undecided"),
        (compared(0.1, None, None, pairs=1), "undecided"),
        (APART, "not compared: they differ"),
    ],
)
def test_a_verdict_says_what_the_interval_decides(comparison, verdict):
    assert comparison.verdict == verdict


def drops_of(column, *values):
    runs = [(f"{name}{seed}", {column: value}, [1, 1, 1, 0.5]) for name, value in zip("abcd", values, strict=False)
            for seed in (0, 1)]  # fmt: skip
    return drop(frame_of(*runs), by=column)


def test_neighboring_k_are_compared_under_any_scheme():
    found = comparisons_of(drops_of("task.k", 1, 3, 2), "NoPE")
    assert [(c.difference.of, c.difference.minus, c.expected) for c in found] == [
        ("k=2", "k=1", "k=1"),
        ("k=3", "k=2", "k=2"),
    ]


@pytest.mark.parametrize(
    ("position", "expected"),
    [("RoPE", "Recent(width=4)"), ("RoPE(scale=2.0)", "Recent(width=4)"), ("ALiBi", None), (None, None)],
)
def test_localities_are_compared_and_expected_to_differ_with_rope_only(position, expected):
    found = comparisons_of(drops_of("task.locality", "Recent(width=4)", "Uniform()", "Anchored()"), position)
    assert [(c.difference.of, c.difference.minus, c.expected) for c in found] == [
        ("Anchored", "Recent(width=4)", expected)
    ]


def test_other_columns_are_not_compared():
    assert comparisons_of(drops_of("model.kernel", "Softmax()", "LSSA()"), "RoPE") == []
