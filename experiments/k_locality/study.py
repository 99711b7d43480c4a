"""``k_locality``: do fewer dependencies carry further, and does it help if they are near?"""

from typing import NamedTuple

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsity_lab.analysis import GRAY, INK, Look, looks_of, styled
from sparsity_lab.generators import Anchored, Law, Majority, Mixture, Planted, PowerLaw, Recent, Uniform, Window
from sparsity_lab.models import ALiBi, Decoder, NoPE, PositionScheme, RoPE
from sparsity_lab.settings import replace_at
from sparsity_lab.studies import (
    MATTERS,
    Arm,
    Claim,
    Evidence,
    MostSeeds,
    Outcomes,
    Size,
    Study,
    difference_claim,
    draw_by_length,
    draw_seeds,
    how_far,
    learned_words,
    means_at,
    means_listed,
    numbers_at,
    panels,
    same_height,
    seeded,
    slope_claim,
)
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

__all__ = ["study"]

KS = (1, 2, 3, 4, 6)
CONDITIONS = {f"k={k}": float(k) for k in KS}
TRAINED, TWICE, FOUR_TIMES = 24, 48, 96

LAWS: dict[str, Law] = {
    "recent": Recent(width=8),
    "anchored": Anchored(width=8),
    "uniform": Uniform(),
    "power law": PowerLaw(alpha=1.0),
}
"""Of positions drawn once for each seed: distances from the query, or for ``anchored`` places from the start."""

SCHEMES: dict[str, PositionScheme] = {"RoPE": RoPE(), "ALiBi": ALiBi(), "NoPE": NoPE()}
ANYWHERE, WINDOW = "token marking, anywhere", "token marking, within 8"

Arms = dict[str, Arm]


class Scale(NamedTuple):
    """Size of the runs of one kind of marking."""

    steps: int
    seeds: int
    rate: float = 2e-3

    def of(self, base: RunConfig) -> RunConfig:
        """The run trained so."""
        return base.replace(training=base.training.replace(steps=self.steps, learning_rate=self.rate))


SMOKE = {"token": Scale(2, 2), "cue": Scale(2, 2), "position": Scale(2, 2), "other schemes": Scale(2, 2)}
SMALL = {
    "token": Scale(800, 5, rate=1e-3),
    "cue": Scale(1200, 5),
    "position": Scale(600, 4, rate=1e-3),
    "other schemes": Scale(800, 3, rate=1e-3),
}
FULL = {
    "token": Scale(8000, 10, rate=1e-3),
    "cue": Scale(8000, 10),
    "position": Scale(6000, 10, rate=1e-3),
    "other schemes": Scale(8000, 10, rate=1e-3),
}


def cue_arm(k: int) -> str:
    return f"cue marking, k={k}"


def position_arm(scheme: str, law: str, k: int) -> str:
    return f"position marking, {scheme}, {law}, k={k}"


def arms(size: Size) -> Arms:
    base = RunConfig(
        task=Planted(),
        model=Decoder(position=RoPE()),
        training=Training(curriculum=UniformLength(low=8, high=TRAINED)),
        evaluation=Evaluation(lengths=(16, TRAINED, 32, TWICE, 96, 240), sequences=512),
    )
    if size == "smoke":
        tiny = Decoder(num_layers=1, num_heads=1, d_model=8, position=RoPE())
        base = base.replace(model=tiny, evaluation=Evaluation(lengths=(TRAINED, TWICE, FOUR_TIMES), sequences=8))
        base = base.replace(training=base.training.replace(batch_size=4))
    scale = {"smoke": SMOKE, "small": SMALL, "full": FULL}[size]
    return {
        **_token_arms(base, scale["token"]),
        **_cue_arms(base, scale["cue"]),
        **_position_arms(base, scale["position"], "RoPE"),
        **_position_arms(base, scale["other schemes"], "ALiBi", "NoPE"),
    }


def _token_arms(base: RunConfig, scale: Scale) -> Arms:
    """One model for all k, which are mixed in training; evaluated at each k."""
    made = {}
    for name, law in ((ANYWHERE, Uniform()), (WINDOW, Window(width=8))):
        tasks = {f"k={k}": Planted(k=k, locality=law) for k in KS}
        run = scale.of(base).replace(task=Mixture(tasks=tuple(tasks.values())))
        made[name] = Arm(seeded(replace_at(run, "evaluation.conditions", tasks)), scale.seeds)
    return made


