"""The rules of ``sharpening`` say each verdict."""

from dataclasses import replace

import polars as pl
import pytest
from made_up_evidence import JITTER, TORN, Value, apart, claim_of, made_up, shifted
from sharpening.study import study as sharpening

from sparsity_lab.studies import Evidence

# Claim: the arm that is said to be better, and the other.
PAIRS = {
    "log-n": ("log-n softmax", "softmax"),
    "cosine log-n": ("cosine log-n", "softmax"),
    "LSSA": ("LSSA", "softmax"),
    "LSSAR 3": ("LSSAR p=3", "softmax"),
    "LSSAR 15": ("LSSAR p=15", "softmax"),
    "beside coupling": ("log-n softmax, coupled", "softmax, coupled"),
    "coupling alone": ("softmax, coupled", "softmax"),
}
OWN = {"dilution, measured", "dilution, undone"}


def evidence_of(value: Value, sharpened: tuple[float, ...] = JITTER, mass: tuple[float, ...] = JITTER) -> Evidence:
    """Rows with these values; softmax sharpened at test is better by ``sharpened``, and ``mass`` is by how much more
    is diluted than misplaced."""
    made = made_up(sharpening, value)
    softmax = made.rows.filter(pl.col("arm") == "softmax")
    by = pl.col("seed").replace_strict(dict(enumerate(sharpened)), return_dtype=pl.Float64)
    again = softmax.with_columns(
        pl.lit("sharpened").alias("what"),
        normalized_accuracy=pl.col("normalized_accuracy") + pl.when(pl.col("length") == 96).then(by).otherwise(0.0),
    )
    masses = pl.DataFrame(
        {
            "arm": "softmax",
            "seed": seed,
            "what": "mass",
            "length": length,
            "mass": 0.4,
            "reference_mass": 0.9,
            "diluted": 0.25 + more,
            "misplaced": -0.25,
        }
        for seed, more in enumerate(mass[: softmax["seed"].n_unique()])
        for length in (24, 96)
    )
    return replace(made, measures=pl.concat([masses, again], how="diagonal"))


def test_every_claim_is_shown_here() -> None:
    assert {claim.name for claim in sharpening.claims} == {*PAIRS, *OWN}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("by", "verdict"), [(shifted(0.3), "held"), (shifted(-0.3), "did not hold"), (TORN, "not decided")]
)
def test_differences(name: str, by: tuple[float, ...], verdict: str) -> None:
    better, other = PAIRS[name]
    decide = claim_of(sharpening, name).decide
    assert decide(evidence_of(apart(better, 96, by))).verdict == verdict
    assert decide(evidence_of(apart(other, 96, tuple(-one for one in by)))).verdict == verdict


@pytest.mark.parametrize(
    ("by", "verdict"), [(shifted(0.3), "held"), (shifted(-0.3), "did not hold"), (TORN, "not decided")]
)
def test_dilution(by: tuple[float, ...], verdict: str) -> None:
    """Undone by sharpening at test, and measured: an opposite change of the gap counts against it too."""
    flat = apart("", 96, TORN)
    assert claim_of(sharpening, "dilution, undone").decide(evidence_of(flat, sharpened=by)).verdict == verdict
    assert claim_of(sharpening, "dilution, measured").decide(evidence_of(flat, mass=by)).verdict == verdict
