"""``recall``: does a decoder of two layers solve associative recall, and with which attention?"""

import polars as pl
from matplotlib.figure import Figure

from sparsity_lab.analysis import looks_of, styled
from sparsity_lab.generators import AssociativeRecall, SuccessivePower
from sparsity_lab.kernels import Kernel, Linear, SlidingWindow, Softmax
from sparsity_lab.models import Decoder, NoPE, RoPE
from sparsity_lab.studies import (
    Arm,
    Claim,
    Evidence,
    MostSeeds,
    Outcomes,
    Size,
    Study,
    draw_by_length,
    means_by,
    means_listed,
    numbers_at,
    panels,
    seeded,
)
from sparsity_lab.training import Evaluation, GrowingLength, RunConfig, Training

__all__ = ["study"]

LENGTH, PAIRS, SOLVED = 64, 4, 0.99
SHORTEST = 4 * PAIRS  # no blanks between the queries
FIRST_SEED = 2  # the recipe was found with smaller ones
SOFTMAX = "softmax"
KERNELS: dict[str, Kernel] = {
    SOFTMAX: Softmax(),
    "linear": Linear(),
    "window of 16": SlidingWindow(width=16, sinks=0),
}
BESIDE = {"linear": "linear attention", "window of 16": "a window of 16 tokens"}


def arms(size: Size) -> dict[str, Arm]:
    steps, batch_size, vocab_size, seeds = {
        "smoke": (2, 2, 16, 2),
        "small": (4_000, 64, 8192, 3),
        "full": (20_000, 64, 8192, 3),
    }[size]
    task = AssociativeRecall(
        num_pairs=PAIRS,
        vocab_size=vocab_size,
        gaps=SuccessivePower(power_a=0.01),
        answers="hidden",
        filler="blank",
    )
    return {
        name: Arm(
            seeded(
                RunConfig(
                    task=task,
                    model=Decoder(
                        num_layers=2,
                        num_heads=4,
                        d_model=16 if size == "smoke" else 64,
                        d_ff=64,
                        kernel=kernel,
                        position=(RoPE(base=100.0, scale=0.4), NoPE()),
                        tied_head=True,
                        embedding_std=0.3,
                        residual_scale=0.1,
                    ),
                    training=Training(
                        steps=steps,
                        batch_size=batch_size,
                        learning_rate=1e-3,
                        curriculum=GrowingLength(low=SHORTEST, start=SHORTEST, high=LENGTH, growth=1.0),
                    ),
                    evaluation=Evaluation(lengths=(SHORTEST, 32, LENGTH), sequences=8 if size == "smoke" else 2048),
                )
            ),
            seeds,
            first=FIRST_SEED,
        )
        for name, kernel in KERNELS.items()
    }


def _accuracy(evidence: Evidence) -> Outcomes:
    numbers = {name: numbers_at(evidence.rows, name, LENGTH) for name in _begun(evidence)}
    return Outcomes(numbers[SOFTMAX], "of accuracy", f"Means: {means_listed(numbers)}.")


def _begun(evidence: Evidence) -> list[str]:
    """Arms that have runs, softmax first."""
    seen = set(evidence.rows["arm"])
    return [name for name in KERNELS if name in seen]


def _beside(name: str) -> Claim:
    def numbers(evidence: Evidence) -> Outcomes:
        return Outcomes(numbers_at(evidence.rows, name, LENGTH), "of accuracy", "")

    return Claim(
        name=f"solved by {name}",
        statement=f"With {BESIDE[name]} in both layers the same decoder solves it too.",
        source="this lab",
        outcome=f"Accuracy at {LENGTH} tokens.",
        numbers=numbers,
        criterion=MostSeeds(at_least=SOLVED),
        arms=(name,),
    )


CLAIMS = (
    Claim(
        name="solved",
        statement=f"A decoder of two layers with softmax attention recalls the values of {PAIRS} keys among "
        f"{LENGTH} tokens with an accuracy of at least {SOLVED:g}.",
        source="Arora et al., arXiv 2312.04927",
        outcome=f"Accuracy at {LENGTH} tokens.",
        numbers=_accuracy,
        criterion=MostSeeds(at_least=SOLVED),
        arms=(SOFTMAX,),
    ),
    *(_beside(name) for name in BESIDE),
)


def finding(evidence: Evidence) -> str:
    """Recall at the length that is asked for."""
    far = evidence.rows.filter(pl.col("length") == LENGTH)
    return f"Recall of {PAIRS} keys among {LENGTH} tokens: {means_by(far, 'arm', list(KERNELS), 'accuracy')}."


def figure(evidence: Evidence) -> Figure:
    """Normalized accuracy by length."""
    with styled():
        chart, (ax,) = panels(1, width=5.6, height=3.2)
        curves = {name: evidence.rows.filter(pl.col("arm") == name) for name in _begun(evidence)}
        draw_by_length(ax, curves, looks_of(list(curves)), only_learned=False)
    return chart


study = Study(
    name="recall",
    title="Associative recall, solved by two layers",
    question=(
        "A sequence begins with four keys and their values, drawn from 4,095 keys and 4,096 values. Then each key "
        "occurs once more among blanks, and the model has to give its value. Does a decoder of two layers learn "
        "that? Does one with linear attention, or with a window of 16 tokens in each layer? Training begins with "
        "sequences of 16 tokens, and the longest grow to 64."
    ),
    arms=arms,
    claims=CLAIMS,
    primary=("solved",),
    figure=figure,
    finding=finding,
    columns=("accuracy", "normalized_accuracy"),
)
