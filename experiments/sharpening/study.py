"""``sharpening``: is the loss with length dilution, and do length-scaled and sharpened kernels restore it?"""

from dataclasses import replace

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparsity_lab.analysis import GRAY, INK, Look, by_replicate, dilution, length_axis, styled
from sparsity_lab.generators import Mixture, Planted
from sparsity_lab.kernels import LSSA, LSSAR, CosineSoftmax, EntropyInvariantSoftmax, Kernel, Softmax
from sparsity_lab.models import Decoder, NoPE, Oracle
from sparsity_lab.settings import SettingError
from sparsity_lab.studies import (
    ABOVE_ZERO,
    Claim,
    Decision,
    Evidence,
    Size,
    Study,
    decided,
    difference_claim,
    draw_by_length,
    legend_below,
    line_style,
    looks_of,
    over_seeds,
    panels,
    same_height,
)
from sparsity_lab.training import Evaluation, Run, RunConfig, Training, UniformLength

__all__ = ["study"]

TRAINED, FAR = 24, 96
# BOS, the tokens and the query itself: scales of log n to this base are 1 at the longest trained length.
SIZE = TRAINED + 2
KS = (2, 3, 4)
CONDITIONS = tuple(f"k={k}" for k in KS)

KERNELS: dict[str, Kernel] = {
    "softmax": Softmax(),
    "log-n softmax": EntropyInvariantSoftmax(trained_length=SIZE),
    "cosine log-n": CosineSoftmax(),
    "LSSA": LSSA(),
    "LSSAR p=3": LSSAR(p=3),
    "LSSAR p=15": LSSAR(p=15),
}
COUPLED = ("softmax", "log-n softmax")
SHARPENED = "softmax, sharpened at test"


def coupled_arm(kernel: str) -> str:
    return f"{kernel}, coupled"


def task_of(k: int, *, coupled: bool) -> Planted:
    return Planted(k=k, coupled=coupled)


def arms(size: Size) -> dict[str, list[RunConfig]]:
    steps, seeds, sequences = {"smoke": (2, 2, 8), "small": (800, 4, 512), "full": (8000, 10, 4096)}[size]
    d_model, heads = (8, 1) if size == "smoke" else (64, 4)
    base = RunConfig(
        task=Planted(),
        model=Decoder(num_layers=1, d_model=d_model, num_heads=heads, position=NoPE()),
        training=Training(
            steps=steps,
            batch_size=4 if size == "smoke" else 64,
            learning_rate=2e-3,
            curriculum=UniformLength(low=8, high=TRAINED),
        ),
        evaluation=Evaluation(lengths=(16, TRAINED, 48, FAR, 192), sequences=sequences),
    )
    made = {}
    for name, kernel in KERNELS.items():
        made[name] = over_seeds(_run(base, kernel, coupled=False), range(seeds))
    for name in KERNELS if size == "full" else COUPLED:
        made[coupled_arm(name)] = over_seeds(_run(base, KERNELS[name], coupled=True), range(seeds))
    return made


def _run(base: RunConfig, kernel: Kernel, *, coupled: bool) -> RunConfig:
    """One model for all k. k = 1 is in the mixture because it is where learning begins, and judged nowhere."""
    tasks = [task_of(k, coupled=coupled) for k in (1, *KS)]
    return base.replace(
        task=Mixture(tasks=tuple(tasks)),
        model=base.model.replace(kernel=kernel, coupling=Oracle(max_id=KS[-1] + 1) if coupled else None),
        evaluation=base.evaluation.replace(conditions=dict(zip(CONDITIONS, tasks[1:], strict=True))),
    )


