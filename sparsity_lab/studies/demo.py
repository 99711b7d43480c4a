"""``demo``: the main job in miniature."""

from sparsity_lab.generators import Anchored, Majority, Planted, Recent, Uniform, Window
from sparsity_lab.models import Decoder, RoPE
from sparsity_lab.studies.study import Size
from sparsity_lab.sweeps import Sweep, grid
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

__all__ = ["demo"]


def demo(size: Size = "small") -> Sweep:
    """The main job in miniature: how far do models trained on lengths up to 24 carry, by k and by locality?

    (a) Token marking, parity, k in {1, 2, 3}, planted anywhere or within a window of 8: position is not needed, so
    what fails with length is dilution or aggregation. (b) Position marking, majority of 3, near the query, anywhere
    within 16 places of it, or at the start: what fails is finding the place. Each seed has its own set of places.

    >>> len(demo("smoke").runs)
    9
    """
    steps, sequences, seeds = {"smoke": (6, 64, 1), "small": (400, 1024, 3), "full": (2000, 4096, 8)}[size]
    base = RunConfig(
        task=Planted(),
        model=Decoder(position=RoPE()),
        training=Training(steps=steps, curriculum=UniformLength(low=8, high=24)),
        evaluation=Evaluation(
            lengths=(24, 48, 96) if size == "smoke" else (16, 24, 48, 72, 96, 144, 192),
            sequences=sequences,
        ),
    )
    by_token = grid(base, {"task.k": [1, 2, 3], "task.locality": [Uniform(), Window(width=8)], "seed": range(seeds)})
    placed = base.replace(
        task=Planted(marking="position", rule=Majority(), reference_length=16),
        # The fixed set reaches up to 16 places back, so shorter sequences have no room for it.
        training=base.training.replace(curriculum=UniformLength(low=16, high=24)),
    )
    localities = [Recent(width=8), Uniform(), Anchored(width=8)]
    by_position = [
        run
        for seed in range(seeds)
        for run in grid(placed, {"task.position_seed": [seed], "task.locality": localities, "seed": [seed]})
    ]
    return Sweep(name="demo", runs=(*by_token, *by_position))