def _cue_arms(base: RunConfig, scale: Scale) -> Arms:
    run = scale.of(base)
    return {cue_arm(k): Arm(seeded(run.replace(task=Planted(k=k, marking="cue"))), scale.seeds) for k in (1, 2)}


def _position_arms(base: RunConfig, scale: Scale, *schemes: str) -> Arms:
    """Majority of the tokens at places that are drawn once for each seed."""
    # The places reach up to 16 back, so shorter sequences have no room for them.
    run = replace_at(scale.of(base), "training.curriculum", UniformLength(low=16, high=TRAINED))
    made = {}
    for scheme in schemes:
        for law_name, law in LAWS.items():
            for k in (1, 3):
                task = Planted(k=k, locality=law, marking="position", rule=Majority(), reference_length=16)
                arm = run.replace(task=task, model=base.model.replace(position=SCHEMES[scheme]))
                made[position_arm(scheme, law_name, k)] = Arm(seeded(arm, "task.position_seed"), scale.seeds)
    return made


PAPER = "Golowich et al., arXiv 2502.16792"
LOCALITY = "this lab, after the locality condition of Golowich et al., arXiv 2502.16792"


LENGTHS = (TRAINED, TWICE)
KEPT = 0.9
"""A normalized accuracy that counts as whole, as it does for what is learned."""


FROM_THE_START = position_arm("NoPE", "anchored", 1)


def kept(evidence: Evidence) -> Outcomes:
    """What one token at a fixed place from the start is worth at four times the length, without positions."""
    found = numbers_at(evidence.rows, FROM_THE_START, FOUR_TIMES, "normalized_accuracy")
    detail = f"Mean {means_listed({'of all seeds': found})}; {learned_words(evidence.rows, FROM_THE_START)}."
    return Outcomes(found, "of accuracy", detail)


CLAIMS = (
    slope_claim(
        "k, marked tokens",
        "With RoPE, the drop to twice the trained length grows with the number of relevant tokens, both for tokens "
        "anywhere and for tokens within a window of 8.",
        {ANYWHERE: CONDITIONS, WINDOW: CONDITIONS},
        lengths=LENGTHS,
        source=PAPER,
    ),
    difference_claim(
        "k, fixed places",
        "With RoPE and fixed places, the majority of three tokens loses more to four times the trained length than "
        "one token does, on average over four locality laws.",
        [position_arm("RoPE", law, 3) for law in LAWS],
        [position_arm("RoPE", law, 1) for law in LAWS],
        lengths=(TRAINED, FOUR_TIMES),
        source=PAPER,
        column="drop",
        criterion=MostSeeds(at_least=MATTERS),
    ),
    difference_claim(
        "near the query",
        "With RoPE, more is lost for three fixed places at the start than for three near the query.",
        position_arm("RoPE", "anchored", 3),
        position_arm("RoPE", "recent", 3),
        lengths=LENGTHS,
        source=LOCALITY,
        column="drop",
    ),
    Claim(
        name="from the start",
        statement="Without positions, one token at a fixed place from the start is found at four times the trained "
        "length.",
        source="this lab",
        outcome=f"Normalized accuracy of {FROM_THE_START} at length {FOUR_TIMES}, whether it was learned or not.",
        numbers=kept,
        criterion=MostSeeds(at_least=KEPT),
        arms=(FROM_THE_START,),
    ),
    difference_claim(
        "k, cue",
        "With RoPE, two cued tokens drop more than one.",
        cue_arm(2),
        cue_arm(1),
        lengths=LENGTHS,
        source=PAPER,
        column="drop",
    ),
    difference_claim(
        "near each other",
        "With RoPE and token marking, tokens planted anywhere drop more than tokens within a window of 8.",
        ANYWHERE,
        WINDOW,
        lengths=LENGTHS,
        source=LOCALITY,
        column="drop",
    ),
)


