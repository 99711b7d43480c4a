"""``predict_reach``: do sequences of the trained length predict failure at long lengths?"""

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis import (
    INK,
    PALETTE,
    Look,
    Replicates,
    by_replicate,
    draw_median,
    length_axis,
    name_lines,
    predict_reach,
    styled,
)
from sparsity_lab.generators import Planted
from sparsity_lab.kernels import LSSA, LSSAR, Kernel, Softmax
from sparsity_lab.models import Decoder, NoPE, PositionScheme, RoPE
from sparsity_lab.studies import (
    Arm,
    Claim,
    Evidence,
    MostSeeds,
    Outcomes,
    Size,
    Study,
    levels,
    means_by,
    panels,
    same_height,
    seeded,
)
from sparsity_lab.training import Evaluation, Run, RunConfig, Training, UniformLength

__all__ = ["study"]

TRAINED, HELD = 16, 0.9
LONG = (32, 64, 128, 256, 512)
FIRST_SEED = 10
"""The cells were changed after a look at seeds 0 to 6."""

# Kernel, position scheme, layers and k.
CELLS: dict[str, tuple[Kernel, PositionScheme, int, int]] = {
    "softmax, k=3": (Softmax(), NoPE(), 1, 3),
    "softmax, k=4": (Softmax(), NoPE(), 1, 4),
    "softmax, two layers, k=3": (Softmax(), NoPE(), 2, 3),
    "LSSA, k=4": (LSSA(), NoPE(), 1, 4),
    "LSSAR(3), k=3": (LSSAR(p=3.0), NoPE(), 1, 3),
    "softmax, RoPE, k=3": (Softmax(), RoPE(), 1, 3),
}
WITHOUT_POSITIONS = tuple(CELLS)[:-1]
ROPE = tuple(CELLS)[-1]
DILUTED = WITHOUT_POSITIONS[:3]


def arms(size: Size) -> dict[str, Arm]:
    steps, batch_size, sequences = {"smoke": (2, 2, 8), "small": (600, 64, 1024), "full": (20_000, 64, 8192)}[size]
    d_model, heads = (8, 1) if size == "smoke" else (64, 4)
    return {
        name: Arm(
            seeded(
                RunConfig(
                    task=Planted(k=k),
                    model=Decoder(
                        num_layers=layers, num_heads=heads, d_model=d_model, kernel=kernel, position=position
                    ),
                    training=Training(
                        steps=steps * 5 // 2 if isinstance(kernel, LSSAR) else steps,
                        batch_size=batch_size,
                        learning_rate=3e-3,
                        curriculum=UniformLength(low=8, high=TRAINED),
                    ),
                    evaluation=Evaluation(lengths=(8, TRAINED, *LONG), sequences=sequences),
                )
            ),
            2 if size == "smoke" else 7,
            first=FIRST_SEED,
        )
        for name, (kernel, position, layers, k) in CELLS.items()
    }


def measure(run: Run) -> pl.DataFrame:
    """``predicted`` and ``measured`` normalized accuracy at each long length; nothing of a run that never learned."""
    if not any(run.summary["learned"].to_list()):
        return pl.DataFrame(schema={"length": pl.Int64, "predicted": pl.Float64, "measured": pl.Float64})
    found = predict_reach(run, sequences=run.config.evaluation.sequences, seed=run.config.evaluation.seed)
    return found.select("length", "predicted", "measured")


def of_seeds(evidence: Evidence, arms: tuple[str, ...], number: pl.Expr, failed: float) -> Replicates:
    """A number of each seed, the mean over arms; an arm that never learned gives ``failed``. Seeds without a run of
    each arm give none."""
    rows = evidence.rows.filter(pl.col("arm").is_in(arms))
    begun = rows.group_by("seed").agg(pl.col("arm").n_unique()).filter(pl.col("arm") == len(arms))["seed"].to_list()
    every = pl.DataFrame({"seed": begun}, schema={"seed": pl.Int64}).join(pl.DataFrame({"arm": arms}), how="cross")
    values = evidence.measured.filter(pl.col("arm").is_in(arms)).group_by("arm", "seed").agg(number.alias("number"))
    found = every.join(values, on=["arm", "seed"], how="left").with_columns(pl.col("number").fill_null(failed))
    return by_replicate(found.group_by("seed").agg(pl.col("number").mean()).sort("seed"), "number")


ERROR = (pl.col("predicted") - pl.col("measured")).abs().mean()
NAIVE = (1.0 - pl.col("measured")).abs().mean()
RESIDUE = (pl.col("predicted") - pl.col("measured")).mean()


def _reach(of: str) -> pl.Expr:
    """How many of the long lengths are held, before the first that is not."""
    return (pl.col(of).sort_by("length") >= HELD).cast(pl.Int64).cum_prod().sum()


def _means(evidence: Evidence, arms: tuple[str, ...], number: pl.Expr) -> str:
    rows = evidence.measured.filter(pl.col("arm").is_in(arms)).group_by("arm", "seed").agg(number.alias("number"))
    means = dict(rows.group_by("arm").agg(pl.col("number").mean()).iter_rows())
    return "; ".join(f"{arm} {means[arm]:.3f}" for arm in arms if arm in means)


