"""The arms: mechanisms of attention in one layer, on the same task."""

from sparsity_lab.generators import Mixture, Planted
from sparsity_lab.kernels import (
    LSSA,
    LSSAR,
    CosineSoftmax,
    EntropyInvariantSoftmax,
    Kernel,
    Linear,
    NormAwareLinear,
    Sigmoid,
    SlidingWindow,
    Softmax,
    SSMax,
)
from sparsity_lab.models import Decoder, NoPE
from sparsity_lab.studies import Arm, Size, seeded
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

__all__ = ["FAR", "FARTHEST", "KERNELS", "LENGTH_SCALED", "SHORTEST", "TRAINED", "K", "arms"]

SHORTEST, TRAINED, FAR, FARTHEST = 8, 24, 192, 384
K = 3
"""Planted tokens of the measured sequences; 1 to 3 are mixed in training, which makes the rule learnable."""
LENGTHS = (SHORTEST, 16, TRAINED, 48, 96, FAR, FARTHEST)

KERNELS: dict[str, Kernel] = {
    "softmax": Softmax(),
    # BOS, the tokens and the query itself: the scale is 1 at the longest trained length.
    "log-n softmax": EntropyInvariantSoftmax(trained_length=TRAINED + 2),
    "SSMax": SSMax(),
    "cosine log-n": CosineSoftmax(),
    "LSSA": LSSA(),
    "LSSAR p=3": LSSAR(p=3),
    "LSSAR p=15": LSSAR(p=15),
    "linear, elu": Linear(),
    "linear, norm-aware": NormAwareLinear(),
    "sigmoid": Sigmoid(),
    # Wide enough for all trained lengths.
    "window of 32": SlidingWindow(width=32, sinks=1),
}
LENGTH_SCALED = ("log-n softmax", "SSMax", "cosine log-n", "LSSA")
"""Kernels that scale scores with length, and do nothing else that sharpens."""


def arms(size: Size) -> dict[str, Arm]:
    steps, seeds, sequences = {"smoke": (2, 1, 8), "small": (800, 3, 512), "full": (8000, 5, 4096)}[size]
    d_model, heads, batch_size = (8, 2, 4) if size == "smoke" else (64, 4, 64)
    tasks = tuple(Planted(k=k) for k in range(1, K + 1))
    base = RunConfig(
        task=Mixture(tasks=tasks),
        model=Decoder(num_layers=1, d_model=d_model, num_heads=heads, position=NoPE()),
        training=Training(
            steps=steps,
            batch_size=batch_size,
            learning_rate=2e-3,
            curriculum=UniformLength(low=SHORTEST, high=TRAINED),
        ),
        evaluation=Evaluation(lengths=LENGTHS, sequences=sequences, conditions={f"k={K}": Planted(k=K)}),
    )
    if size == "smoke":
        base = base.replace(evaluation=base.evaluation.replace(lengths=(SHORTEST, TRAINED, FAR)))
    return {
        name: Arm(seeded(base.replace(model=base.model.replace(kernel=kernel))), seeds)
        for name, kernel in KERNELS.items()
    }
