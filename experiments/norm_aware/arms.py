"""The arms: norm-aware attention with its norms scaled and as published, and plain linear attention."""

import math

from sparsity_lab.generators import TextBytes
from sparsity_lab.kernels import Kernel, Linear, NormAwareLinear
from sparsity_lab.models import Decoder
from sparsity_lab.studies import Arm, Size, seeded
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training

__all__ = ["AWARE", "NAMES", "PLAIN", "PUBLISHED", "TRAINED", "arms"]

AWARE, PUBLISHED = "norm-aware, scaled", "norm-aware, as published"
PLAIN = ("linear, elu", "linear, relu")
NAMES = (AWARE, *PLAIN, PUBLISHED)

TRAINED = 128


def arms(size: Size) -> dict[str, Arm]:
    steps, batch_size, sequences = {"smoke": (2, 2, 2), "small": (800, 32, 128), "full": (20_000, 64, 1024)}[size]
    num_layers, num_heads, d_model = {"smoke": (1, 2, 16), "small": (2, 2, 64), "full": (8, 6, 384)}[size]
    seeds = 2 if size == "smoke" else 7
    trained = 16 if size == "smoke" else TRAINED
    kernels: dict[str, Kernel] = {
        AWARE: NormAwareLinear(norm_scale=0.5 / math.sqrt(d_model // num_heads)),
        PLAIN[0]: Linear(),
        PLAIN[1]: Linear(feature="relu"),
        PUBLISHED: NormAwareLinear(),
    }
    base = RunConfig(
        task=TextBytes(),
        model=Decoder(num_layers=num_layers, num_heads=num_heads, d_model=d_model),
        training=Training(
            steps=steps,
            batch_size=batch_size,
            learning_rate=1e-3 if size == "full" else 6e-3,
            curriculum=FixedLength(length=trained),
        ),
        evaluation=Evaluation(lengths=(trained,), sequences=sequences),
    )
    return {
        name: Arm(seeded(base.replace(model=base.model.replace(kernel=kernel))), seeds)
        for name, kernel in kernels.items()
    }
