"""The rules of ``sharpening`` say each verdict."""

import polars as pl
from made_up_evidence import decided
from sharpening.study import HEAD_SIZES, KS, POWERS, TRAINED, arm_of, doublings, figure, tables
from sharpening.study import study as sharpening

from sparsity_lab.studies import Evidence

SEEDS = 8
Reaches = dict[tuple[int, int, int], int | None]
"""By k, power and head size; what is not given is 48, and None was not learned."""


def evidence(*by_seed: Reaches) -> Evidence:
    """What each seed reaches, over and over."""
    rows = []
    for seed in range(SEEDS):
        own = by_seed[seed % len(by_seed)]
        for k in KS:
            for p in POWERS:
                for head_size in HEAD_SIZES:
                    reach = own.get((k, p, head_size), 48)
                    known = {"learned": reach is not None, "reach": reach, "run": f"{p}, {head_size}, {seed}"}
                    for length in (TRAINED, 48, 1536):
                        right = reach is not None and length <= reach
                        place = {"condition": f"k={k}", "length": length, "trained": length == TRAINED}
                        value = {"normalized_accuracy": float(right)}
                        rows.append({"arm": arm_of(p, head_size), "seed": seed} | place | value | known)
    return Evidence(pl.DataFrame(rows, infer_schema_length=None))


def verdict(name: str, found: Evidence) -> tuple[str, float]:
    decision = decided(sharpening, name, found)
    return decision.verdict, decision.outcomes.numbers[0]


def test_every_claim_is_shown_here() -> None:
    assert {claim.name for claim in sharpening.claims} == {"best p, k=1", "best p, k=3", "head size"}
    assert sharpening.primary == tuple(claim.name for claim in sharpening.claims)


def test_best_power_of_one_token() -> None:
    """With the heads that suit it best; of equal ones the smallest, and k=3 says nothing."""
    other = {(3, 1, 16): 1536}
    assert verdict("best p, k=1", evidence({(1, 15, 64): 384, (1, 3, 16): 192} | other)) == ("held", 15)
    assert verdict("best p, k=1", evidence({(1, 8, 64): 384, (1, 15, 16): 384} | other)) == ("held", 8)
    assert verdict("best p, k=1", evidence({(1, 15, 64): 384, (1, 3, 16): 384} | other)) == ("did not hold", 3)
    torn = evidence({(1, 15, 64): 384}, {(1, 3, 64): 384})
    assert verdict("best p, k=1", torn) == ("not decided", 15)


def test_best_power_of_three_tokens() -> None:
    """Of equal ones the largest."""
    assert verdict("best p, k=3", evidence({(3, 3, 16): 192, (3, 1, 32): 192, (1, 15, 16): 384})) == ("held", 3)
    assert verdict("best p, k=3", evidence({(3, 3, 16): 192, (3, 8, 32): 192})) == ("did not hold", 8)
    torn = evidence({(3, 1, 64): 384}, {(3, 15, 64): 384})
    assert verdict("best p, k=3", torn) == ("not decided", 1)


def test_threshold_of_head_sizes() -> None:
    """Of powers of 8 and more: within one doubling of their best; what was not learned is not near."""
    little = {(3, p, 16): None for p in POWERS}
    assert verdict("head size", evidence(little)) == ("held", 32)
    more = {(3, 15, 64): 192}
    assert verdict("head size", evidence(more | {(3, 8, 32): 96})) == ("held", 32)
    assert verdict("head size", evidence(more)) == ("did not hold", 64)
    assert verdict("head size", evidence(more | {(3, 8, 16): 96, (3, 15, 32): 192})) == ("did not hold", 16)
    # Smaller powers do not count.
    assert verdict("head size", evidence(more | {(3, 3, 32): 1536})) == ("did not hold", 64)
    assert verdict("head size", evidence(little, more)) == ("not decided", 32)


def test_seeds_without_all_arms_or_of_which_nothing_was_learned_have_no_number() -> None:
    nothing: Reaches = {(k, p, size): None for k in KS for p in POWERS for size in HEAD_SIZES}
    found = evidence({}, nothing)
    lacking = Evidence(found.rows.filter((pl.col("seed") != 2) | (pl.col("arm") != arm_of(15, 64))))
    for claim in sharpening.claims:
        assert set(claim.numbers(found).numbers) == {0, 2, 4, 6}
        assert set(claim.numbers(lacking).numbers) == {0, 4, 6}


def test_doublings_tables_and_figure() -> None:
    found = evidence({(1, 3, 16): 96, (1, 8, 32): None, (1, 15, 64): 1536})
    at = {(p, size): number for p, size, number in doublings(found, 1).select("p", "head_size", "doublings").rows()}
    assert (at[1, 16], at[3, 16], at[8, 32], at[15, 64]) == (1.0, 2.0, -1.0, 6.0)
    one, _ = tables(found).values()
    reaches = dict(one.iter_rows())
    assert reaches[arm_of(3, 16)].split(", ") == ["96"] * SEEDS
    assert reaches[arm_of(8, 32)].split(", ") == ["–"] * SEEDS
    assert reaches[arm_of(15, 64)].split(", ") == ["≥ 1536"] * SEEDS
    drawn = figure(found)
    assert [ax.get_title() for ax in drawn.axes] == [f"k={k}, heads of {size}" for size in HEAD_SIZES for k in KS]
    # Nothing is drawn of an arm without runs, and nothing fails.
    assert figure(Evidence(found.rows.filter(pl.col("arm") == arm_of(1, 16)))).axes


def test_arms_differ_in_power_and_heads_alone() -> None:
    runs = {arm: one.run(0) for arm, one in sharpening.arms("small").items()}
    assert len(runs) == len(POWERS) * len(HEAD_SIZES)
    assert len({run.replace(model=runs[arm_of(1, 16)].model).id for run in runs.values()}) == 1
    assert {run.model.d_model // run.model.num_heads for run in runs.values()} == set(HEAD_SIZES)
