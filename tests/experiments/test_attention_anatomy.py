"""The rules of ``attention_anatomy`` say each verdict, and its tables keep apart what learned and what did not."""

from collections.abc import Callable
from dataclasses import replace

import polars as pl
import pytest
from attention_anatomy.arms import FAR, KERNELS, LENGTH_SCALED, TRAINED
from attention_anatomy.claims import FEWEST, RANKED
from attention_anatomy.page import tables
from attention_anatomy.study import study as attention_anatomy
from figure_rules import broken_rules
from made_up_evidence import MOST_SEEDS, SEEDS, VERDICTS, Learned, decided, made_up

from sparsity_lab.studies import Evidence

ARMS = list(KERNELS)
Measures = Callable[[str, int, int], dict[str, float]]
"""From arm, length and seed; what is not given is 1, and the slope of entropy -1."""


def evidence_of(
    measures: Measures, learned: Learned = lambda arm, condition, seed: True, seeds: int = SEEDS
) -> Evidence:
    """Evidence in which the arms hold the better at ``FAR`` the later they come in ``ARMS``. Two heads lie at equal
    distances from each measure, and a rescaled row beside them, which no claim looks at, is far off."""

    def value(arm: str, condition: str, length: int, seed: int) -> float:
        return 1.0 if length <= TRAINED else (1 + ARMS.index(arm)) / 20

    made = made_up(attention_anatomy, value, learned, seeds)
    rows = []
    for arm, seed, run, length in made.rows.select("arm", "seed", "run", "length").unique(maintain_order=True).rows():
        own = {"entropy": 1.0, "mass": 1.0, "query_slope": -1.0} | measures(arm, length, seed)
        place = {"arm": arm, "seed": seed, "run": run, "length": length, "layer": 0}
        for head in (0, 1):
            about = {name: one + (head - 0.5) for name, one in own.items()}
            rows.append(place | {"head": head, "factor": 1.0, "uniform": 3 / (length + 2), "query_norm": 2.0} | about)
            rows.append(place | {"head": head, "factor": 2.0, "entropy": 1e3, "entropy_change": 1e3})
    return replace(made, measures=pl.DataFrame(rows, infer_schema_length=None))


def at_far(**measures: Callable[[str, int], float]) -> Measures:
    """Measures at ``FAR``, from arm and seed."""
    return lambda arm, length, seed: {n: f(arm, seed) for n, f in measures.items()} if length == FAR else {}


def rising(*signs: int) -> Callable[[str, int], float]:
    """Above 1, and by seed rising (1) or falling (-1) along the arms, so with or against what they hold."""
    return lambda arm, seed: 20.0 + signs[seed % len(signs)] * ARMS.index(arm)


RANKS = {"entropy moved": ("entropy", -1), "mass kept": ("mass", 1)}


def test_every_claim_is_shown_here() -> None:
    names = {claim.name for claim in attention_anatomy.claims}
    assert names == {*RANKS, "entropy of length scaling", "reach of length scaling", "linear attention is flat"}


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize(
    ("signs", "verdict"),
    [((1, 1, 1), "held"), ((-1, -1, -1), "did not hold"), ((1, -1), "not decided")],
    ids=["held", "did not hold", "not decided"],
)
def test_rank_correlations(name: str, signs: tuple[int, ...], verdict: str) -> None:
    column, sign = RANKS[name]
    evidence = evidence_of(at_far(**{column: rising(*(sign * one for one in signs))}))
    found = decided(attention_anatomy, name, evidence)
    assert found.verdict == verdict
    assert found.estimate == pytest.approx(sign * sum(signs) / len(signs))
    assert found.count == SEEDS


def test_entropy_counts_by_how_far_it_moves_not_where_to() -> None:
    """It falls by as much as it could rise, the more the better an arm holds: the less it moves, the worse."""
    falls = at_far(entropy=lambda arm, seed: -20.0 - ARMS.index(arm))
    assert decided(attention_anatomy, "entropy moved", evidence_of(falls)).verdict == "did not hold"


def test_mass_kept_is_beside_that_of_the_trained_length() -> None:
    """All have the same mass at the far end; what they had before falls along the arms, so that more is kept."""
    had = {arm: 30.0 - i for i, arm in enumerate(ARMS)}
    evidence = evidence_of(lambda arm, length, seed: {"mass": had[arm]} if length == TRAINED else {})
    assert decided(attention_anatomy, "mass kept", evidence).verdict == "held"
    # Alike: no order, so no correlation.
    assert decided(attention_anatomy, "mass kept", evidence_of(lambda arm, length, seed: {})).estimate is None


def test_too_few_kernels_and_those_that_never_learned_say_nothing() -> None:
    mass = at_far(mass=rising(1))

    def mass_kept(measures: Measures, learned: Learned) -> tuple[str, int, float | None]:
        found = decided(attention_anatomy, "mass kept", evidence_of(measures, learned))
        return found.verdict, found.count, found.estimate

    few = mass_kept(mass, lambda arm, condition, seed: ARMS.index(arm) < FEWEST - 1)
    assert few == ("not decided", 0, None)
    assert mass_kept(mass, lambda arm, condition, seed: ARMS.index(arm) < FEWEST)[0] == "held"
    # The last arm holds best, and would spoil the order if it counted; without it, it is perfect.
    spoiled = at_far(mass=lambda arm, seed: 0.0 if arm == ARMS[-1] else 20.0 + ARMS.index(arm))
    ranked = len(RANKED)
    among_all = 1 - 6 * ((ranked - 1) ** 2 + ranked - 1) / (ranked * (ranked**2 - 1))
    assert mass_kept(spoiled, lambda arm, condition, seed: True)[2] == pytest.approx(among_all)
    assert mass_kept(spoiled, lambda arm, condition, seed: arm != ARMS[-1])[2] == pytest.approx(1.0)


