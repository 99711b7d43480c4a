"""``swap_attention``: does a model trained with softmax attention take another mechanism without training?"""

from collections.abc import Callable, Mapping
from functools import partial

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsity_lab.analysis import (
    GRAY,
    INK,
    Look,
    Replicates,
    by_replicate,
    distractor_robustness,
    draw_median,
    looks_of,
    name_lines,
    paired_differences,
    styled,
)
from sparsity_lab.generators import Passkey, Task, TextBytes
from sparsity_lab.kernels import LSSA, LSSAR, Kernel, Reweighted, Softmax
from sparsity_lab.models import Decoder, RoPE
from sparsity_lab.settings import replace_at
from sparsity_lab.studies import (
    MATTERS,
    Arm,
    Claim,
    Criterion,
    Evidence,
    MostSeeds,
    NormalMean,
    Outcomes,
    Size,
    Study,
    draw_by_length,
    growths,
    means_by,
    means_listed,
    panels,
    same_height,
    seeded,
)
from sparsity_lab.training import Curriculum, Evaluation, FixedLength, Run, RunConfig, Training, UniformLength

__all__ = ["study"]

TRAINED, FAR = 32, 256
LENGTHS = (TRAINED, 64, 128, FAR, 512)
POWERS = (1, 2, 3, 5, 8, 15)
DRAWN = (1, 3, 15)
"""The powers in the figure; the tables have all."""
STRENGTHS = (0.0, 0.75, 1.0, 1.25)
"""Of the planted wrong key; 1 is a double of the best key."""

TEXT, PASSKEY = "text", "passkey"
TASKS: dict[str, tuple[Task, Curriculum]] = {
    TEXT: (TextBytes(), FixedLength(length=TRAINED)),
    PASSKEY: (Passkey(num_digits=2), UniformLength(low=8, high=TRAINED)),
}
RATES = {TEXT: 6e-3, PASSKEY: 3e-3}
MEASURE = {TEXT: "loss", PASSKEY: "normalized_accuracy"}


def lssar(p: int) -> str:
    return f"LSSAR p={p}"


def re_weighted(p: int) -> str:
    return f"re-weighted p={p}"


TRAINED_WITH, SHARPEST = "softmax", re_weighted(POWERS[-1])
MECHANISMS: dict[str, Kernel] = {
    TRAINED_WITH: Softmax(),
    "LSSA": LSSA(),
    **{lssar(p): LSSAR(p=p) for p in POWERS},
    **{re_weighted(p): Reweighted(base=Softmax(), p=p) for p in POWERS},
}


def arm(task: str, mechanism: str) -> str:
    return f"{task}: {mechanism}"


def arms(size: Size) -> dict[str, Arm]:
    """For each task a run with softmax, and its children of no steps, which differ in the mechanism."""
    steps, seeds, sequences = {
        "smoke": ({TEXT: 2, PASSKEY: 2}, 1, 4),
        "small": ({TEXT: 600, PASSKEY: 400}, 3, 128),
        "full": ({TEXT: 20_000, PASSKEY: 5_000}, 10, 1024),
    }[size]
    layers, d_model, heads = {"smoke": (1, 8, 2), "small": (2, 64, 4), "full": (2, 256, 8)}[size]
    made = {}
    for label, (task, curriculum) in TASKS.items():
        base = RunConfig(
            task=task,
            model=Decoder(num_layers=layers, d_model=d_model, num_heads=heads, position=RoPE()),
            training=Training(
                steps=steps[label],
                batch_size=4 if size == "smoke" else 32,
                learning_rate=1e-3 if size == "full" else RATES[label],
                curriculum=curriculum,
            ),
            evaluation=Evaluation(
                lengths=(TRAINED, FAR) if size == "smoke" else LENGTHS,
                sequences=sequences,
                conditions={label: task},
            ),
        )
        for name, kernel in MECHANISMS.items():
            made[arm(label, name)] = Arm(seeded(base if name == TRAINED_WITH else _swapped(base, kernel)), seeds)
    return made


def _swapped(parent: RunConfig, kernel: Kernel) -> RunConfig:
    """The parent's weights under another mechanism, as they are."""
    child = parent.replace(parent=parent, model=parent.model.replace(kernel=kernel))
    return replace_at(child, "training.steps", 0)


