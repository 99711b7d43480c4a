"""The rules of ``locality_repair`` say each verdict."""

import pytest
from locality_repair.study import RULES, both
from locality_repair.study import study as locality_repair
from made_up_evidence import JITTER, TORN, VERDICTS, Value, claim_of, decided, made_up

# Claim: the kind of arm that is said to be better, and the other.
PAIRS = {
    "repaired": ("anchored, coupled", "anchored"),
    "in place of RoPE": ("anchored, coupled", "anchored, coupled beside RoPE"),
    "by marking alone": ("anchored, shuffled", "anchored"),
    "order of the IDs": ("anchored, coupled", "anchored, shuffled"),
}
# Claim: the kind of arm that loses, and what it says if that is more than a quarter, and less.
DROPS = {
    "repaired wholly": ("anchored, coupled", "did not hold", "held"),
    "far fails": ("anchored", "held", "did not hold"),
    "near fails": ("recent", "held", "did not hold"),
}


def test_every_claim_is_shown_here() -> None:
    assert {claim.name for claim in locality_repair.claims} == {*PAIRS, *DROPS}


def above(kind: str, by: tuple[float, ...], rules: tuple[str, ...] = tuple(RULES)) -> Value:
    """At length 96 all are at 0.5, and the arms of a kind above by what the seed says."""
    arms = {f"{rule}: {kind}" for rule in rules}

    def value(arm: str, condition: str, length: int, seed: int) -> float:
        return 1.0 if length < 96 else 0.5 + (by[seed % len(by)] if arm in arms else 0.0)

    return value


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("by", "verdict"), VERDICTS)
def test_differences(name: str, by: tuple[float, ...], verdict: str) -> None:
    better, other = PAIRS[name]
    assert decided(locality_repair, name, made_up(locality_repair, above(better, by))).verdict == verdict
    against = above(other, tuple(-one for one in by))
    assert decided(locality_repair, name, made_up(locality_repair, against)).verdict == verdict
    of_one_rule = decided(locality_repair, name, made_up(locality_repair, above(better, by, ("table",))))
    assert of_one_rule.outcomes.numbers[0] == pytest.approx(by[0] / 2), "the mean over both rules"


@pytest.mark.parametrize("name", DROPS)
@pytest.mark.parametrize("drop", [0.6, 0.1, 0.25])
def test_drops(name: str, drop: float) -> None:
    """A quarter is between failing and being repaired; of one rule that was not learned, the other counts."""
    kind, more, less = DROPS[name]

    def value(arm: str, condition: str, length: int, seed: int) -> float:
        if arm == f"table: {kind}":
            return 0.3
        return 1.0 if length < 96 else 1.0 - drop - (JITTER[seed % 4] if drop != 0.25 else TORN[seed % 4] / 2)

    evidence = made_up(locality_repair, value, lambda arm, condition, seed: not arm.startswith("table"))
    decision = decided(locality_repair, name, evidence)
    assert decision.verdict == {0.6: more, 0.1: less, 0.25: "not decided"}[drop]
    assert claim_of(locality_repair, name).arms == both(kind)
    if drop == 0.6:
        assert decision.outcomes.numbers[0] == pytest.approx(0.6)
        assert "Over all seeds, learned or not: 0.30." in decision.outcomes.detail


def test_nothing_learned_decides_nothing() -> None:
    evidence = made_up(locality_repair, above("", TORN), lambda arm, condition, seed: False)
    for claim in locality_repair.claims:
        decision = decided(locality_repair, claim.name, evidence)
        assert (decision.verdict, decision.count, decision.cannot_tell) == ("not decided", 0, "never learned")
