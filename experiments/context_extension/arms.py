"""The runs: a parent with dense attention at a short context, and what is made of it at one four times as long."""

from dataclasses import dataclass

from sparsity_lab.generators import TextBytes
from sparsity_lab.kernels import Kernel, ShiftedSparse
from sparsity_lab.models import Adapter, Decoder, LoRA, lora_embed_norm
from sparsity_lab.studies import Arm, Size, seeded
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training, extended

__all__ = [
    "BOTH",
    "CALIBRATION_SEED",
    "DENSE",
    "INTERPOLATED",
    "LONGER",
    "LORA",
    "METHODS",
    "PARENT",
    "RATES",
    "SCALES",
    "SHIFTED",
    "TRIED",
    "arms",
    "with_rate",
]

PARENT, INTERPOLATED = "parent", "parent, interpolated"
DENSE, SHIFTED, LORA, BOTH = "dense", "shifted", "shifted, LoRA", "shifted, LoRA + both"
LONGER = "shifted, 8x"

_GROUPS = ShiftedSparse(ratio=0.25)
METHODS: dict[str, tuple[Kernel | None, Adapter | None]] = {
    DENSE: (None, None),
    SHIFTED: (_GROUPS, None),
    LORA: (_GROUPS, LoRA()),
    BOTH: (_GROUPS, lora_embed_norm()),
}
"""Mechanism (None is the parent's, dense) and adapter (None trains all weights)."""

RATES = {DENSE: 1e-3, SHIFTED: 1e-3, LORA: 1e-3, BOTH: 1e-3}
"""The learning rate of each method, fixed before any seed of a claim is run."""
CALIBRATION_SEED = 100
TRIED: dict[str, tuple[float, ...]] = {
    DENSE: (3e-4, 1e-3, 3e-3),
    SHIFTED: (1e-4, 3e-4, 1e-3),
    LORA: (1e-4, 3e-4, 1e-3),
    BOTH: (1e-4, 3e-4, 1e-3),
}
"""The rates that each method is tried at with the calibration seed."""


@dataclass(frozen=True)
class ExtensionScale:
    """One size of the study.

    Attributes:
        num_layers: the reach rule asks for 2 N / G - 1 = 7 with groups of a quarter.
        short: context of the parents, in bytes; that of the others is four times, and eight times, as long.
        parent_steps, parent_rate: of a parent.
        steps: of a fine-tuning.
        tokens: of a step.
        sequences: evaluated, of the longest context; shorter windows are cut from them.
        seeds: of each arm.
    """

    num_layers: int
    d_model: int
    num_heads: int
    short: int
    parent_steps: int
    parent_rate: float
    steps: int
    tokens: int
    sequences: int
    seeds: int

    @property
    def long(self) -> int:
        return 4 * self.short


SCALES: dict[Size, ExtensionScale] = {
    "smoke": ExtensionScale(1, 16, 2, 16, 2, 1e-3, 1, 128, 2, 1),
    "small": ExtensionScale(7, 64, 4, 256, 3000, 3e-3, 1000, 4096, 48, 7),
    "full": ExtensionScale(8, 256, 8, 256, 40_000, 1e-3, 1000, 65_536, 256, 7),
}


def with_rate(method: str, rate: float) -> str:
    """Name of the arm that tries a rate of a method with the calibration seed."""
    return f"{method}, rate {rate:g}"


def arms(size: Size) -> dict[str, Arm]:
    """Each method at its rate, what was there before, one run at the longer context, and the rates next to each."""
    scale = SCALES[size]
    parent = _parent(scale)
    untrained = extended(parent, scale.long, training=_training(scale, scale.long, scale.parent_rate, steps=0))
    found = {PARENT: Arm(seeded(parent), scale.seeds), INTERPOLATED: Arm(seeded(untrained), scale.seeds)}
    for method, rate in RATES.items():
        found[method] = Arm(seeded(_tuned(scale, method, rate, scale.long)), scale.seeds)
    found[LONGER] = Arm(seeded(_tuned(scale, SHIFTED, RATES[SHIFTED], 2 * scale.long)), min(2, scale.seeds))
    for method, rates in TRIED.items():
        for rate in rates:
            run = seeded(_tuned(scale, method, rate, scale.long))
            found[with_rate(method, rate)] = Arm(run, 1, CALIBRATION_SEED)
    return found


def _parent(scale: ExtensionScale) -> RunConfig:
    return RunConfig(
        task=TextBytes(),
        model=Decoder(num_layers=scale.num_layers, d_model=scale.d_model, num_heads=scale.num_heads),
        training=_training(scale, scale.short, scale.parent_rate, scale.parent_steps),
        evaluation=Evaluation(lengths=(scale.short, scale.long, 2 * scale.long), sequences=scale.sequences),
    )


def _tuned(scale: ExtensionScale, method: str, rate: float, length: int) -> RunConfig:
    kernel, adapter = METHODS[method]
    training = _training(scale, length, rate, scale.steps)
    return extended(_parent(scale), length, kernel=kernel, adapter=adapter, training=training)


def _training(scale: ExtensionScale, length: int, rate: float, steps: int) -> Training:
    return Training(
        steps=steps,
        batch_size=scale.tokens // length,
        curriculum=FixedLength(length=length),
        learning_rate=rate,
        checkpoint_every=200,
    )
