"""The runs: small dense decoders that learn recall on short sequences. Their attention is exchanged afterwards."""

from dataclasses import dataclass

from sparsity_lab.generators import InductionHeads
from sparsity_lab.kernels import AdaptiveSparse, Kernel, SlidingWindow, Softmax
from sparsity_lab.models import Decoder, NoPE, RoPE
from sparsity_lab.studies import Arm, Size, seeded
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

__all__ = ["CHOICES", "DENSE", "FIRST", "KEYS", "LENGTHS", "RANDOM", "SELECTED", "WINDOW", "arms", "share_of_pairs"]

LENGTHS = (2048, 4096)
"""Where mechanisms are compared."""

FIRST = SlidingWindow(width=16, sinks=0)
"""Of the first layer, in training and ever after: it has to see the token before."""

DENSE, SELECTED, RANDOM, WINDOW = "dense", "selected blocks", "random blocks", "window"
_SELECTED = AdaptiveSparse(block_size=64, n_sink=0, n_local=2, k_free=2, beta=(0.0, 1.0), learn_beta=False)
KEYS = (_SELECTED.n_local + _SELECTED.k_free) * _SELECTED.block_size
"""The most keys that a row sees."""
CHOICES: dict[str, Kernel] = {
    DENSE: Softmax(),
    # The own block, the one before, and the two with the best scores: bounds by the box around a block's keys.
    SELECTED: _SELECTED,
    # As many blocks, two of them drawn for each row. A kernel draws in training mode alone.
    RANDOM: _SELECTED.replace(k_free=0, k_rand=_SELECTED.k_free, epsilon=1.0),
    # As many keys, in the mean over the places in a row's own block.
    WINDOW: SlidingWindow(width=KEYS - (_SELECTED.block_size - 1) // 2, sinks=0),
}
"""What the second layer sees, by name; all with the same weights."""


def share_of_pairs(kernel: AdaptiveSparse, length: int) -> float:
    """Pairs of query and key that the best blocks have, over those of dense attention."""
    size, others = kernel.block_size, kernel.n_sink + kernel.n_local + kernel.k_free - 1
    kept = sum(min(row // size, others) * size + row % size + 1 for row in range(length))
    return kept / (length * (length + 1) / 2)


@dataclass(frozen=True)
class RecallScale:
    """One size of the study.

    Attributes:
        trained: shortest and longest trained length.
        lengths: evaluated ones, of dense attention.
        sequences: evaluated, and compared under each mechanism.
    """

    seeds: int
    d_model: int
    data_vocab: int
    trained: tuple[int, int]
    steps: int
    batch_size: int
    lengths: tuple[int, ...]
    sequences: int


SCALES: dict[Size, RecallScale] = {
    "smoke": RecallScale(
        seeds=1, d_model=8, data_vocab=4, trained=(8, 16), steps=2, batch_size=4, lengths=(16, 64), sequences=2
    ),
    "small": RecallScale(
        seeds=7,
        d_model=64,
        data_vocab=16,
        trained=(8, 32),
        steps=1000,
        batch_size=64,
        lengths=(16, 32, 128, 512, *LENGTHS),
        sequences=256,
    ),
    "full": RecallScale(
        seeds=8,
        d_model=256,
        data_vocab=256,
        trained=(8, 512),
        steps=20_000,
        batch_size=256,
        lengths=(32, 512, *LENGTHS),
        sequences=2048,
    ),
}


def arms(size: Size) -> dict[str, Arm]:
    scale = SCALES[size]
    low, high = scale.trained
    run = RunConfig(
        task=InductionHeads(data_vocab=scale.data_vocab),
        model=Decoder(
            num_layers=2,
            d_model=scale.d_model,
            num_heads=max(1, scale.d_model // 64),
            kernel=(FIRST, CHOICES[DENSE]),
            # The second layer finds a token by what it is, so that no distance is new to it.
            position=(RoPE(base=100.0), NoPE()),
        ),
        training=Training(
            steps=scale.steps,
            batch_size=scale.batch_size,
            learning_rate=4e-3,
            curriculum=UniformLength(low=low, high=high),
        ),
        evaluation=Evaluation(lengths=scale.lengths, sequences=scale.sequences),
    )
    return {DENSE: Arm(seeded(run), scale.seeds)}