def measure(run: Run) -> pl.DataFrame:
    """Mass on the relevant tokens at k=3 (``what`` is "mass"), and for plain softmax the accuracy of the same weights
    under a test-time scale that leaves the trained length alone (``what`` is "sharpened")."""
    model = run.config.model
    if not isinstance(model, Decoder):
        raise SettingError("run.model", "a Decoder", model)
    lengths = run.config.evaluation.lengths
    sequences = min(128, run.config.evaluation.sequences)
    seed = run.config.evaluation.seed
    mass = dilution(
        run,
        task_of(3, coupled=model.coupling is not None),
        lengths,
        reference=TRAINED,
        sequences=sequences,
        seed=seed,
    ).summary()
    kept = ("length", "head", "mass", "predicted_low", "predicted_high", "reference_mass", "diluted", "misplaced")
    found = mass.select(pl.lit("mass").alias("what"), *kept)
    if model.kernel != Softmax():
        return found
    again = (
        run.with_kernel(KERNELS["log-n softmax"])
        .evaluate()
        .join(run.summary.select("condition", "learned"), on="condition", how="left")
    )
    columns = ("condition", "length", "trained", "normalized_accuracy", "learned")
    return pl.concat([found, again.select(pl.lit("sharpened").alias("what"), *columns)], how="diagonal")


def with_sharpened(evidence: Evidence) -> Evidence:
    """The evidence, with softmax sharpened at test as one more arm."""
    again = evidence.measured.filter((pl.col("what") == "sharpened") & (pl.col("arm") == "softmax"))
    columns = ("arm", "seed", "condition", "length", "trained", "normalized_accuracy", "learned")
    rows = [evidence.rows.select(columns), again.with_columns(arm=pl.lit(SHARPENED)).select(columns)]
    return replace(evidence, rows=pl.concat(rows, how="vertical_relaxed"))


def decide_dilution(evidence: Evidence) -> Decision:
    """Whether more of the lost mass is diluted than misplaced."""
    rows = evidence.measured.filter(
        (pl.col("what") == "mass") & (pl.col("arm") == "softmax") & (pl.col("length") == FAR)
    ).sort("seed")
    learned = evidence.rows.filter((pl.col("arm") == "softmax") & (pl.col("condition") == "k=3") & pl.col("learned"))
    rows = rows.filter(pl.col("seed").is_in(learned["seed"].unique().to_list()))
    lost = rows.with_columns(more=pl.col("diluted") - pl.col("misplaced").abs())
    if rows.is_empty():
        return decided({}, "of attention mass", "no run learned k=3.")
    names = ("reference_mass", "mass", "diluted", "misplaced")
    means = rows.select(pl.col(names).mean()).row(0, named=True)
    detail = (
        f"mass on the three relevant tokens {means['reference_mass']:.2f} at length {TRAINED}, {means['mass']:.2f} "
        f"at {FAR}; of the difference {means['diluted']:.2f} is dilution, {means['misplaced']:.2f} a changed gap."
    )
    return decided(by_replicate(lost, "more"), "of attention mass", detail)


PAPER = "Gao, Spratling, Gionfrida, arXiv 2501.13428"


def _gain_claim(name: str, statement: str, arm: str, minus: str, source: str = "this lab") -> Claim:
    claim = difference_claim(
        name, statement, arm, minus, lengths=(TRAINED, FAR), source=source, conditions=CONDITIONS
    )
    return replace(claim, decide=lambda evidence: claim.decide(with_sharpened(evidence)))


CLAIMS = (
    Claim(
        name="dilution, measured",
        statement="What softmax attention loses on the relevant tokens with length is dilution.",
        source="this lab",
        rule=(
            f"In the head with the largest mass on the three relevant tokens (k=3) at length {TRAINED}: the mass "
            f"that by length {FAR} is lost to the background at an unchanged gap of scores, minus the absolute mass "
            f"that a changed gap accounts for. {ABOVE_ZERO}"
        ),
        decide=decide_dilution,
    ),
    _gain_claim(
        "dilution, undone",
        "The same softmax weights do better far away if scores are scaled by log n at test alone.",
        SHARPENED,
        "softmax",
    ),
    _gain_claim("log-n", "Log-n softmax carries further than softmax.", "log-n softmax", "softmax"),
    _gain_claim("cosine log-n", "Cosine log-n softmax carries further than softmax.", "cosine log-n", "softmax"),
    _gain_claim("LSSA", "LSSA, without re-weighting, carries further than softmax.", "LSSA", "softmax", PAPER),
    _gain_claim("LSSAR 3", "LSSAR with p=3 carries further than softmax.", "LSSAR p=3", "softmax"),
    _gain_claim("LSSAR 15", "LSSAR with p=15 carries further than softmax.", "LSSAR p=15", "softmax", PAPER),
    _gain_claim(
        "beside coupling",
        "With coupled position IDs, log-n softmax still carries further than softmax.",
        coupled_arm("log-n softmax"),
        coupled_arm("softmax"),
    ),
    _gain_claim(
        "coupling alone",
        "Coupled position IDs alone carry softmax further, though tokens are marked anyway.",
        coupled_arm("softmax"),
        "softmax",
    ),
)


