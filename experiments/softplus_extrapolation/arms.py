"""The runs: softmax and LSSAR on text with RoPE, with heads of 16, 32 and 64; and variants of these."""

from dataclasses import dataclass

from sparsity_lab.generators import TextBytes
from sparsity_lab.kernels import LSSA, LSSAR, Kernel, Softmax
from sparsity_lab.models import Decoder, NoPE, PoSE, RoPE
from sparsity_lab.studies import Arm, Size, seeded
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training

__all__ = ["FACTORS", "FAR", "HEADS", "KERNELS", "LSSAR_15", "SOFTMAX", "VARIANTS", "arm", "arms"]

HEADS = (16, 32, 64)
"""Sizes of a head, at the same width of the model."""
SOFTMAX, LSSAR_15 = "softmax", "LSSAR p=15"
KERNELS: dict[str, Kernel] = {SOFTMAX: Softmax(), LSSAR_15: LSSAR(p=15)}

VARIANTS = ("LSSA", "LSSAR p=3", "softmax, PoSE", "LSSAR p=15, PoSE", "softmax, NoPE", "LSSAR p=15, NoPE")
"""Exploratory, with heads of 32."""
LONGER = ("softmax, window 256", "LSSAR p=15, window 256")
"""Exploratory, with heads of 64."""

FACTORS = (1, 2, 4, 8)
"""Evaluated lengths, in trained ones."""
FAR = FACTORS[-1]


@dataclass(frozen=True)
class TextScale:
    """One size of the study.

    Attributes:
        window: trained length, in bytes.
        sequences: evaluated windows of the largest length.
    """

    seeds: int
    d_model: int
    num_layers: int
    window: int
    batch_size: int
    steps: int
    learning_rate: float
    sequences: int


SCALES: dict[Size, TextScale] = {
    "smoke": TextScale(1, 64, 1, 16, 2, 2, 3e-3, 4),
    # 4 million bytes a run.
    "small": TextScale(3, 128, 2, 128, 32, 1000, 6e-3, 48),
    "full": TextScale(5, 384, 6, 256, 64, 20_000, 1e-3, 512),
}


def arm(kernel: str, head: int) -> str:
    """Name of the arm of a kernel with heads of this size."""
    return f"{kernel}, heads of {head}"


def arms(size: Size) -> dict[str, Arm]:
    """All arms of a size; the exploratory ones have two seeds at most."""
    scale = SCALES[size]
    base = RunConfig(
        task=TextBytes(),
        model=Decoder(num_layers=scale.num_layers, d_model=scale.d_model, position=RoPE()),
        training=Training(
            steps=scale.steps,
            batch_size=scale.batch_size,
            learning_rate=scale.learning_rate,
            curriculum=FixedLength(length=scale.window),
        ),
        evaluation=Evaluation(lengths=tuple(factor * scale.window for factor in FACTORS), sequences=scale.sequences),
    )
    made = {}
    for head in HEADS:
        for name, kernel in KERNELS.items():
            made[arm(name, head)] = Arm(seeded(_with(base, kernel, head)), scale.seeds)
    few = min(scale.seeds, 2)
    pose = PoSE(target=FAR * scale.window)
    for name, run in {
        "LSSA": _with(base, LSSA(), 32),
        "LSSAR p=3": _with(base, LSSAR(p=3), 32),
        "softmax, PoSE": _with(base, Softmax(), 32, index_sampling=pose),
        "LSSAR p=15, PoSE": _with(base, LSSAR(p=15), 32, index_sampling=pose),
        "softmax, NoPE": _with(base, Softmax(), 32, position=NoPE()),
        "LSSAR p=15, NoPE": _with(base, LSSAR(p=15), 32, position=NoPE()),
    }.items():
        made[name] = Arm(seeded(run), few)
    for name, kernel in zip(LONGER, KERNELS.values(), strict=True):
        longer = _with(base, kernel, 64)
        made[name] = Arm(seeded(_on_windows(longer, 2 * scale.window)), few)
    return made


def _with(base: RunConfig, kernel: Kernel, head: int, **more: object) -> RunConfig:
    model = base.model
    assert isinstance(model, Decoder)
    return base.replace(model=model.replace(kernel=kernel, num_heads=model.d_model // head, **more))


def _on_windows(run: RunConfig, window: int) -> RunConfig:
    """The run on longer windows, and as many bytes."""
    batch_size = max(1, run.training.batch_size * run.evaluation.lengths[0] // window)
    training = run.training.replace(batch_size=batch_size, curriculum=FixedLength(length=window))
    lengths = tuple(factor * window for factor in FACTORS)
    sequences = max(1, run.evaluation.sequences * run.evaluation.lengths[0] // window)
    return run.replace(training=training, evaluation=run.evaluation.replace(lengths=lengths, sequences=sequences))