def test_the_arm_that_a_correlation_hangs_on_is_named() -> None:
    """Without the last arm, whose mass is the largest, the order of the others is reversed."""
    mass = at_far(mass=lambda arm, seed: 99.0 if arm == ARMS[-1] else 20.0 - ARMS.index(arm))
    found = decided(attention_anatomy, "mass kept", evidence_of(mass))
    assert f"without {ARMS[-1]} the mean is -1.00" in found.outcomes.detail


@pytest.mark.parametrize(("by", "verdict"), MOST_SEEDS)
def test_entropy_of_length_scaling(by: tuple[float, ...], verdict: str) -> None:
    """Softmax moves by 1 and ``by`` more than the mean of the scaled ones, which differ among each other."""
    name = "entropy of length scaling"

    def entropy(arm: str, seed: int) -> float:
        if arm == "softmax":
            return 2.0 + by[seed % len(by)]
        place = LENGTH_SCALED.index(arm) if arm in LENGTH_SCALED else 99
        return 2.0 + (place - (len(LENGTH_SCALED) - 1) / 2)

    found = decided(attention_anatomy, name, evidence_of(at_far(entropy=entropy)))
    assert found.verdict == verdict
    assert found.outcomes.numbers[1] == pytest.approx(by[1])
    # One that never learned does not enter the mean: without the last, that of the others is half a nat lower.
    last = LENGTH_SCALED[-1]
    rest = evidence_of(at_far(entropy=entropy), lambda arm, condition, seed: arm != last)
    without = decided(attention_anatomy, name, rest).outcomes
    assert without.numbers[1] == pytest.approx(by[1] + 0.5)
    assert f"{last} never learned" in without.detail
    never = evidence_of(at_far(entropy=entropy), lambda arm, condition, seed: arm != "softmax")
    assert decided(attention_anatomy, name, never).count == 0


@pytest.mark.parametrize(("by", "verdict"), VERDICTS)
def test_reach_of_length_scaling(by: tuple[float, ...], verdict: str) -> None:
    def value(arm: str, condition: str, length: int, seed: int) -> float:
        return 1.0 if length <= TRAINED else 0.5 + (by[seed % len(by)] if arm in LENGTH_SCALED else 0.0)

    found = decided(attention_anatomy, "reach of length scaling", made_up(attention_anatomy, value))
    assert found.verdict == verdict
    assert found.outcomes.numbers[0] == pytest.approx(by[0])


@pytest.mark.parametrize(("by", "verdict"), MOST_SEEDS)
def test_linear_attention_is_flat(by: tuple[float, ...], verdict: str) -> None:
    name = "linear attention is flat"

    def measures(own: str, length: int, seed: int) -> dict[str, float]:
        # Each seed has a level of its own, which pairing takes out; other lengths say the opposite.
        more = by[seed % len(by)] if own == "linear, elu" else 0.0
        return {"entropy": 5.0 * seed + more * (1 if length == TRAINED else -9)}

    found = decided(attention_anatomy, name, evidence_of(measures))
    assert found.verdict == verdict
    assert found.outcomes.numbers[0] == pytest.approx(by[0])
    # Only seeds that both learned; the detail has all.
    some = evidence_of(measures, lambda own, condition, seed: own != "softmax" or seed > 3)
    without = decided(attention_anatomy, name, some)
    assert without.count == SEEDS - 4
    every = sum(by[seed % len(by)] for seed in range(SEEDS)) / SEEDS + 0.0
    assert f"Over all seeds, learned or not: {every:.2f}" in without.outcomes.detail


def test_tables_keep_runs_apart_that_never_learned() -> None:
    """Of softmax one of three did not learn, and of the last arm none did; their numbers enter no other mean."""

    def learned(arm: str, condition: str, seed: int) -> bool:
        return arm != ARMS[-1] and (arm, seed) != ("softmax", 2)

    evidence = evidence_of(lambda arm, length, seed: {"entropy": 100.0 if seed == 2 else 3.0 + seed}, learned, 3)
    entropy, _, slope = tables(evidence).values()
    rows = {row["arm"]: row[str(TRAINED)] for row in entropy.iter_rows(named=True)}
    assert rows["softmax (2 learned)"] == pytest.approx(3.5)
    assert rows["softmax (1 that did not learn)"] == pytest.approx(100.0)
    assert rows[f"{ARMS[-1]} (3 that did not learn)"] == pytest.approx((3 + 4 + 100) / 3)
    assert rows[f"{ARMS[1]} (3 learned)"] == pytest.approx((3 + 4 + 100) / 3)
    assert list(rows)[-2:] == ["softmax (1 that did not learn)", f"{ARMS[-1]} (3 that did not learn)"]
    assert len(slope) == len(ARMS) + 1


def test_the_figure_draws_what_learned() -> None:
    evidence = evidence_of(lambda arm, length, seed: {}, lambda arm, condition, seed: arm != ARMS[-1], 3)
    drawn = attention_anatomy.figure(evidence)
    below = [text.get_text() for ax in drawn.axes[-2:] for text in ax.texts if "learned" in text.get_text()]
    assert below == [f"{ARMS[-1]}: never learned"]
    named = [str(line.get_label()) for ax in drawn.axes[:2] for line in ax.lines]
    assert sorted(name for name in named if name in ARMS) == sorted(ARMS[:-1])
    assert broken_rules(drawn) == []
