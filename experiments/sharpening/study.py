"""``sharpening``: which power of re-weighting carries furthest, for one relevant token and for three?"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis import looks_of, styled
from sparsity_lab.generators import Mixture, Planted
from sparsity_lab.kernels import LSSAR
from sparsity_lab.models import Decoder, NoPE
from sparsity_lab.studies import (
    Arm,
    Claim,
    Evidence,
    MostSeeds,
    Outcomes,
    Size,
    Study,
    draw_by_length,
    how_far,
    panels,
    same_height,
    seeded,
)
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

__all__ = ["study"]

TRAINED, FARTHEST = 24, 1536
LENGTHS = (8, TRAINED, 48, 96, 192, 384, 768, FARTHEST)
POWERS = (1, 3, 8, 15)
HEAD_SIZES = (16, 32, 64)
KS = (1, 3)
SHARP = 8
"""Powers from here on are sharp."""
NEAR = 1.0
"""Reaches within so many doublings count as the same."""


def arm_of(p: int, head_size: int) -> str:
    return f"p={p}, heads of {head_size}"


def arms(size: Size) -> dict[str, Arm]:
    steps, seeds, sequences = {"smoke": (2, 1, 4), "small": (1000, 3, 128), "full": (10_000, 10, 2048)}[size]
    d_model = max(HEAD_SIZES)
    base = RunConfig(
        # k = 2 is where three tokens begin to be learned.
        task=Mixture(tasks=tuple(Planted(k=k) for k in (1, 2, 3))),
        model=Decoder(d_model=d_model, position=NoPE()),
        training=Training(
            steps=steps,
            batch_size=4 if size == "smoke" else 64,
            learning_rate=1e-3,
            curriculum=UniformLength(low=8, high=TRAINED),
        ),
        evaluation=Evaluation(
            lengths=(TRAINED, 48) if size == "smoke" else LENGTHS,
            sequences=sequences,
            conditions={f"k={k}": Planted(k=k) for k in KS},
        ),
    )
    # All have the same weights: heads of another size are fewer.
    return {
        arm_of(p, head_size): Arm(
            seeded(base.replace(model=base.model.replace(kernel=LSSAR(p=p), num_heads=d_model // head_size))), seeds
        )
        for p in POWERS
        for head_size in HEAD_SIZES
    }


def doublings(evidence: Evidence, k: int) -> pl.DataFrame:
    """One row for each run: ``p``, ``head_size``, ``seed``, and ``doublings`` from the trained length to the reach;
    -1 for what was not learned."""
    runs = evidence.rows.filter(pl.col("condition") == f"k={k}").unique(["arm", "seed"], maintain_order=True)
    found = pl.when("learned").then((pl.col("reach") / TRAINED).log(2)).otherwise(-1.0)
    power, head_size = (pl.col("arm").str.extract(rf"{words}(\d+)").cast(pl.Int64) for words in ("p=", "heads of "))
    return runs.select("arm", "seed", p=power, head_size=head_size, doublings=found)


def _whole(reaches: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """The rows of each seed that has all arms, and learned with some."""
    arms_of_a_seed = reaches["arm"].n_unique()
    for (seed,), part in sorted(reaches.partition_by("seed", as_dict=True).items()):
        if part.height == arms_of_a_seed and (part["doublings"] >= 0).any():
            yield seed, part


def best_power(k: int, choose: Callable[[list[int]], int], evidence: Evidence) -> Outcomes:
    """The power whose reach is largest with the heads that suit it best; ``choose`` says which of several."""
    reaches = doublings(evidence, k)
    found = {
        seed: float(choose(part.filter(pl.col("doublings") == part["doublings"].max())["p"].to_list()))
        for seed, part in _whole(reaches)
    }
    return Outcomes(found, "power p", _words(reaches, "p"))


def threshold(evidence: Evidence) -> Outcomes:
    """The smallest heads with which a power of 8 or more carries three tokens nearly as far as with any."""
    reaches = doublings(evidence, 3)
    found = {}
    for seed, part in _whole(reaches.filter(pl.col("p") >= SHARP)):
        # What was not learned is not near, whatever the best is.
        near = part.filter((pl.col("doublings") >= 0) & (pl.col("doublings") >= pl.col("doublings").max() - NEAR))
        found[seed] = float(near["head_size"].to_numpy().min())
    return Outcomes(found, "head size", _words(reaches.filter(pl.col("p") >= SHARP), "head_size"))


def _words(reaches: pl.DataFrame, by: str) -> str:
    """The mean over seeds of the best reach, for each value of a column."""
    each = reaches.group_by(by, "seed").agg(pl.col("doublings").max()).group_by(by).agg(pl.col("doublings").mean())
    words = [f"{value} {round(number, 1) + 0.0:.1f}" for value, number in each.sort(by).iter_rows()]
    return f"Doublings of the best reach by {by.replace('_', ' ')}, mean over seeds: {', '.join(words)}."


ARMS = tuple(arm_of(p, head_size) for p in POWERS for head_size in HEAD_SIZES)
REACH = (
    f"the largest length up to {FARTHEST} up to which normalized accuracy stays at 0.9 or more, of LSSAR with p of "
    f"{', '.join(map(str, POWERS))} and heads of {', '.join(map(str, HEAD_SIZES))}"
)


def _power_claim(k: int, words: str, ties: str, choose: Callable[[list[int]], int], criterion: MostSeeds) -> Claim:
    return Claim(
        name=f"best p, k={k}",
        statement=f"With k={k} the power of re-weighting with the largest reach is {words}.",
        source="this lab",
        outcome=f"The power with the largest reach at k={k}, with the heads that suit it best ({ties}). Reach is "
        f"{REACH}.",
        numbers=partial(best_power, k, choose),
        criterion=criterion,
        arms=ARMS,
    )


CLAIMS = (
    _power_claim(1, "at least 8", "of several powers the smallest", min, MostSeeds(at_least=8)),
    _power_claim(3, "at most 3", "of several powers the largest", max, MostSeeds(at_most=3)),
    Claim(
        name="head size",
        statement="Sharp re-weighting (p of 8 or more) needs heads of 32 for three tokens, and gains little from "
        "larger ones.",
        source="this lab",
        outcome="The smallest heads with which a power of 8 or more has a reach at k=3 within one doubling of its "
        f"reach with any. Reach is {REACH}.",
        numbers=threshold,
        criterion=MostSeeds(at_least=32, at_most=32),
        arms=ARMS,
    ),
)


def finding(evidence: Evidence) -> str:
    """How far the two smallest powers and the largest carry, with the largest heads."""
    told = (*POWERS[:2], POWERS[-1])
    each = []
    for k in KS:
        own = evidence.rows.filter(condition=f"k={k}")
        each.append(f"k={k}: {how_far({f'p={p}': own.filter(arm=arm_of(p, HEAD_SIZES[-1])) for p in told})}")
    return f"Heads of {HEAD_SIZES[-1]}. {'. '.join(each)}."


def figure(evidence: Evidence) -> Figure:
    """Accuracy by length: a column for each k, a row for each size of heads, a line for each power."""
    looks = looks_of([f"p={p}" for p in POWERS])
    with styled():
        chart, axes = panels(len(KS) * len(HEAD_SIZES), columns=len(KS))
        for place, ax in enumerate(axes):
            k, head_size = KS[place % len(KS)], HEAD_SIZES[place // len(KS)]
            own = evidence.rows.filter(pl.col("condition") == f"k={k}")
            curves = {f"p={p}": own.filter(pl.col("arm") == arm_of(p, head_size)) for p in POWERS}
            words = "" if place % len(KS) else "normalized accuracy"
            draw_by_length(ax, curves, looks, title=f"k={k}, heads of {head_size}", words=words)
        same_height(axes)
    return chart


def tables(evidence: Evidence) -> Mapping[str, pl.DataFrame]:
    """Reach of every run."""
    made = {}
    for k in KS:
        reaches = doublings(evidence, k)
        length = (TRAINED * 2 ** pl.col("doublings")).round().cast(pl.Int64).cast(pl.String)
        at_least = pl.when(length == str(FARTHEST)).then(pl.format("≥ {}", length)).otherwise(length)
        words = pl.when(pl.col("doublings") < 0).then(pl.lit("–")).otherwise(at_least)
        made[f"Reach at k={k} by seed (–: not learned)"] = reaches.group_by("arm", maintain_order=True).agg(
            words.str.join(", ").alias("reach")
        )
    return made


study = Study(
    name="sharpening",
    title="How sharp attention should be, for one relevant token and for three",
    question=(
        "LSSAR re-weights attention: the part above the uniform share is raised to a power p. A large p selects few "
        "keys. This leaves less weight for the background of longer sequences, but it can drop some of several "
        "relevant tokens. A decoder of two layers without positions learns the parity of 1 to 3 marked tokens on "
        f"lengths up to {TRAINED}, and is tested up to {FARTHEST}. Powers go from 1 to 15, and heads from 16 to 64. "
        "Which power and which heads have the largest reach for each k?"
    ),
    arms=arms,
    claims=CLAIMS,
    primary=tuple(claim.name for claim in CLAIMS),
    figure=figure,
    finding=finding,
    columns=("normalized_accuracy",),
    tables=tables,
)