def _error(evidence: Evidence) -> Outcomes:
    detail = f"Mean errors: {_means(evidence, WITHOUT_POSITIONS, ERROR)}."
    return Outcomes(of_seeds(evidence, WITHOUT_POSITIONS, ERROR, 1.0), "of accuracy", detail)


def _within_a_step(evidence: Evidence) -> Outcomes:
    close = ((_reach("predicted") - _reach("measured")).abs() <= 1).cast(pl.Float64)
    detail = f"Shares of the seeds: {_means(evidence, WITHOUT_POSITIONS, close)}."
    return Outcomes(of_seeds(evidence, WITHOUT_POSITIONS, close, 0.0), "of the models", detail)


def _better_than_naive(evidence: Evidence) -> Outcomes:
    detail = f"Mean gains: {_means(evidence, DILUTED, NAIVE - ERROR)}."
    return Outcomes(of_seeds(evidence, DILUTED, NAIVE - ERROR, 0.0), "of accuracy", detail)


def _residue(evidence: Evidence) -> Outcomes:
    shown = f"{_means(evidence, (*WITHOUT_POSITIONS, ROPE), RESIDUE)}"
    return Outcomes(of_seeds(evidence, (ROPE,), RESIDUE, 0.0), "of accuracy", f"Mean residues: {shown}.")


LENGTHS = f"lengths from {LONG[0]} to {LONG[-1]}"
CLAIMS = (
    Claim(
        name="error",
        statement="Without positions, sequences of the trained length predict accuracy at up to 32 times that "
        "length, with a mean error of at most .05 over five models and five lengths.",
        source="this lab",
        outcome=f"Predicted minus measured normalized accuracy, without its sign, mean over {LENGTHS} and the five "
        "models without positions; 1 for a model that never learned.",
        numbers=_error,
        criterion=MostSeeds(at_most=0.05),
        arms=WITHOUT_POSITIONS,
    ),
    Claim(
        name="reach",
        statement="The length up to which each of these models holds is predicted to within one step of the lengths "
        "32, 64, .., 512. A model that holds to 512 or more counts as 512.",
        source="this lab",
        outcome=f"The share of the five models for which the number of {LENGTHS} that are held at {HELD:g} before "
        "the first that is not is foretold to within one; 0 for a model that never learned.",
        numbers=_within_a_step,
        criterion=MostSeeds(at_least=1.0),
        arms=WITHOUT_POSITIONS,
    ),
    Claim(
        name="better_than_carrying_on",
        statement="For softmax the prediction is at least .1 closer than the assumption that nothing is lost.",
        source="this lab",
        outcome=f"One minus the measured accuracy, without its sign, mean over {LENGTHS}, minus the forecast's "
        "error; mean over the three softmax models without positions; 0 for a model that never learned.",
        numbers=_better_than_naive,
        criterion=MostSeeds(at_least=0.1),
        arms=DILUTED,
    ),
    Claim(
        name="residue_of_rope",
        statement="With RoPE the prediction is too high by at least .1: more is lost than the additional keys "
        "explain.",
        source="this lab",
        outcome=f"Predicted minus measured normalized accuracy, mean over {LENGTHS}; 0 for a model that never "
        "learned.",
        numbers=_residue,
        criterion=MostSeeds(at_least=0.1),
        arms=(ROPE,),
    ),
)


def finding(evidence: Evidence) -> str:
    """How far forecasts were off, with and without positions."""
    off = (pl.col("predicted") - pl.col("measured")).abs()
    with_rope = pl.when(pl.col("arm") == ROPE).then(pl.lit("with RoPE")).otherwise(pl.lit("without positions"))
    rows = evidence.measured.select(off.alias("off"), with_rope.alias("how"))
    words = means_by(rows, "how", ["without positions", "with RoPE"], "off", 3)
    return f"Accuracy at up to {LONG[-1] // TRAINED}x, predicted from the trained length; mean error {words}."


def figure(evidence: Evidence) -> Figure:
    """Predicted and measured accuracy by length: a panel for each model with a measure."""
    shown = [name for name in CELLS if name in set(evidence.measured["arm"])] or [*CELLS]
    looks = {"measured": Look(INK, "o", ""), "predicted": Look(PALETTE[1], "", (4, 2))}
    with styled():
        chart, axes = panels(len(shown))
        for place, (ax, name) in enumerate(zip(axes, shown, strict=True)):
            levels(ax)
            for measure, style in looks.items():
                own = evidence.measured.filter(pl.col("arm") == name)
                draw_median(ax, own, "length", measure, style, measure)
            length_axis(ax, LONG, None, "length (log scale)")
            name_lines(ax)
            ax.set_title(name, fontsize=10)
            ax.set_ylabel("" if place % 2 else "normalized accuracy")
        same_height(axes)
    return chart


study = Study(
    name="predict_reach",
    title="Failure at long lengths, predicted from sequences of the trained length",
    question=(
        "A decoder learns the parity of k marked tokens among 8 to 16. Then it reads sequences of length 16 in which "
        "every background key counts several times, so that together they count as much as the background of a "
        "longer sequence. Is its accuracy then the same as at the longer length, which it has never seen? If "
        "positions play no part, it should be. The rest measures the effect of positions."
    ),
    arms=arms,
    claims=CLAIMS,
    primary=tuple(claim.name for claim in CLAIMS),
    figure=figure,
    finding=finding,
    columns=("normalized_accuracy",),
    measure=measure,
)
