"""The rules of ``k_locality`` say each verdict."""

import pytest
from k_locality.study import study as k_locality
from made_up_evidence import TORN, apart, claim_of, made_up, shifted

# Claim: the arm that is said to drop more, and the other.
PAIRS = {
    "k, cue": ("cue marking, k=2", "cue marking, k=1"),
    "k, position": ("position marking, RoPE, recent, k=3", "position marking, RoPE, recent, k=1"),
    "near each other, RoPE": ("token marking, anywhere", "token marking, within 8"),
    "near the query, RoPE": ("position marking, RoPE, anchored, k=3", "position marking, RoPE, recent, k=3"),
    "near the query, ALiBi": ("position marking, ALiBi, anchored, k=3", "position marking, ALiBi, recent, k=3"),
    "near the query, NoPE": ("position marking, NoPE, anchored, k=3", "position marking, NoPE, recent, k=3"),
}
SLOPES = {"k, anywhere": "token marking, anywhere", "k, window": "token marking, within 8"}


def test_every_claim_is_shown_here() -> None:
    assert {claim.name for claim in k_locality.claims} == {*PAIRS, *SLOPES}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("by", "verdict"), [(shifted(-0.3), "held"), (shifted(0.3), "did not hold"), (TORN, "not decided")]
)
def test_differences(name: str, by: tuple[float, ...], verdict: str) -> None:
    """What is lower at twice the trained length has dropped more."""
    more, less = PAIRS[name]
    decide = claim_of(k_locality, name).decide
    assert decide(made_up(k_locality, apart(more, 48, by))).verdict == verdict
    assert decide(made_up(k_locality, apart(less, 48, tuple(-one for one in by)))).verdict == verdict
    assert decide(made_up(k_locality, apart(more, 96, by))).interval.estimate == 0, "another length decides nothing"


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize(
    ("by", "verdict"), [((0.1, 0.11, 0.12), "held"), ((-0.1, -0.11, -0.12), "did not hold"), (TORN, "not decided")]
)
def test_slopes(name: str, by: tuple[float, ...], verdict: str) -> None:
    def value(arm: str, condition: str, length: int, seed: int) -> float:
        if length < 48 or arm != SLOPES[name]:
            return 1.0
        return 0.7 - (by[seed % 3] * (float(condition.removeprefix("k=")) - 3)) / 2

    decision = claim_of(k_locality, name).decide(made_up(k_locality, value))
    assert decision.verdict == verdict
    if verdict == "held":
        assert decision.interval.estimate == pytest.approx(0.054)  # five seeds


def test_what_was_not_learned_does_not_count() -> None:
    """Of k=3, 4 and 6 nothing is learned, so there are too few for a slope."""

    def value(arm: str, condition: str, length: int, seed: int) -> float:
        return 1.0 if length < 48 else 0.1 * seed

    evidence = made_up(k_locality, value, lambda arm, condition, seed: condition in ("k=1", "k=2"))
    decision = claim_of(k_locality, "k, anywhere").decide(evidence)
    assert (decision.verdict, decision.interval.count) == ("not decided", 0)
    assert "k=2 0.80 (5 of 5), k=3 not learned (0 of 5)" in decision.detail
