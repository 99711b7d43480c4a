"""The runs: kernels by task and position scheme, softmax windowed at test, activations with and without l1."""

from dataclasses import dataclass
from typing import Literal

from sparsity_lab.generators import Passkey, SparseMarkov, Task, TextBytes
from sparsity_lab.kernels import LSSA, LSSAR, CosineSoftmax, Kernel, NormalizedActivation, SlidingWindow, Softmax
from sparsity_lab.models import Decoder, NoPE, PositionScheme, RoPE
from sparsity_lab.settings import replace_at
from sparsity_lab.studies import Size, over_seeds
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training, UniformLength

__all__ = [
    "FACTORS",
    "FEW",
    "KERNELS",
    "MARKOV",
    "NOPE",
    "NORMS",
    "PASSKEY",
    "PHIS",
    "SCALES",
    "TEXT",
    "WINDOW",
    "activation",
    "arm",
    "arms",
]

TEXT, NOPE, MARKOV, PASSKEY = "text, RoPE", "text, NoPE", "SparseMarkov", "passkey"

KERNELS = ("softmax", "cosine", "cosine log-n", "LSSA", "LSSAR p=3", "LSSAR p=15")
FEW = ("softmax", "cosine log-n", "LSSAR p=15")
WINDOW = "softmax, window at test"

PHIS: tuple[Literal["exp", "softplus", "sigmoid", "relu"], ...] = ("exp", "softplus", "sigmoid", "relu")
NORMS = {"l1": (True, True), "divided by n": (False, True), "not divided": (False, False)}
"""``l1`` and ``mean`` of ``NormalizedActivation``."""

FACTORS = (1, 2, 4, 8, 16)
"""Evaluated lengths, in longest trained ones."""


@dataclass(frozen=True)
class Setup:
    """A task with a position scheme, and the kernels that are run on it.

    Attributes:
        varied: whether training mixes lengths from a quarter of the longest on.
    """

    task: Task
    position: PositionScheme
    kernels: tuple[str, ...]
    varied: bool = False


PARTS = {
    TEXT: Setup(TextBytes(), RoPE(), KERNELS),
    NOPE: Setup(TextBytes(), NoPE(), FEW),
    MARKOV: Setup(SparseMarkov(vocab_size=4), RoPE(), FEW),
    PASSKEY: Setup(Passkey(num_digits=2), RoPE(), KERNELS, varied=True),
}


@dataclass(frozen=True)
class SoftplusScale:
    """One size of the study.

    Attributes:
        trained: longest trained length.
        training: steps and learning rate of each part; activations are trained like text.
        sequences: evaluated of each length; of text, windows of the largest length.
    """

    seeds: int
    model: Decoder
    trained: int
    batch_size: int
    training: dict[str, tuple[int, float]]
    sequences: int


SCALES: dict[Size, SoftplusScale] = {
    "smoke": SoftplusScale(
        seeds=1,
        model=Decoder(num_layers=1, num_heads=1, d_model=8),
        trained=16,
        batch_size=2,
        training=dict.fromkeys(PARTS, (2, 1e-3)),
        sequences=2,
    ),
    "small": SoftplusScale(
        seeds=3,
        model=Decoder(),
        trained=32,
        batch_size=32,
        training={TEXT: (600, 1e-2), NOPE: (600, 6e-3), MARKOV: (800, 6e-3), PASSKEY: (400, 3e-3)},
        sequences=128,
    ),
    "full": SoftplusScale(
        seeds=5,
        model=Decoder(num_layers=6, num_heads=6, d_model=384),
        trained=256,
        batch_size=64,
        training={TEXT: (20_000, 1e-3), NOPE: (20_000, 1e-3), MARKOV: (5_000, 1e-3), PASSKEY: (10_000, 1e-3)},
        sequences=512,
    ),
}


def arm(part: str, kernel: str) -> str:
    """Name of the arm of a kernel."""
    return f"{part}: {kernel}"


def activation(phi: str, norm: str) -> str:
    """Name of the arm of an activation, on text with RoPE."""
    return arm("activation", f"{phi}, {norm}")


def arms(size: Size) -> dict[str, list[RunConfig]]:
    """All arms of a size; activations have one seed."""
    scale = SCALES[size]
    kernels = _kernels(scale)
    made = {}
    for name, part in PARTS.items():
        base = _base(scale, name, part)
        for kernel in part.kernels:
            run = replace_at(base, "model.kernel", kernels[kernel])
            made[arm(name, kernel)] = over_seeds(run, range(scale.seeds))
    window = SlidingWindow(width=scale.trained, sinks=0)
    made[arm(TEXT, WINDOW)] = [_untrained(run, window) for run in made[arm(TEXT, "softmax")]]
    base = _base(scale, TEXT, PARTS[TEXT])
    for phi in PHIS:
        for norm, (l1, mean) in NORMS.items():
            attention = NormalizedActivation(phi=phi, l1=l1, mean=mean)
            made[activation(phi, norm)] = over_seeds(replace_at(base, "model.kernel", attention), (0,))
    return made


def _kernels(scale: SoftplusScale) -> dict[str, Kernel]:
    return {
        "softmax": Softmax(),
        "cosine": CosineSoftmax(log_n=False, trained_length=scale.trained),
        "cosine log-n": CosineSoftmax(),
        "LSSA": LSSA(),
        "LSSAR p=3": LSSAR(p=3),
        "LSSAR p=15": LSSAR(p=15),
    }


def _base(scale: SoftplusScale, name: str, part: Setup) -> RunConfig:
    steps, rate = scale.training[name]
    longest = scale.trained
    return RunConfig(
        task=part.task,
        model=scale.model.replace(position=part.position),
        training=Training(
            steps=steps,
            batch_size=scale.batch_size,
            learning_rate=rate,
            curriculum=UniformLength(low=longest // 4, high=longest) if part.varied else FixedLength(length=longest),
        ),
        evaluation=Evaluation(
            lengths=tuple(factor * longest for factor in FACTORS),
            sequences=scale.sequences,
            conditions={name: part.task},
        ),
    )


def _untrained(parent: RunConfig, kernel: Kernel) -> RunConfig:
    """The parent's weights under another mechanism, as they are."""
    child = parent.replace(parent=parent, model=parent.model.replace(kernel=kernel))
    return replace_at(child, "training.steps", 0)
