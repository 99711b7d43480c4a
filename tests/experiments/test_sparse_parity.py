"""The rules of ``sparse_parity`` say each verdict."""

import pytest
from made_up_evidence import TORN, VERDICTS, apart, decided, made_up
from sparse_parity.study import study as sparse_parity

# Claim: the arm that is said to be better, and the other.
PAIRS = {
    "PoSE": ("RoPE + PoSE, k up to 4", "RoPE, k up to 4"),
    "no positions": ("NoPE, k up to 4", "RoPE, k up to 4"),
}
# Claim: its arms, and the length to which they drop.
SLOPES = {
    "headline_sparsity_drop_grows_with_k": ([f"RoPE, k up to {largest}" for largest in (4, 6, 8)], 48),
    "k, without positions": (["NoPE, k up to 8"], 240),
}


def test_every_claim_is_shown_here_and_is_primary() -> None:
    assert {claim.name for claim in sparse_parity.claims} == {*PAIRS, *SLOPES} == set(sparse_parity.primary)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("by", "verdict"), VERDICTS)
def test_differences(name: str, by: tuple[float, ...], verdict: str) -> None:
    better, other = PAIRS[name]
    assert decided(sparse_parity, name, made_up(sparse_parity, apart(better, 48, by))).verdict == verdict
    against = apart(other, 48, tuple(-one for one in by))
    assert decided(sparse_parity, name, made_up(sparse_parity, against)).verdict == verdict


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize(
    ("by", "verdict"), [((0.2, 0.21, 0.22), "held"), ((-0.2, -0.21, -0.22), "did not hold"), (TORN, "not decided")]
)
def test_slopes(name: str, by: tuple[float, ...], verdict: str) -> None:
    """Each k more drops by ``by`` / 2; the number is the smallest rise of the arms."""
    arms, far = SLOPES[name]

    def value(arm: str, condition: str, length: int, seed: int) -> float:
        if length < far or arm not in arms:
            return 1.0
        return 0.5 - by[seed % len(by)] * (float(condition.removeprefix("k=")) - 4) / 2

    decision = decided(sparse_parity, name, made_up(sparse_parity, value))
    assert decision.verdict == verdict
    if verdict == "held":
        spans = [int(arm[-1]) - 1 for arm in arms]
        assert next(iter(decision.outcomes.numbers.values())) == pytest.approx(min(spans) * 0.1)
        assert all(f"{arm} k=1 " in decision.outcomes.detail for arm in arms)


def test_the_headline_needs_all_of_its_models() -> None:
    name = "headline_sparsity_drop_grows_with_k"

    def value(arm: str, condition: str, length: int, seed: int) -> float:
        flat = arm == "RoPE, k up to 6"
        return 1.0 if length < 48 or flat else 1.0 - float(condition.removeprefix("k=")) / 10

    assert decided(sparse_parity, name, made_up(sparse_parity, value)).verdict == "did not hold"
