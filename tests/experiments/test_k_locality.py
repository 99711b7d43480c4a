"""The rules of ``k_locality`` say each verdict."""

import pytest
from k_locality.study import LAWS, position_arm
from k_locality.study import study as k_locality
from made_up_evidence import MOST_SEEDS, TORN, VERDICTS, apart, claim_of, decided, made_up

# Claim: the arm that is said to drop more, and the other.
PAIRS = {
    "k, cue": ("cue marking, k=2", "cue marking, k=1"),
    "near each other": ("token marking, anywhere", "token marking, within 8"),
    "near the query": (position_arm("RoPE", "anchored", 3), position_arm("RoPE", "recent", 3)),
}
MARKED = ("token marking, anywhere", "token marking, within 8")
START = position_arm("NoPE", "anchored", 1)


def test_every_claim_is_shown_here() -> None:
    assert {claim.name for claim in k_locality.claims} == {
        *PAIRS, "k, marked tokens", "k, fixed places", "from the start",
    }  # fmt: skip
    assert all(claim.arms for claim in k_locality.claims)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("by", "verdict"), VERDICTS)
def test_differences(name: str, by: tuple[float, ...], verdict: str) -> None:
    """What is lower at twice the trained length has dropped more."""
    more, less = PAIRS[name]
    against = tuple(-one for one in by)
    assert decided(k_locality, name, made_up(k_locality, apart(more, 48, against))).verdict == verdict
    assert decided(k_locality, name, made_up(k_locality, apart(less, 48, by))).verdict == verdict
    assert decided(k_locality, name, made_up(k_locality, apart(more, 96, by))).estimate == 0, "another length"


@pytest.mark.parametrize(("by", "verdict"), MOST_SEEDS)
def test_fixed_places_are_averaged_over_the_laws(by: tuple[float, ...], verdict: str) -> None:
    """Under one law the difference is what the seed says, under the others it is none, so the mean is a quarter."""
    against = tuple(-one for one in by)
    one_law = apart(position_arm("RoPE", "uniform", 3), 96, against)
    decision = decided(k_locality, "k, fixed places", made_up(k_locality, one_law))
    assert decision.verdict == verdict
    assert decision.outcomes.numbers[0] == pytest.approx(by[0] / 4)
    assert claim_of(k_locality, "k, fixed places").arms == tuple(
        position_arm("RoPE", law, k) for law in LAWS for k in (3, 1)
    )


@pytest.mark.parametrize(
    ("by", "verdict"), [((0.1, 0.11, 0.12), "held"), ((-0.1, -0.11, -0.12), "did not hold"), (TORN, "not decided")]
)
@pytest.mark.parametrize("flat", MARKED)
def test_slopes_of_both_arms_count(flat: str, by: tuple[float, ...], verdict: str) -> None:
    """Each k more drops by ``by`` / 2; the number is the smaller rise, so one arm that does not rise is enough."""

    def value(arm: str, condition: str, length: int, seed: int) -> float:
        own = by[seed % len(by)] * (float(condition.removeprefix("k=")) - 3) / 2 if condition != "trained" else 0.0
        return 1.0 if length < 48 else 0.7 - own

    decision = decided(k_locality, "k, marked tokens", made_up(k_locality, value))
    assert decision.verdict == verdict
    if by != TORN:  # whose drops are cut
        assert decision.outcomes.numbers[0] == pytest.approx(5 * by[0] / 2)
    assert "k=1 " in decision.outcomes.detail

    def one_is_flat(arm: str, condition: str, length: int, seed: int) -> float:
        return 0.7 if arm == flat and length == 48 else value(arm, condition, length, seed)

    if verdict == "held":
        assert decided(k_locality, "k, marked tokens", made_up(k_locality, one_is_flat)).verdict == "did not hold"


def test_what_was_not_learned_does_not_count() -> None:
    """Of k=3, 4 and 6 nothing is learned, so there are too few for a slope; the detail has all of them."""

    def value(arm: str, condition: str, length: int, seed: int) -> float:
        return 1.0 if length < 48 else 0.1 * (seed % 2) + 0.1

    evidence = made_up(k_locality, value, lambda arm, condition, seed: condition in ("k=1", "k=2"))
    decision = decided(k_locality, "k, marked tokens", evidence)
    assert (decision.verdict, decision.count) == ("not decided", 0)
    assert "k=2 0.85, k=3 not learned" in decision.outcomes.detail
    assert "Mean rise, over all seeds, learned or not: 0.00." in decision.outcomes.detail


@pytest.mark.parametrize(("far", "verdict"), [(0.95, "held"), (0.85, "did not hold")])
def test_from_the_start(far: float, verdict: str) -> None:
    """Seeds that did not learn count too."""

    def value(arm: str, condition: str, length: int, seed: int) -> float:
        return far if (arm, length) == (START, 96) else 0.5

    evidence = made_up(k_locality, value, lambda arm, condition, seed: seed > 2)
    decision = decided(k_locality, "from the start", evidence)
    assert (decision.verdict, decision.count) == (verdict, 24)
    torn = made_up(k_locality, lambda arm, condition, length, seed: 0.5 + 0.5 * (seed % 2))
    assert decided(k_locality, "from the start", torn).verdict == "not decided"
