"""The rules of ``sparse_parity`` say each verdict."""

import pytest
from made_up_evidence import TORN, apart, claim_of, made_up, shifted
from sparse_parity.study import study as sparse_parity

# Claim: the arm that is said to be better, and the other.
PAIRS = {
    "PoSE": ("RoPE + PoSE, k up to 4", "RoPE, k up to 4"),
    "no positions": ("NoPE, k up to 4", "RoPE, k up to 4"),
    "larger k in training": ("RoPE, k up to 8", "RoPE, k up to 2"),
}
SLOPES = {f"k, trained up to {largest}": f"RoPE, k up to {largest}" for largest in (4, 6, 8)}


def test_every_claim_is_shown_here() -> None:
    assert {claim.name for claim in sparse_parity.claims} == {*PAIRS, *SLOPES}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("by", "verdict"), [(shifted(0.3), "held"), (shifted(-0.3), "did not hold"), (TORN, "not decided")]
)
def test_differences(name: str, by: tuple[float, ...], verdict: str) -> None:
    better, other = PAIRS[name]
    decide = claim_of(sparse_parity, name).decide
    assert decide(made_up(sparse_parity, apart(better, 48, by))).verdict == verdict
    assert decide(made_up(sparse_parity, apart(other, 48, tuple(-one for one in by)))).verdict == verdict


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize(
    ("by", "verdict"), [((0.05, 0.06, 0.07), "held"), ((-0.05, -0.06, -0.07), "did not hold"), (TORN, "not decided")]
)
def test_slopes(name: str, by: tuple[float, ...], verdict: str) -> None:
    def value(arm: str, condition: str, length: int, seed: int) -> float:
        if length < 48 or arm != SLOPES[name]:
            return 1.0
        return 0.6 - by[seed % 3] * (float(condition.removeprefix("k=")) - 3)

    assert claim_of(sparse_parity, name).decide(made_up(sparse_parity, value)).verdict == verdict
