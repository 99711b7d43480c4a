"""The runs: dense ones, whose attention is exchanged afterwards, and two that select from the first step on."""

from collections.abc import Mapping
from dataclasses import dataclass

from sparsity_lab.generators import AssociativeRecall, Passkey, Task, TextBytes, Uniform
from sparsity_lab.kernels import AdaptiveSparse, Softmax
from sparsity_lab.models import Decoder, RoPE
from sparsity_lab.studies import Size, over_seeds
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training, UniformLength

__all__ = [
    "BUDGETS",
    "MIDDLE",
    "NATIVE",
    "RECALL",
    "SELECTORS",
    "SHARES",
    "TASKS",
    "TEXT",
    "arms",
    "dense",
    "selector",
]

RECALL, PASSKEY, TEXT = "recall", "passkey", "text"
TASKS: dict[str, Task] = {
    RECALL: AssociativeRecall(num_pairs=4, vocab_size=16, gaps=Uniform()),
    PASSKEY: Passkey(num_digits=2, filler_vocab=8),
    TEXT: TextBytes(),
}

BUDGETS = (1, 2, 4, 8)
"""Blocks that a row selects beside the first block, its own and the one before."""
MIDDLE = 2
"""The budget that most claims are about."""
SHARES = (0.5, 0.8, 0.95)
"""Shares of the mass at which top-p stops."""


def selector(block_size: int, budget: int = MIDDLE) -> AdaptiveSparse:
    """The best ``budget`` blocks, with one sink and two local ones."""
    return AdaptiveSparse(block_size=block_size, n_sink=1, n_local=2, k_free=budget)


SELECTORS: dict[str, AdaptiveSparse] = {
    "top-k from the start": selector(8),
    "top-p from the start": selector(8).replace(mode="topp", p=0.8, k_min=1),
}
NATIVE = tuple(f"{TEXT}: {name}" for name in SELECTORS)


def dense(task: str) -> str:
    """The arm with dense attention."""
    return f"{task}: dense"


@dataclass(frozen=True)
class RetrofitScale:
    """One size of the study.

    Attributes:
        trained: shortest and longest trained length, by task.
        num_layers, batch_sizes, rates, steps: by task.
    """

    seeds: int
    num_layers: Mapping[str, int]
    d_model: int
    trained: Mapping[str, tuple[int, int]]
    batch_sizes: Mapping[str, int]
    rates: Mapping[str, float]
    steps: Mapping[str, int]
    sequences: int


RATES = {RECALL: 4e-3, PASSKEY: 4e-3, TEXT: 6e-3}
SCALES: dict[Size, RetrofitScale] = {
    "smoke": RetrofitScale(
        seeds=1,
        num_layers=dict.fromkeys(TASKS, 2),
        d_model=8,
        trained={RECALL: (16, 18), PASSKEY: (16, 18), TEXT: (32, 32)},
        batch_sizes=dict.fromkeys(TASKS, 2),
        rates=RATES,
        steps=dict.fromkeys(TASKS, 1),
        sequences=4,
    ),
    "small": RetrofitScale(
        seeds=3,
        num_layers={RECALL: 2, PASSKEY: 3, TEXT: 3},
        d_model=64,
        trained={RECALL: (16, 32), PASSKEY: (16, 40), TEXT: (128, 128)},
        batch_sizes={RECALL: 96, PASSKEY: 64, TEXT: 8},
        rates=RATES,
        steps={RECALL: 1200, PASSKEY: 250, TEXT: 300},
        sequences=256,
    ),
    "full": RetrofitScale(
        seeds=5,
        num_layers=dict.fromkeys(TASKS, 8),
        d_model=256,
        trained={RECALL: (16, 512), PASSKEY: (16, 512), TEXT: (1024, 1024)},
        batch_sizes=dict.fromkeys(TASKS, 64),
        rates=dict.fromkeys(TASKS, 1e-3),
        steps={RECALL: 10_000, PASSKEY: 10_000, TEXT: 20_000},
        sequences=1024,
    ),
}


def arms(size: Size) -> dict[str, list[RunConfig]]:
    scale = SCALES[size]
    found = {dense(task): over_seeds(_run(scale, task), range(scale.seeds)) for task in TASKS}
    text = _run(scale, TEXT)
    for arm, kernel in zip(NATIVE, SELECTORS.values(), strict=True):
        found[arm] = over_seeds(text.replace(model=text.model.replace(kernel=kernel)), range(scale.seeds))
    return found


def _run(scale: RetrofitScale, task: str) -> RunConfig:
    low, high = scale.trained[task]
    return RunConfig(
        task=TASKS[task],
        model=Decoder(
            num_layers=scale.num_layers[task],
            d_model=scale.d_model,
            num_heads=max(1, scale.d_model // 32),
            kernel=Softmax(),
            # A small base: heads learn to look at the token before in far fewer steps.
            position=RoPE(base=100.0),
        ),
        training=Training(
            steps=scale.steps[task],
            batch_size=scale.batch_sizes[task],
            learning_rate=scale.rates[task],
            curriculum=FixedLength(length=low) if low == high else UniformLength(low=low, high=high),
        ),
        evaluation=Evaluation(lengths=tuple(sorted({low, high})), sequences=scale.sequences),
    )
