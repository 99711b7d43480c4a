"""From the numbers of a diagnosis to a verdict, by thresholds that are fixed before and shown with it.

An answer is yes or no only if the whole 95 % interval lies on one side of its threshold; else it is not decided.
"""

from dataclasses import dataclass

from sparsity_lab.analysis.statistics import Interval
from sparsity_lab.settings import SettingError

NOT_DECIDED = "not decided"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What counts as yes.

    Attributes:
        learned: loss below that of single-token frequencies at the trained length, as a share of the latter.
        kept: of that gain, the share that is left at the longest test length.
        most_tokens: k, the largest number of important tokens of a target that counts as few; the largest set that
            the search looks for.
        enough: share of the gain of context that a target's important tokens must recover, and that the near
            tokens must give, where a model is asked.
        local_share: share of important tokens that must be near, where they are labeled.
        local_reach: how far is near, as a share of the trained length. At one half, any two groups of neighboring
            tokens that fit in the reach were seen side by side in training.
    """

    learned: float = 0.05
    kept: float = 0.9
    most_tokens: int = 4
    enough: float = 0.8
    local_share: float = 0.75
    local_reach: float = 0.5

    def __post_init__(self) -> None:
        for name in ("learned", "kept", "enough", "local_share", "local_reach"):
            if not 0 < getattr(self, name) <= 1:
                raise SettingError(f"thresholds.{name}", "a share above 0, at most 1", getattr(self, name))
        if self.most_tokens < 1:
            raise SettingError("thresholds.most_tokens", "at least 1", self.most_tokens)


@dataclass(frozen=True)
class Answer:
    """One question about the data or a model.

    Attributes:
        question: what was asked, with its threshold.
        answer: True, False, or None for not decided.
        found: the numbers.
    """

    question: str
    answer: bool | None
    found: str

    @property
    def word(self) -> str:
        """The answer for people."""
        return {True: "yes", False: "no", None: NOT_DECIDED}[self.answer]

    def __str__(self) -> str:
        return f"{self.question}: {self.word} ({self.found})"


def scheme_answers(position: str, learned: Interval, kept: Interval, thresholds: Thresholds) -> tuple[Answer, Answer]:
    """Whether a model, trained short with this position scheme, learned, and kept it at the longest test length;
    whether something is kept that was not learned is not decided.

    Args:
        learned: gain over single-token frequencies at the trained length, as a share of their loss.
        kept: share of that gain that is left.
    """
    knows = Answer(
        f"{position} learned something at the trained length (gain at least {thresholds.learned:.0%})",
        at_least(learned, thresholds.learned),
        in_words(learned, "{:.1%}"),
    )
    keeps = Answer(
        f"{position} keeps it at the longest length (at least {thresholds.kept:.0%} of the gain)",
        at_least(kept, thresholds.kept) if knows.answer else None,
        in_words(kept, "{:.1%}") if knows.answer else "nothing learned to keep",
    )
    return knows, keeps


def few_answer(k: Interval, thresholds: Thresholds) -> Answer:
    """Whether targets need few tokens; numbers above ``most_tokens`` stand for more than that."""
    return Answer(
        f"a target needs few tokens (k at most {thresholds.most_tokens})",
        _at_most(k, thresholds.most_tokens),
        in_words(k, "{:g}", cap=thresholds.most_tokens),
    )


def reach_answer(reach: Interval, trained: int, thresholds: Thresholds) -> Answer:
    """Whether labeled tokens are near: the distance within which ``local_share`` of them lie."""
    near = thresholds.local_reach * trained
    return Answer(
        f"they are near ({thresholds.local_share:.0%} within {near:g} tokens)",
        _at_most(reach, near),
        in_words(reach, "{:g}"),
    )


def gain_answer(share: Interval, trained: int, thresholds: Thresholds) -> Answer:
    """Whether what a model needs is near: the share of its gain that the near tokens alone give it. Of several tokens
    that tell the same, a search picks any, so that their distances would not answer this."""
    near = thresholds.local_reach * trained
    return Answer(
        f"they are near (the last {near:g} tokens give {thresholds.enough:.0%} of the gain of all {trained})",
        at_least(share, thresholds.enough),
        in_words(share, "{:.1%}"),
    )


def verdict_of(few: Answer, local: Answer, tests: list[tuple[Answer, Answer]]) -> str:
    """``expected``, ``not expected`` or ``not decided``.

    Expected: targets need few tokens, these are near, and some scheme keeps what it learned. Not expected: some
    scheme learned and every scheme that learned lost it, and none is undecided. Else the numbers do not tell.
    """
    kept = [kept.answer for _, kept in tests]
    if few.answer and local.answer and any(kept):
        return "expected"
    learned = [own.answer for own, _ in tests]
    # A scheme that surely learned nothing says nothing about length.
    lost = [keeps is False for keeps, knows in zip(kept, learned, strict=True) if knows is not False]
    if lost and all(lost):
        return "not expected"
    return NOT_DECIDED


def at_least(value: Interval, threshold: float) -> bool | None:
    """Whether the value is at least the threshold; None if its interval holds the threshold, or there is none."""
    if value.low is None or value.high is None or value.low < threshold <= value.high:
        return None
    return value.low >= threshold


def in_words(value: Interval, form: str, cap: int | None = None) -> str:
    """An interval for people; numbers above ``cap`` are "more than" it."""

    def one(number: float | None) -> str:
        if cap is not None and number is not None and number > cap:
            return f"more than {cap}"
        return form.format(number)

    if value.estimate is None:
        return "no numbers"
    if value.low is None:
        return f"{one(value.estimate)}, from too little data for an interval"
    return f"{one(value.estimate)}, 95 % interval {one(value.low)} to {one(value.high)}"


def _at_most(value: Interval, threshold: float) -> bool | None:
    more = at_least(value, threshold + 1e-9)
    return None if more is None else not more