def measure(run: Run) -> pl.DataFrame:
    """What a wrong key in one layer does at the trained length: a row for each layer and strength."""
    sequences = min(128, run.config.evaluation.sequences)
    found = distractor_robustness(
        run, lengths=(TRAINED,), strengths=STRENGTHS, sequences=sequences, seed=run.config.data_seed
    )
    return found.frame().select("layer", "strength", "loss_change", "accuracy", "best_share", "wrong_share")


def counted(rows: pl.DataFrame, evidence: Evidence, task: str, mechanism: str, every: bool) -> pl.DataFrame:
    """The rows of an arm, by seed; unless ``every``, without seeds whose softmax run did not learn: there is nothing
    to lose then. Of text no optimum is known, so all count."""
    softmax = evidence.rows.filter(pl.col("arm") == arm(task, TRAINED_WITH))
    failed = [] if every else softmax.filter(~pl.col("learned"))["seed"].unique().to_list()
    return rows.filter((pl.col("arm") == arm(task, mechanism)) & ~pl.col("seed").is_in(failed)).sort("seed")


def values(evidence: Evidence, task: str, mechanism: str, length: int, *, every: bool = False) -> Replicates:
    """The task's measure at a length."""
    rows = counted(evidence.rows, evidence, task, mechanism, every).filter(pl.col("length") == length)
    return by_replicate(rows, MEASURE[task])


def harm(evidence: Evidence, task: str, mechanism: str, strength: float, *, every: bool = False) -> Replicates:
    """Change of loss by a wrong key of this strength, mean over layers."""
    rows = counted(evidence.measured, evidence, task, mechanism, every).filter(pl.col("strength") == strength)
    return by_replicate(rows.group_by("seed", maintain_order=True).agg(pl.col("loss_change").mean()), "loss_change")


TAKEN = 0.05
"""The largest relative rise of the loss, or fall of the normalized accuracy, of a mechanism that is taken."""


def cost(task: str, mechanism: str, evidence: Evidence) -> Outcomes:
    """What the weights lose by the mechanism at the trained length."""

    def lost(own: Replicates, softmax: Replicates) -> Replicates:
        return growths(softmax, own) if task == TEXT else paired_differences(softmax, own)

    unit = "of softmax's loss" if task == TEXT else "of normalized accuracy"
    return _compared(evidence, task, mechanism, TRAINED, lost, unit)


def gain(task: str, mechanism: str, evidence: Evidence) -> Outcomes:
    """What the weights gain by the mechanism far away."""

    def gained(own: Replicates, softmax: Replicates) -> Replicates:
        # The better loss is the smaller one.
        return paired_differences(softmax, own) if task == TEXT else paired_differences(own, softmax)

    return _compared(evidence, task, mechanism, FAR, gained, "nats" if task == TEXT else "of normalized accuracy")


def _compared(
    evidence: Evidence,
    task: str,
    mechanism: str,
    length: int,
    compare: Callable[[Replicates, Replicates], Replicates],
    unit: str,
) -> Outcomes:
    """A comparison of the measure with a mechanism and with softmax."""
    own, softmax = (values(evidence, task, name, length) for name in (mechanism, TRAINED_WITH))
    every = compare(*(values(evidence, task, name, length, every=True) for name in (mechanism, TRAINED_WITH)))
    detail = _means(task, {mechanism: own, TRAINED_WITH: softmax}) + _over_all(task, every)
    return Outcomes(compare(own, softmax), unit, detail)


def sharpness(evidence: Evidence) -> Outcomes:
    """What the largest power costs more than the smallest at the trained length."""
    found = {f"p={p}": values(evidence, TEXT, re_weighted(p), TRAINED) for p in (POWERS[0], POWERS[-1])}
    first, last = found.values()
    return Outcomes(paired_differences(last, first), "nats", _means(TEXT, found))


def more_harm(task: str, evidence: Evidence) -> Outcomes:
    """What a double of the best key harms re-weighted softmax more than softmax."""
    own, softmax = (harm(evidence, task, name, 1.0) for name in (SHARPEST, TRAINED_WITH))
    every = paired_differences(*(harm(evidence, task, name, 1.0, every=True) for name in (SHARPEST, TRAINED_WITH)))
    detail = f"Change of loss: {_listed({SHARPEST: own, TRAINED_WITH: softmax})}." + _over_all(task, every)
    return Outcomes(paired_differences(own, softmax), "nats", detail)


def _means(task: str, found: Mapping[str, Replicates]) -> str:
    return f"{MEASURE[task].replace('_', ' ').capitalize()}: {_listed(found)}."


