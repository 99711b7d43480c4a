"""The claims and their rules. Which kernels there are is read off the evidence, so that results outlive the registry
they were made with."""

import math
import statistics
from functools import partial

import numpy as np
import polars as pl
from scipy import stats

from sparsity_lab.analysis import mean_interval
from sparsity_lab.studies import ABOVE_ZERO, Claim, Decision, Evidence, held_above, judged

from .arms import FAR, TRAINED
from .measure import LONG

__all__ = ["CLAIMS", "by_run"]

FEWEST = 5  # kernels that must have learned for a rank correlation over kernels

LENGTH_SCALED = ("CosineSoftmax", "EntropyInvariantSoftmax", "LSSA", "LSSAR", "LogNSoftmax", "SSMax")


def by_run(evidence: Evidence) -> pl.DataFrame:
    """One row for each run: ``arm``, ``seed``, ``learned``, ``reach``, ``censored``, the normalized accuracies
    ``at_trained`` and ``at_far``, and of the long step ``speed`` and ``memory``."""
    value = pl.col("normalized_accuracy")
    runs = evidence.rows.group_by("arm", "seed", maintain_order=True).agg(
        pl.col("learned", "reach", "censored").first(),
        at_trained=value.filter(pl.col("length") == TRAINED).first(),
        at_far=value.filter(pl.col("length") == FAR).first(),
    )
    costs = evidence.measured.filter(pl.col("length") == LONG).select("arm", "seed", "speed", "memory")
    return runs.join(costs, on=["arm", "seed"], how="left", maintain_order="left")


def seeds_of(runs: pl.DataFrame) -> list[pl.DataFrame]:
    """The runs of each seed, in order."""
    return runs.sort("seed", maintain_order=True).partition_by("seed", maintain_order=True)


def decide_learned(evidence: Evidence) -> Decision:
    """What share of the kernels learned."""
    runs = by_run(evidence)
    interval = mean_interval([float(part["learned"].mean()) for part in seeds_of(runs)])  # type: ignore[arg-type]
    never = runs.group_by("arm", maintain_order=True).agg(pl.col("learned").any()).filter(~pl.col("learned"))["arm"]
    detail = f"Never learned: {', '.join(never)}." if len(never) else "Each was learned with at least one seed."
    return Decision(judged(interval, above=0.75), interval, "of the kernels", detail)


def decide_spread(evidence: Evidence) -> Decision:
    """How far the reaches of kernels that learned lie apart."""
    found, words = [], []
    for part in seeds_of(by_run(evidence).filter(pl.col("learned"))):
        ranked = part.sort("reach", "arm")
        if ranked.height > 1:
            first, last = ranked.row(0, named=True), ranked.row(-1, named=True)
            found.append(math.log2(last["reach"] / first["reach"]))
            at_least = "at least " * last["censored"]
            words.append(f"{first['reach']} ({first['arm']}) to {at_least}{last['reach']} ({last['arm']})")
    interval = mean_interval(found)
    detail = f"By seed: {'; '.join(words)}." if words else ""
    return Decision(judged(interval, above=2.0), interval, "doublings", detail)


def decide_scaled(evidence: Evidence) -> Decision:
    """How much better than softmax the length-scaled kernels that learned hold."""
    found, names = [], set()
    for part in seeds_of(by_run(evidence).filter(pl.col("learned"))):
        of = dict(part.select("arm", "at_far").iter_rows())
        scaled = {name: of[name] for name in LENGTH_SCALED if name in of}
        if "Softmax" in of and scaled:
            found.append(statistics.fmean(scaled.values()) - of["Softmax"])
            names |= set(scaled)
    interval = mean_interval(found)
    detail = f"Of them learned: {', '.join(name for name in LENGTH_SCALED if name in names)}." if names else ""
    return Decision(judged(interval), interval, "normalized accuracy", detail)


def decide_price(evidence: Evidence) -> Decision:
    """The rank correlation over kernels of speed with the accuracy at ``FAR``."""
    found = []
    for part in seeds_of(by_run(evidence).filter(pl.col("learned")).drop_nulls(["speed", "at_far"])):
        speed, value = part["speed"].to_numpy(), part["at_far"].to_numpy()
        if part.height >= FEWEST and np.ptp(speed) > 0 and np.ptp(value) > 0:
            found.append(float(stats.spearmanr(speed, value).statistic))
    interval = mean_interval(found)
    detail = f"By seed: {', '.join(f'{one:.2f}' for one in found)}." if found else f"No seed with {FEWEST} kernels."
    return Decision(judged(mean_interval([-one for one in found])), interval, "rank correlation", detail)


def decide_speed(kind: str, evidence: Evidence) -> Decision:
    """Whether a kernel trains faster than softmax at the long length."""
    own = evidence.measured.filter(pl.col("arm") == kind).sort("length", "seed")
    interval = mean_interval(own.filter(pl.col("length") == LONG)["speed"].to_list())
    means = own.group_by("length", maintain_order=True).agg(pl.col("speed").mean())
    words = "; ".join(f"at {length} {speed:.2f}" for length, speed in means.iter_rows())
    return Decision(judged(interval, above=1.0), interval, "times as fast", f"Means: {words}." if words else "")


def _speed_claim(kind: str, words: str) -> Claim:
    return Claim(
        name=f"{words} is faster",
        statement=f"At {LONG} tokens a decoder with {words} trains faster than one with fused softmax.",
        source="this lab",
        rule=f"Tokens a second of a training step of one sequence of {LONG} tokens over softmax's, the median of "
        f"five pairs that take turns, by seed. {held_above(1)}",
        decide=partial(decide_speed, kind),
    )


CLAIMS = (
    Claim(
        name="most learn",
        statement="More than three quarters of the kernels learn the task, all in the same number of steps.",
        source="this lab",
        rule="Share of the kernels whose run learned (normalized accuracy of at least 0.9 at all trained lengths), "
        f"by seed. {held_above(0.75)}",
        decide=decide_learned,
    ),
    Claim(
        name="reach differs",
        statement="Kernels that learn equally well on short sequences differ in reach by more than four times.",
        source="this lab",
        rule="Doublings from the shortest to the longest reach among the kernels that learned, by seed; a reach at "
        f"the end of the grid counts as that. {held_above(2)}",
        decide=decide_spread,
    ),
    Claim(
        name="length scaling",
        statement=f"Kernels that scale scores with length hold better at {FAR} than softmax.",
        source="this lab, after what scaling scores with log n is made for (arXiv 2501.13428)",
        rule=f"Mean normalized accuracy at {FAR} of those of {', '.join(LENGTH_SCALED)} that learned, minus that of "
        f"softmax, by seed. {ABOVE_ZERO}",
        decide=decide_scaled,
    ),
    Claim(
        name="speed costs reach",
        statement=f"The faster a kernel trains at {LONG} tokens, the worse it holds at {FAR}.",
        source="this lab",
        rule=f"Over the kernels that learned (at least {FEWEST}), the rank correlation of speed with the normalized "
        f"accuracy at {FAR}, by seed. Held if the 95 % interval of the mean over seeds lies below 0, did not hold if "
        "it lies above or at 0, else not decided.",
        decide=decide_price,
    ),
    _speed_claim("Linear", "linear attention"),
    _speed_claim("SlidingWindow", "a window of 64"),
)
