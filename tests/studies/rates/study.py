"""The study that the tests of result files use: two learning rates, and the sizes of the weights."""

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis import extrapolation_curve, paired_differences
from sparsity_lab.generators import Planted
from sparsity_lab.models import Decoder, NoPE
from sparsity_lab.studies import Arm, BoundedMean, Claim, Evidence, Outcomes, Study, means_listed, numbers_at, seeded
from sparsity_lab.training import Evaluation, Run, RunConfig, Training, UniformLength


def arms(size: str) -> dict[str, Arm]:
    base = RunConfig(
        task=Planted(k=1),
        model=Decoder(num_layers=1, num_heads=2, d_model=16, position=NoPE()),
        training=Training(steps=4, batch_size=4, curriculum=UniformLength(low=4, high=8)),
        evaluation=Evaluation(lengths=(4, 8, 16), sequences=16),
    )
    return {
        "one": Arm(seeded(base), 2),
        "two": Arm(seeded(base.replace(training=base.training.replace(learning_rate=0.1))), 2),
    }


def numbers(evidence: Evidence) -> Outcomes:
    one, two = (numbers_at(evidence.rows, arm, 16) for arm in ("one", "two"))
    detail = f"Means: {means_listed({'one': one, 'two': two}, 3)}."
    return Outcomes(paired_differences(one, two), "of accuracy", detail, {"one": one, "two": two})


def figure(evidence: Evidence) -> Figure:
    return extrapolation_curve(evidence.rows, by="arm", measure="accuracy", only_learned=False).figure()


def measure(run: Run) -> pl.DataFrame:
    """A column for each rate, so that each arm lacks one, and one that is null in the first arm."""
    rate = run.config.training.learning_rate
    size = float(sum(parameter.detach().abs().sum() for parameter in run.model().parameters()))
    return pl.DataFrame({f"size at {rate}": [size], "rate": [rate if rate == 0.1 else None]})


def tables(evidence: Evidence) -> dict[str, pl.DataFrame]:
    return {"Sizes of weights": evidence.measured.select("arm", "seed", "size at 0.1")}


study = Study(
    name="rates",
    title="Rates",
    question="Which?",
    arms=arms,
    claims=(
        Claim(
            name="rate",
            statement="A | higher rate is worse.",
            source="this lab",
            outcome="Accuracy of one minus two.",
            numbers=numbers,
            criterion=BoundedMean(above=0.0, matters=0.1),
            arms=("one", "two"),
        ),
    ),
    primary=("rate",),
    figure=figure,
    measure=measure,
    tables=tables,
)