def _over_all(task: str, every: Replicates) -> str:
    words = means_listed({"Over all seeds, learned or not:": every})
    return "" if task == TEXT else f" {words}."


def _listed(found: Mapping[str, Replicates]) -> str:
    return means_listed(found, between=", ", missing="not learned")


COUNTED = "over the seeds whose softmax run learned (of text all)"
PAPER = "Gao, Spratling, Gionfrida, arXiv 2501.13428"
FREE = f"{PAPER}, version 2, whose abstract calls re-weighting free of fine-tuning"
OWN = "this lab"


def _arms(task: str, *mechanisms: str) -> tuple[str, ...]:
    return tuple(arm(task, one) for one in (TRAINED_WITH, *mechanisms))


def _taken_claim(task: str, mechanism: str, source: str) -> Claim:
    loss = task == TEXT
    what = f"{mechanism} over that of softmax, minus one" if loss else f"softmax minus that of {mechanism}"
    return Claim(
        name=f"{mechanism} is taken, {task}",
        statement=f"A softmax model works with {mechanism} without training, at the trained length ({task}).",
        source=source,
        outcome=f"{'Loss' if loss else 'Normalized accuracy'} at length {TRAINED} with {what}, {COUNTED}.",
        numbers=partial(cost, task, mechanism),
        criterion=NormalMean(below=TAKEN) if loss else MostSeeds(at_most=TAKEN),
        arms=_arms(task, mechanism),
    )


def _further_claim(task: str, mechanism: str) -> Claim:
    what = f"Loss at length {FAR} with softmax minus that with {mechanism}"
    if task != TEXT:
        what = f"Normalized accuracy at length {FAR} with {mechanism} minus that with softmax"
    return Claim(
        name=f"{mechanism} carries further, {task}",
        statement=f"The same weights ({task}) do better at eight times the trained length with {mechanism} than "
        "with softmax.",
        source=FREE,
        outcome=f"{what}, {COUNTED}.",
        numbers=partial(gain, task, mechanism),
        criterion=NormalMean(above=0.0) if task == TEXT else MostSeeds(at_least=MATTERS),
        arms=_arms(task, mechanism),
    )


def _harm_claim(task: str) -> Claim:
    # The loss of a passkey of which all digits are right is next to nothing in some seeds, and no normal number.
    criterion: Criterion = NormalMean(above=0.0) if task == TEXT else MostSeeds(at_least=0.1)
    return Claim(
        name=f"distractors, {task}",
        statement=f"A wrong key that scores like the best one harms {SHARPEST} more than softmax, "
        f"with the same weights ({task}).",
        source=OWN,
        outcome=f"Change of the loss of the last target at length {TRAINED} by a wrong key of strength 1 (a double "
        f"of the best key), mean over layers; {SHARPEST} minus softmax, {COUNTED}, in nats.",
        numbers=partial(more_harm, task),
        criterion=criterion,
        arms=_arms(task, SHARPEST),
    )


CLAIMS = (
    _taken_claim(TEXT, re_weighted(3), FREE),
    _taken_claim(TEXT, lssar(15), OWN),
    _further_claim(TEXT, re_weighted(15)),
    _further_claim(PASSKEY, re_weighted(3)),
    _harm_claim(PASSKEY),
    _taken_claim(TEXT, re_weighted(15), FREE),
    _taken_claim(PASSKEY, re_weighted(15), FREE),
    _harm_claim(TEXT),
    Claim(
        name="a larger p costs more",
        statement="The larger the power of re-weighting without training, the more it costs at the trained length.",
        source=OWN,
        outcome=f"Loss of text at length {TRAINED} with {SHARPEST} minus that with {re_weighted(POWERS[0])}.",
        numbers=sharpness,
        criterion=NormalMean(above=0.0),
        arms=(arm(TEXT, re_weighted(POWERS[0])), arm(TEXT, SHARPEST)),
    ),
)
PRIMARY = tuple(claim.name for claim in CLAIMS[:5])


def finding(evidence: Evidence) -> str:
    """What the same weights do far away with softmax, and re-weighted."""
    shown = (TRAINED_WITH, re_weighted(DRAWN[-1]))
    words = []
    for task, column in MEASURE.items():
        own = evidence.rows.filter(pl.col("length") == FAR).with_columns(pl.col("arm").str.strip_prefix(f"{task}: "))
        words.append(f"{column.replace('_', ' ')} of {task}: {means_by(own, 'arm', shown, column)}")
    return f"The same weights at {FAR // TRAINED}x the length; {'; '.join(words)}."


