import pytest
from analysis.synthetic import frame_of

from sparsity_lab.analysis import Difference, Interval, drop
from sparsity_lab.analysis.markup import cell, number, table
from sparsity_lab.analysis.words import (
    Comparison,
    comparison_words,
    comparisons_of,
    counts_words,
    drop_words,
    listed,
)

ROW = {
    "arm": "Recent(width=8)", "runs": 3, "learned": 2, "drop": 0.214, "low": 0.05, "high": 0.378,
    "trained_length": 24, "length": 96, "exact": True,
}  # fmt: skip


def compared(estimate, low, high, pairs=3, unpaired=0, expected=True):
    interval = Interval(estimate, low, high, pairs)
    return Comparison(Difference("Anchored", "Recent", interval, pairs, unpaired), expected)


def test_counts():
    assert counts_words(12, 11, 1) == (
        "13 runs in all: 12 finished, 1 failed. Of the finished, 11 learned their task (normalised accuracy of at "
        "least 0.9 at every evaluated trained length) and 1 never did. Runs that never learned are counted apart and "
        "enter no median, drop or interval."
    )
    assert counts_words(2, 2, 0).endswith("Every finished run learned its task (normalised accuracy of at least 0.9 "
                                          "at every evaluated trained length).")  # fmt: skip
    assert counts_words(0, 0, 1, 2) == "3 runs in all: none finished, 1 failed, 2 not finished yet."
    assert "its run's threshold" in counts_words(1, 1, 0, threshold=None)


def test_a_drop_names_the_position_scheme_the_lengths_and_the_counts():
    assert drop_words(ROW, "RoPE", 4, "48") == (
        "With RoPE, Recent(width=8) drops by 0.21 [0.05, 0.38] from length 24 to 96 "
        "(2 of 3 runs learned; median reach 48)."
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low": None, "high": None, "learned": 1}, "drops by 0.21 (one learned run, so no interval) from length 24"),
        ({"drop": -0.05, "low": -0.1, "high": 0.0}, "rises by 0.05, a drop of −0.05 [−0.10, 0.00] from"),
        ({"drop": -0.001}, "drops by 0.00 [0.05"),
        ({"exact": False, "length": 90}, "to 90 (the evaluated length nearest to 96) (2 of 3"),
        ({"learned": 0, "drop": None}, "was never learned (0 of 3 runs), so nothing is said of its drop."),
        ({"drop": None, "length": None}, "was not evaluated beyond its trained lengths (2 of 3 runs learned)."),
    ],
)
def test_special_drops_say_what_is_special(change, words):
    sentence = drop_words(ROW | change, "NoPE", 4)
    assert sentence.startswith("With NoPE, Recent(width=8) ")
    assert words in sentence


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (compared(0.5, 0.2, 0.8), "0.50 [0.20, 0.80] (3 seeds paired): Recent drops less, as expected."),
        (compared(0.5, 0.2, 0.8, expected=False), "(3 seeds paired): Recent drops less."),
        (
            compared(-0.5, -0.8, -0.2),
            "Anchored drops less. The expected order (Recent drops less than Anchored) does not show; the opposite",
        ),
        (
            compared(0.1, -0.2, 0.4, unpaired=1),
            "(3 seeds paired, 1 left without a pair); the interval contains 0, so it is undecided which drops more. "
            "The expected order (Recent drops less than Anchored) is not established here.",
        ),
        (compared(0.1, None, None, pairs=1), "(1 seed paired); one pair has no interval, so it is undecided"),
        (compared(None, None, None, pairs=0), "cannot be compared: there is no seed at which both have a drop."),
    ],
)
def test_comparisons_claim_what_their_interval_decides(comparison, words):
    sentence = comparison_words(comparison, "RoPE")
    assert sentence.startswith("With RoPE, ")
    assert words in sentence
    if not comparison.difference.interval.decided:
        assert "as expected" not in sentence


def drops_of(column, *values):
    runs = [(f"{name}{seed}", {column: value}, [1, 1, 1, 0.5]) for name, value in zip("abcd", values, strict=False)
            for seed in (0, 1)]  # fmt: skip
    return drop(frame_of(*runs), by=column)


def test_neighbouring_k_are_compared_under_any_scheme():
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


def test_numbers_and_lists():
    assert number(-0.004) == "0.00"
    assert number(-0.5) == "−0.50"
    assert cell(None) == "–"
    assert cell(True) == "yes"
    assert cell(0.12345) == "0.123"
    assert [listed("a"), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_tables_escape_and_align():
    page = table(["<h>", "n"], [("<script>", 1), ("b", None)])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert '<th scope="col" class="number">n</th>' in page
    assert '<td class="number">–</td>' in page
