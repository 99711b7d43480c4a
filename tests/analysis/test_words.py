import pytest

from sparsity_lab.analysis.words import counts_words, drop_words, lengths_words, listed, others_words
from sparsity_lab.settings.markup import cell, number, table

ROW = {
    "arm": "Recent(width=8)", "runs": 3, "judged": 3, "learned": 2, "drop": 0.214, "low": 0.05, "high": 0.378,
    "trained_length": 24, "length": 96, "exact": True,
}  # fmt: skip


def test_counts():
    assert counts_words(12, 11, 1) == (
        "13 runs in all: 12 finished, 1 failed. Of the finished, 11 learned their task (normalized accuracy of at "
        "least 0.9 at every evaluated trained length) and 1 never did. Runs that never learned are counted apart and "
        "enter no median, drop or interval."
    )
    assert counts_words(2, 2, 0).endswith("Every finished run learned its task (normalized accuracy of at least 0.9 "
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
        ({"low": None, "high": None, "learned": 1}, "drops by 0.21 (one run, so no interval) from length 24"),
        ({"drop": -0.05, "low": -0.1, "high": 0.0}, "rises by 0.05, a drop of −0.05 [−0.10, 0.00] from"),
        ({"drop": -0.001}, "drops by 0.00 [0.05"),
        ({"exact": False, "length": 90}, "to 90 (the evaluated length nearest to 96) (2 of 3"),
        ({"learned": 0, "drop": None}, "was never learned (0 of 3 runs), so nothing is said of its drop."),
        ({"drop": None, "length": None}, "has no drop: no longer length evaluated (2 of 3 runs learned)."),
        (
            {"drop": None, "length": None, "trained_length": None},
            "has no drop: no trained length evaluated (2 of 3 runs learned).",
        ),
        ({"learned": 0, "judged": 0}, "from length 24 to 96 (3 runs not judged (no optimum declared))."),
    ],
)
def test_special_drops_say_what_is_special(change, words):
    sentence = drop_words(ROW | change, "NoPE", 4)
    assert sentence.startswith("With NoPE, Recent(width=8) ")
    assert words in sentence


def test_lengths_are_said_once_where_they_agree():
    assert lengths_words([ROW, ROW], (8, 24), 4) == "Trained on lengths 8 to 24; drops are from length 24 to 96."
    near = ROW | {"exact": False, "length": 90}
    assert lengths_words([near], (24, 24), 4) == (
        "Trained on length 24; drops are from length 24 to 90 (the evaluated length nearest to 96)."
    )
    assert (
        lengths_words([ROW, near], None, 4)
        == "Trained lengths differ by arm; the lengths of the drops differ by arm."
    )
    assert "from length" not in drop_words(ROW, "RoPE", 4, lengths=False)


def test_runs_that_are_not_judged_are_a_third_state():
    assert "Of the finished, 1 learned their task" in counts_words(4, 1, 0, judged=2)
    assert ", 1 never did and 2 are not judged (no optimum declared)." in counts_words(4, 1, 0, judged=2)
    only = counts_words(2, 0, 0, judged=0)
    assert only == "2 runs in all: 2 finished, none failed. The finished are not judged (no optimum declared)."


def test_runs_of_other_sweeps_are_counted():
    assert others_words(1) == "1 finished run in this folder belongs to another sweep and is not shown."
    assert others_words(3) == "3 finished runs in this folder belong to other sweeps and are not shown."


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