def figure(evidence: Evidence) -> Figure:
    """For each task: LSSAR by length, re-weighted softmax by length, and what a wrong key does."""
    plain = {TRAINED_WITH: Look(INK, "X", ""), "LSSA": Look(GRAY, "o", (5, 1.5))}
    looks = plain | looks_of([f"p={p}" for p in DRAWN])
    measures = {
        TEXT: ("loss_more", "loss above softmax's (nats)"),
        PASSKEY: ("normalized_accuracy", "normalized accuracy"),
    }
    rows = with_differences(evidence.rows)
    with styled():
        chart, axes = panels(3 * len(TASKS))
        for column, task in enumerate(TASKS):
            lssa, again, wrong = axes[column :: len(TASKS)]
            measure, words = measures[task]
            for ax, named, family in ((lssa, lssar, "LSSA, LSSAR"), (again, re_weighted, "softmax, re-weighted")):
                curves = {TRAINED_WITH: TRAINED_WITH} | ({"LSSA": "LSSA"} if ax is lssa else {})
                curves |= {f"p={p}": named(p) for p in DRAWN}
                draw_by_length(
                    ax,
                    {name: rows.filter(pl.col("arm") == arm(task, one)) for name, one in curves.items()},
                    looks,
                    title=f"{task}: {family}",
                    measure=measure,
                    only_learned=False,
                    words=words,
                )
            _draw_harm(wrong, evidence, task, looks)
            same_height([lssa, again])
    return chart


def with_differences(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with ``loss_more``, the loss above that of softmax with the same seed, task and length."""
    softmax = rows.filter(pl.col("arm").str.ends_with(f": {TRAINED_WITH}"))
    keys = ["condition", "seed", "length"]
    joined = rows.join(softmax.select(*keys, "loss"), on=keys, how="left", suffix="_softmax", maintain_order="left")
    return joined.with_columns(loss_more=pl.col("loss") - pl.col("loss_softmax"))


def _draw_harm(ax: Axes, evidence: Evidence, task: str, looks: dict[str, Look]) -> None:
    """Change of the loss by strength of the wrong key, of softmax, LSSA and re-weighted softmax."""
    curves = {TRAINED_WITH: TRAINED_WITH, "LSSA": "LSSA"} | {f"p={p}": re_weighted(p) for p in DRAWN}
    for name, mechanism in curves.items():
        own = evidence.measured.filter(pl.col("arm") == arm(task, mechanism))
        by_seed = own.group_by("seed", "strength").agg(pl.col("loss_change").mean())
        draw_median(ax, by_seed, "strength", "loss_change", looks[name], name)
    ax.axvline(1, color=GRAY, linewidth=0.8, zorder=0)
    ax.set_xticks(STRENGTHS)
    ax.set_xlabel("strength of the wrong key")
    ax.set_ylabel("change of loss (nats)")
    ax.set_title(f"{task}: wrong key, re-weighted", fontsize=10)
    name_lines(ax)


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """What a wrong key draws and does, for each mechanism."""
    at = evidence.measured.filter(pl.col("strength") == 1.0)
    means = at.group_by("arm", maintain_order=True).agg(
        pl.col("loss_change").mean().alias("change of loss (nats)"),
        pl.col("accuracy").mean(),
        pl.col("best_share").mean().alias("weight on the best key"),
        pl.col("wrong_share").mean().alias("weight on the wrong key"),
    )
    return {f"A wrong key that is a double of the best one, length {TRAINED}, mean over layers and seeds": means}


study = Study(
    name="swap_attention",
    title="Attention exchanged after training",
    question=(
        "A decoder of two layers with RoPE learns text (bytes of source code), or to recite a passkey, with "
        f"softmax attention and sequences of up to {TRAINED} tokens. The same weights are then evaluated without "
        "further training with LSSA, with LSSAR, and with re-weighted softmax, for powers p from 1 to 15. Does a "
        "trained model work with another mechanism, and does it extrapolate farther with it? How much does a wrong "
        "key that scores like the best one harm each of them?"
    ),
    arms=arms,
    claims=CLAIMS,
    primary=PRIMARY,
    figure=figure,
    finding=finding,
    columns=("loss", "normalized_accuracy"),
    measure=measure,
    tables=tables,
)
