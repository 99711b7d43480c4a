import pytest
from analysis.synthetic import frame_of

from sparsity_lab.analysis import Difference, Interval, drop
from sparsity_lab.analysis.comparisons import Comparison, comparison_words, comparisons_of, overall_words


def compared(estimate, low, high, pairs=3, unpaired=0, expected=True, reason=None):
    interval = Interval(estimate, low, high, pairs)
    difference = Difference("Anchored", "Recent", interval, pairs, unpaired, 24, 96, reason)
    return Comparison(difference, expected, "Recent", "Anchored")


FOR, AGAINST = compared(0.5, 0.2, 0.8), compared(-0.5, -0.8, -0.2)
OPEN, OPEN_AGAINST = compared(0.1, -0.2, 0.4), compared(-0.1, -0.4, 0.2)
APART = compared(None, None, None, pairs=0, reason="they differ")


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (FOR, "Recent dropped less than Anchored by 0.50 [0.20, 0.80] (3 seeds paired), as expected."),
        (compared(0.5, 0.2, 0.8, expected=False), "by 0.50 [0.20, 0.80] (3 seeds paired): decided."),
        (
            AGAINST,
            "Anchored dropped less than Recent by 0.50 [0.20, 0.80] (3 seeds paired); the expected order does not "
            "show, the opposite does.",
        ),
        (
            compared(-0.1, -0.2, 0.4, unpaired=1),
            "Anchored dropped less than Recent by 0.10 [−0.40, 0.20] (3 seeds paired, 1 left without a pair); the "
            "interval contains 0, so the expected order is not established here.",
        ),
        (
            compared(0.1, None, None, pairs=1),
            "(1 seed paired); one pair has no interval, so the expected order is not",
        ),
        (compared(0.1, -0.2, 0.4, expected=False), "the interval contains 0, so which drops less is undecided."),
        (
            APART,
            "Recent and Anchored cannot be compared: they differ; the expected order (Recent drops less) is neither "
            "seen nor ruled out.",
        ),
    ],
)
def test_comparisons_claim_what_their_interval_decides(comparison, words):
    sentence = comparison_words(comparison, "RoPE", lengths=False)
    assert sentence.startswith("With RoPE, ")
    assert words in sentence
    if not comparison.difference.interval.decided:
        assert "as expected" not in sentence
    brief = comparison_words(comparison, "RoPE", brief=True)
    assert brief.startswith("With RoPE, ")
    assert "expected" not in brief
    assert ("from length 24 to 96" in brief) == (comparison is not APART)


@pytest.mark.parametrize(
    ("comparisons", "words"),
    [
        (
            [OPEN] * 4,
            "in all 4 pairs; the intervals decide none of them, so the expected order is not established here.",
        ),
        ([OPEN, OPEN_AGAINST], "in 1 of 2 pairs; the intervals decide none of them"),
        ([OPEN_AGAINST] * 2, "in none of 2 pairs; "),
        ([FOR, FOR], "in all 2 pairs, as expected; the intervals decide all of them."),
        (
            [FOR, OPEN],
            "in all 2 pairs; the intervals decide 1 that way, so the expected order is not established in the",
        ),
        (
            [FOR, AGAINST, OPEN],
            "in 2 of 3 pairs; the intervals decide 1 that way and 1 the other way, so the expected order does not "
            "show: there, the opposite does.",
        ),
        ([OPEN, APART], "in 1 of 1 pair (1 more cannot be compared)"),
    ],
)
def test_several_comparisons_are_said_in_one_sentence(comparisons, words):
    sentence = overall_words(comparisons, "RoPE")
    assert sentence.startswith("With RoPE, Recent dropped less than Anchored ")
    assert words in sentence


def test_a_sentence_on_all_claims_no_order_that_nobody_expects():
    both = [compared(0.5, 0.2, 0.8, expected=False), compared(0.1, -0.2, 0.4, expected=False)]
    assert overall_words(both, None) == (
        "Recent dropped less than Anchored in all 2 pairs; the intervals decide 1 that way."
    )


def test_nothing_comparable_is_said():
    assert overall_words([APART, APART], "RoPE") == (
        "With RoPE, none of the 2 pairs of Recent and Anchored can be compared; whether Recent drops less, as "
        "expected, is neither seen nor ruled out."
    )
    assert overall_words([APART], "RoPE") == comparison_words(APART, "RoPE")


def drops_of(column, *values):
    runs = [(f"{name}{seed}", {column: value}, [1, 1, 1, 0.5]) for name, value in zip("abcd", values, strict=False)
            for seed in (0, 1)]  # fmt: skip
    return drop(frame_of(*runs), by=column)


def test_neighboring_k_are_compared_under_any_scheme():
    found = comparisons_of(drops_of("task.k", 1, 3, 2), "NoPE")
    assert [(c.difference.of, c.difference.minus, c.expected) for c in found] == [
        ("k=2", "k=1", True),
        ("k=3", "k=2", True),
    ]


@pytest.mark.parametrize(
    ("position", "expected"), [("RoPE", True), ("RoPE(scale=2.0)", True), ("ALiBi", False), (None, False)]
)
def test_localities_are_compared_and_expected_to_differ_with_rope_only(position, expected):
    found = comparisons_of(drops_of("task.locality", "Recent(width=4)", "Uniform()", "Anchored()"), position)
    assert [(c.difference.of, c.difference.minus, c.expected) for c in found] == [
        ("Anchored", "Recent(width=4)", expected)
    ]


def test_other_columns_are_not_compared():
    assert comparisons_of(drops_of("model.kernel", "Softmax()", "LSSA()"), "RoPE") == []