def figure(evidence: Evidence) -> Figure:
    """Accuracy by kernel for each k, then mass on the relevant tokens, and coupling."""
    rows = with_sharpened(evidence).rows
    looks = looks_of(list(KERNELS)) | {SHARPENED: Look(INK, "X", (1.5, 1.2))}
    with styled():
        chart, axes = panels(6)
        for ax, condition in zip(axes, CONDITIONS, strict=False):
            own = rows.filter(pl.col("condition") == condition)
            curves = {name: own.filter(pl.col("arm") == name) for name in looks}
            draw_by_length(ax, curves, looks, title=condition, words="normalized accuracy" if ax is axes[0] else "")
        softmax, scaled = looks["softmax"], looks["log-n softmax"]
        for ax, name, style in ((axes[3], "softmax", softmax), (axes[4], "log-n softmax", scaled)):
            own = evidence.measured.filter((pl.col("arm") == name) & (pl.col("what") == "mass"))
            _draw_mass(ax, own, style, f"mass on relevant tokens,\n{name}")
        axes[3].set_ylabel("share of attention (k=3)")
        coupled = {
            name.replace(", coupled", " + IDs"): rows.filter((pl.col("arm") == name) & (pl.col("condition") == "k=3"))
            for name in map(coupled_arm, COUPLED)
        }
        its_looks = dict(zip(coupled, (looks[name] for name in COUPLED), strict=True))
        draw_by_length(axes[5], coupled, its_looks, title="k=3, with coupled IDs", words="")
        same_height([*axes[:3], axes[5]])
        mass = [
            (Line2D([], [], **line_style(softmax)), "mass: mean of the head that has most"),
            (Patch(color=GRAY, alpha=0.45), "predicted by dilution from length 24"),
        ]
        legend_below(chart, looks, more=mass)
    return chart


def _draw_mass(ax: Axes, rows: pl.DataFrame, style: Look, title: str) -> None:
    """Measured mass by seed, over what dilution at an unchanged gap predicts."""
    for part in rows.partition_by("seed"):
        by_length = part.sort("length")
        ax.fill_between(
            by_length["length"], by_length["predicted_low"], by_length["predicted_high"], color=GRAY, alpha=0.3
        )
        ax.plot(by_length["length"], by_length["mass"], **line_style(style))
    length_axis(ax, rows["length"], None, "length (log scale)")
    ax.axvspan(ax.get_xlim()[0], TRAINED, color=GRAY, alpha=0.18, linewidth=0, zorder=0)
    ax.set_ylim(-0.03, 1.03)
    ax.set_title(title, fontsize=10)


study = Study(
    name="sharpening",
    title="Dilution, and what scores that sharpen with length do about it",
    question=(
        "One layer without positions learns the parity of k marked tokens, k mixed, on lengths up to 24. Finding "
        "them needs no position, so what length can do to attention is dilution: the mass on k tokens whose "
        "scores lead by a constant gap falls as background is added. Is that what is lost? Then scores that grow "
        "with log n give it back, in training or at test alone. LSSA has softplus in place of the exponential; "
        "LSSAR then re-weights what exceeds the uniform share by a power p. Coupled position IDs (the j-th "
        "relevant token has ID j) are the other remedy; do the two add up?"
    ),
    arms=arms,
    claims=CLAIMS,
    figure=figure,
    columns=("normalized_accuracy",),
    measure=measure,
)
