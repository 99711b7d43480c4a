"""The arms: every registered mechanism in the same decoder, on the same task."""

from sparsity_lab.generators import Mixture, Planted
from sparsity_lab.kernels import LSSAR, Kernel, Reweighted, ShiftedSparse
from sparsity_lab.models import Decoder, NoPE
from sparsity_lab.settings import SettingError, kinds
from sparsity_lab.studies import Arm, Size, seeded
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

__all__ = ["CHOSEN", "FAR", "FARTHEST", "RATE", "RATES", "SHORTEST", "TRAINED", "K", "arms", "competitors"]

SHORTEST, TRAINED, FAR, FARTHEST = 8, 24, 96, 384
K = 3
"""Planted tokens of the measured sequences; 1 to 3 are mixed in training, which makes the rule learnable."""

FIRST_SEED = 3
"""Seeds 0 to 2 were those of a first run, which showed what had to be calibrated."""

RATE = 2e-3
RATES = {"LogNSoftmax": 1e-3}
"""Learning rates of kernels that need one of their own. The rule: the first of 2e-3, 1e-3, 5e-4 and 4e-3 at which
both calibration seeds, 100 and 101, learn: have a normalized accuracy of at least 0.9 at the longest trained length.
A kernel that learned from every seed of the first run has 2e-3."""

CHOSEN: dict[str, Kernel] = {
    "LSSAR": LSSAR(p=3),
    "Reweighted": Reweighted(p=1),
    "ShiftedSparse": ShiftedSparse(ratio=1.0),
}
"""Kernels whose defaults were learned at none of these rates; the notes of the page say what was tried."""


def competitors() -> dict[str, Kernel]:
    """Every registered mechanism by its kind: as ``CHOSEN``, as its defaults make it, or, without such, as its
    benchmarks do."""
    found = {kind: cls for kind, cls in kinds("kernel").items() if issubclass(cls, Kernel)}
    return {kind: CHOSEN.get(kind) or _competitor(cls) for kind, cls in found.items()}


def _competitor(cls: type[Kernel]) -> Kernel:
    try:
        return cls()
    except SettingError:
        return cls.benchmarked()[0]


def arms(size: Size) -> dict[str, Arm]:
    steps, seeds, sequences = {"smoke": (1, 1, 4), "small": (800, 3, 256), "full": (8000, 5, 4096)}[size]
    tasks = tuple(Planted(k=k) for k in range(1, K + 1))
    smoke = size == "smoke"
    base = RunConfig(
        task=Mixture(tasks=tasks),
        model=Decoder(d_model=8 if smoke else 64, num_heads=2 if smoke else 4, position=NoPE()),
        training=Training(
            steps=steps,
            batch_size=2 if smoke else 64,
            learning_rate=RATE,
            curriculum=UniformLength(low=SHORTEST, high=TRAINED),
        ),
        evaluation=Evaluation(
            lengths=(SHORTEST, TRAINED, FAR) if smoke else (SHORTEST, 16, TRAINED, 48, FAR, 192, FARTHEST),
            sequences=sequences,
            conditions={f"k={K}": tasks[-1]},
        ),
    )
    made = {}
    for kind, kernel in competitors().items():
        training = base.training.replace(learning_rate=RATES.get(kind, RATE))
        run = base.replace(model=base.model.replace(kernel=kernel), training=training)
        made[kind] = Arm(seeded(run), seeds, first=FIRST_SEED)
    return made
