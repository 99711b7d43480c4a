"""Runs that take a fraction of a second, and tasks and models whose numbers can be worked out by hand."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsity_lab.generators import IGNORE, Batch, NotComputable, Planted, Step, Stream, Task, Truth, Vocabulary
from sparsity_lab.models import Decoder, ModelOutput, NoPE
from sparsity_lab.settings import register
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

SMALL_MODEL = Decoder(num_layers=1, num_heads=2, d_model=16, position=NoPE())


def small_run(**changes: object) -> RunConfig:
    """A run of twelve small steps."""
    config = RunConfig(
        task=Planted(k=1),
        model=SMALL_MODEL,
        training=Training(steps=12, batch_size=4, log_every=3, curriculum=UniformLength(low=4, high=8)),
        evaluation=Evaluation(lengths=(4, 8, 16), sequences=16),
    )
    return config.replace(**changes)


_listening: list[tuple[Path, Counter[str]]] = []


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Counter[str]]:
    """How often each file below a folder is opened for reading, by its path there; by whom, does not matter."""
    if not hasattr(opened, "hooked"):
        sys.addaudithook(_hear)  # for good
        opened.hooked = True  # type: ignore[attr-defined]
    files = Counter[str]()
    _listening.append((folder, files))
    try:
        yield files
    finally:
        _listening.pop()


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    # An ``open`` with an opener is two events, of which that of ``os.open`` has no mode.
    if event == "open" and _listening and arguments[1] == "r":
        file = Path(str(arguments[0]))
        for folder, files in _listening:
            if file.is_relative_to(folder):
                files[str(file.relative_to(folder))] += 1


@register
class Alternating(Task):
    """Two targets a sequence, 0 then 1 for even sequences and 1 then 0 for odd ones; nothing is random."""

    extra_positions: ClassVar[int] = 0
    optimum_known: bool = True

    @classmethod
    def examples(cls) -> tuple["Alternating", ...]:
        return (cls(),)

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(names=("0", "1"), roles=("data", "data"))

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return (4,)

    def check_length(self, length: int) -> None:
        """Any length."""

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        tokens = torch.zeros(count, length, dtype=torch.int64)
        targets = torch.full((count, length), IGNORE, dtype=torch.int64)
        odd = torch.arange(start, start + count) % 2
        targets[:, 0], targets[:, 1] = odd, 1 - odd
        return Batch(tokens, targets)

    def truth(self, length: int) -> Truth:
        if not self.optimum_known:
            return Truth(chance_accuracy=0.5)
        return Truth(chance_accuracy=0.5, bayes_accuracy=0.9, chance_loss=0.7, bayes_loss=0.1)

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...] | None:
        return None

    def log_posterior(self, batch: Batch) -> Tensor:
        if not self.optimum_known:
            raise NotComputable("for the test")
        targets = batch.targets[batch.scored]
        return torch.where(torch.arange(2) == targets[:, None], 0.8, 0.2).double().log()


class Constant(nn.Module):
    """The same logits at every scored position."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, tokens: Tensor, position_ids: Tensor | None = None, *, scored: Tensor) -> ModelOutput:
        return ModelOutput(self.logits.expand(int(scored.sum()), -1), {})
