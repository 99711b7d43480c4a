"""The rules of ``locality_repair`` say each verdict."""

import pytest
from locality_repair.study import RULES
from locality_repair.study import study as locality_repair
from made_up_evidence import JITTER, TORN, apart, claim_of, made_up, shifted

# Claim: the arm that is said to be better, and the other.
PAIRS = {
    "repaired": ("anchored, coupled", "anchored"),
    "in place of RoPE": ("anchored, coupled", "anchored, coupled beside RoPE"),
    "not for want of RoPE": ("anchored, coupled", "anchored, no positions"),
    "predicted": ("anchored, predicted", "anchored"),
    "not by marking alone": ("anchored, coupled", "anchored, shuffled"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("by", "verdict"), [(shifted(0.3), "held"), (shifted(-0.3), "did not hold"), (TORN, "not decided")]
)
def test_differences(rule: str, name: str, by: tuple[float, ...], verdict: str) -> None:
    better, other = (f"{rule}: {kind}" for kind in PAIRS[name])
    decide = claim_of(locality_repair, f"{name}, {rule}").decide
    assert decide(made_up(locality_repair, apart(better, 96, by))).verdict == verdict
    assert decide(made_up(locality_repair, apart(other, 96, tuple(-one for one in by)))).verdict == verdict


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("drop", "fails", "whole"),
    [(0.6, "held", "did not hold"), (0.1, "did not hold", "held"), (0.25, "not decided", "not decided")],
)
def test_drops(rule: str, drop: float, fails: str, whole: str) -> None:
    """Above a quarter it counts as failing, below as whole."""

    def value(arm: str, condition: str, length: int, seed: int) -> float:
        return 1.0 if length < 96 else 1.0 - drop - JITTER[seed % 4]

    evidence = made_up(locality_repair, value)
    assert claim_of(locality_repair, f"far fails, {rule}").decide(evidence).verdict == fails
    decision = claim_of(locality_repair, f"repaired wholly, {rule}").decide(evidence)
    assert decision.verdict == whole
    seeds = range(5)
    assert decision.interval.estimate == pytest.approx(drop + sum(JITTER[seed % 4] for seed in seeds) / len(seeds))


def test_nothing_learned_decides_nothing() -> None:
    evidence = made_up(locality_repair, apart("", 96, TORN), lambda arm, condition, seed: False)
    for claim in locality_repair.claims:
        decision = claim.decide(evidence)
        assert (decision.verdict, decision.interval.count) == ("not decided", 0)
