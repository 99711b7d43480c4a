"""The runs: parents at a short context, and what is made of them at longer ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sparsity_lab.generators import Passkey, SparseMarkov, Task, TextBytes
from sparsity_lab.kernels import Kernel, ShiftedSparse
from sparsity_lab.models import Adapter, Decoder, LoRA, lora_embed_norm
from sparsity_lab.studies import Size
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training, extended

__all__ = ["FEW", "INTERPOLATED", "LONGER", "METHODS", "PLAIN", "TASKS", "arm", "arms"]

TASKS: dict[str, Task] = {
    "text": TextBytes(),
    "markov": SparseMarkov(vocab_size=4),
    "passkey": Passkey(num_digits=3),
}

SHIFTED = ShiftedSparse(ratio=0.25)
METHODS: dict[str, tuple[Kernel | None, Adapter | None]] = {
    "dense": (None, None),
    "shifted": (SHIFTED, None),
    "unshifted groups": (SHIFTED.replace(shift=False), None),
    "shifted, LoRA": (SHIFTED, LoRA()),
    "shifted, LoRA + norm": (SHIFTED, LoRA(also_train=("norm",))),
    "shifted, LoRA + embed": (SHIFTED, LoRA(also_train=("embedding",))),
    "shifted, LoRA + both": (SHIFTED, lora_embed_norm()),
}
"""Mechanism (None is the parent's, dense) and adapter (None trains all weights)."""

FEW = ("dense", "shifted", "shifted, LoRA + both")
LONGER = "text, longer"
PLAIN, INTERPOLATED = "no fine-tuning", "no fine-tuning, interpolated"


@dataclass(frozen=True)
class ExtensionScale:
    """One size of the study.

    Attributes:
        num_layers: the reach rule asks for 2 N / G - 1 = 7 with groups of a quarter.
        short, long, longer: context of the parents, and the two it is extended to.
        parents: steps and learning rate of a parent, by task.
        tuning_steps, tokens: of a fine-tuning, and its tokens a step.
        rates: learning rates of each method.
        sequences: for each evaluated length.
    """

    seeds: int
    num_layers: int
    d_model: int
    short: int
    long: int
    longer: int
    parents: Mapping[str, tuple[int, float]]
    tuning_steps: int
    tokens: int
    rates: tuple[float, ...]
    sequences: int

    def evaluation(self, longest: int) -> Evaluation:
        """Lengths are powers of two, from half the short context to the longest."""
        exponents = range(int(math.log2(self.short)) - 1, int(math.log2(longest)) + 1)
        return Evaluation(lengths=tuple(2**i for i in exponents), sequences=self.sequences)


SCALES: dict[Size, ExtensionScale] = {
    "smoke": ExtensionScale(
        seeds=1,
        num_layers=1,
        d_model=16,
        short=32,
        long=64,
        longer=128,
        parents=dict.fromkeys(TASKS, (2, 1e-3)),
        tuning_steps=2,
        tokens=128,
        rates=(1e-3,),
        sequences=4,
    ),
    "small": ExtensionScale(
        seeds=3,
        num_layers=7,
        d_model=64,
        short=64,
        long=256,
        longer=512,
        parents={"text": (700, 3e-3), "markov": (400, 2e-3), "passkey": (450, 2e-3)},
        tuning_steps=150,
        tokens=1024,
        rates=(3e-4, 1e-3, 3e-3),
        sequences=64,
    ),
    "full": ExtensionScale(
        seeds=5,
        num_layers=8,
        d_model=256,
        short=256,
        long=1024,
        longer=2048,
        parents={"text": (20_000, 1e-3), "markov": (5_000, 1e-3), "passkey": (10_000, 1e-3)},
        tuning_steps=1000,
        tokens=16_384,
        rates=(1e-4, 3e-4, 1e-3),
        sequences=256,
    ),
}


def arm(group: str, method: str, rate: float | None = None) -> str:
    """Name of an arm: of a task, or of the text at the longer context."""
    return f"{group}: {method}" + ("" if rate is None else f", rate {rate:g}")


def parent(task: str, scale: ExtensionScale, seed: int) -> RunConfig:
    """The run that is extended: dense attention at the short context."""
    steps, rate = scale.parents[task]
    return RunConfig(
        task=TASKS[task],
        model=Decoder(num_layers=scale.num_layers, d_model=scale.d_model),
        training=Training(
            steps=steps,
            batch_size=2 * scale.tokens // scale.short,
            curriculum=FixedLength(length=scale.short),
            learning_rate=rate,
            checkpoint_every=100,
        ),
        evaluation=scale.evaluation(scale.longer),
        data_seed=seed,
        model_seed=seed,
    )


def arms(size: Size) -> dict[str, list[RunConfig]]:
    """All arms of a size; the rates of a method are arms of their own."""
    scale = SCALES[size]
    parents = {task: [parent(task, scale, seed) for seed in range(scale.seeds)] for task in TASKS}
    found: dict[str, list[RunConfig]] = {}
    for task, runs in parents.items():
        found[arm(task, PLAIN)] = runs
        idle = _tuning(scale, scale.long, scale.rates[0]).replace(steps=0)
        found[arm(task, INTERPOLATED)] = [extended(run, scale.long, training=idle) for run in runs]
    for group, task, length, methods in [
        ("text", "text", scale.long, tuple(METHODS)),
        (LONGER, "text", scale.longer, FEW),
        ("markov", "markov", scale.long, FEW),
        ("passkey", "passkey", scale.long, FEW),
    ]:
        for method in methods:
            kernel, adapter = METHODS[method]
            for rate in scale.rates:
                tuning, evaluation = _tuning(scale, length, rate), scale.evaluation(scale.longer)
                found[arm(group, method, rate)] = [
                    extended(run, length, kernel=kernel, adapter=adapter, training=tuning, evaluation=evaluation)
                    for run in parents[task]
                ]
    return found


def _tuning(scale: ExtensionScale, length: int, rate: float) -> Training:
    """As published, but for the number of steps: a constant rate after a linear warm-up."""
    return Training(
        steps=scale.tuning_steps,
        batch_size=scale.tokens // length,
        learning_rate=rate,
        warmup=0.15,
        final_fraction=1.0,
        log_every=5,
    )