def finding(evidence: Evidence) -> str:
    """How far marked tokens carry by k, for every second k, and one fixed place at the start by position scheme."""
    rows = evidence.rows
    by_k = {name: rows.filter(arm=ANYWHERE, condition=name) for name in list(CONDITIONS)[::2]}
    of_scheme = {name: rows.filter(arm=position_arm(name, "anchored", 1)) for name in SCHEMES}
    return f"Marked tokens: {how_far(by_k)}. One place at the start: {how_far(of_scheme)}."


def figure(evidence: Evidence) -> Figure:
    """Curves by k for token marking, drops by k, and for fixed positions curves by law and by scheme."""
    rows = evidence.rows
    looks = looks_of(list(CONDITIONS), list(LAWS), list(SCHEMES))
    with styled():
        chart, (*axes, at_start, drops) = panels(6)
        for ax, arm, words in ((axes[0], ANYWHERE, "normalized accuracy"), (axes[1], WINDOW, "")):
            own = rows.filter(pl.col("arm") == arm)
            by_k = {name: own.filter(pl.col("condition") == name) for name in CONDITIONS}
            draw_by_length(ax, by_k, looks, title=f"{arm.replace('marking', 'marks')}, RoPE", words=words)
        for ax, k, words in ((axes[2], 1, "normalized accuracy"), (axes[3], 3, "")):
            of_law = {law: rows.filter(pl.col("arm") == position_arm("RoPE", law, k)) for law in LAWS}
            draw_by_length(ax, of_law, looks, title=f"fixed positions, RoPE, k={k}", words=words)
        of_scheme = {name: rows.filter(pl.col("arm") == position_arm(name, "anchored", 1)) for name in SCHEMES}
        draw_by_length(at_start, of_scheme, looks, title="fixed position at the start, k=1")
        same_height([*axes, at_start])
        _draw_drops(drops, rows)
    return chart


def _draw_drops(ax: Axes, rows: pl.DataFrame) -> None:
    """Drop to twice the trained length by k, of each seed that learned, and the mean."""
    series: dict[str, dict[int, tuple[str, tuple[str, ...] | None]]] = {
        "anywhere": {k: (ANYWHERE, (f"k={k}",)) for k in KS},
        "within 8": {k: (WINDOW, (f"k={k}",)) for k in KS},
        "cue": {k: (cue_arm(k), None) for k in (1, 2)},
    }
    here = set(rows["arm"])
    looks = (Look(INK, "o", ""), Look(GRAY, "s", ""), Look(INK, "^", ""))
    for index, (style, (name, points)) in enumerate(zip(looks, series.items(), strict=True)):
        aside = 0.16 * (index - 1)
        for k, (arm, conditions) in points.items():
            if arm in here:
                draw_seeds(ax, k + aside, means_at(rows, arm, TWICE, "drop", conditions), style)
        ax.plot([], [], color=style.color, marker=style.marker, linestyle="", label=name)
    ax.set_title(f"drop from length {TRAINED} to {TWICE}", fontsize=10)
    ax.set_xticks(KS)
    ax.set_xlabel("k, relevant tokens")
    ax.set_ylabel("drop: seeds, and mean")
    ax.set_ylim(-0.1, 1.35)
    ax.legend(
        loc="upper left",
        ncols=3,
        fontsize=9,
        handlelength=0.6,
        columnspacing=0.8,
        handletextpad=0.4,
        borderaxespad=0.2,
    )


study = Study(
    name="k_locality",
    title="Sparsity and locality: what is lost beyond the trained length",
    question=(
        "A decoder of two layers is trained on lengths up to 24. How does the loss of accuracy beyond them depend on "
        "k, the number of relevant tokens, and on their places? Three ways of marking these tokens separate possible "
        "causes. Token marking (parity): the relevant tokens have their own alphabet, so finding them needs no "
        "position; one model learns all k. Cue marking (parity): a cue precedes each of them, so each needs a lookup "
        "in two steps. Position marking (majority): their places are fixed, as distances from the query or from the "
        "start, so the model must find a place. Normalized accuracy is 0 at chance and 1 at the Bayes optimum."
    ),
    arms=arms,
    claims=CLAIMS,
    primary=("k, marked tokens", "k, fixed places", "near the query", "from the start"),
    figure=figure,
    finding=finding,
    columns=("normalized_accuracy",),
)
