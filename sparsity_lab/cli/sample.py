"""``sparsity-lab sample``."""

# ruff: noqa: PLC0415

from dataclasses import dataclass

from rich.console import Console
from tyro.conf import Positional

from sparsity_lab.cli.command import Outcome, SettingsCommand
from sparsity_lab.settings import SettingError, Shown, check_least, from_text

_MOST_TOKENS = 10**8
"""The limit per call, about a gigabyte."""


@dataclass(frozen=True, kw_only=True)
class Sample(SettingsCommand):
    """Show sequences of a task. Square brackets mark the tokens that decide the answer. Answers are in angle brackets
    or after the arrow. Coupled position IDs are on the next line."""

    needs = "sparsity_lab.generators"

    task: Positional[str]
    """The task in short form, as in "Planted(k=3, locality=Recent(width=8))"."""
    length: int = 24
    """Sequence length, in the task's own units."""
    count: int = 4
    """Number of sequences."""
    seed: int = 0
    """Seed of the stream."""
    stream: str = "sample"
    """Name of the stream, such as "train" or "evaluation"."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.generators import Stream, Task, sequence_text

        task = from_text(Task, self.task, "task")
        check_least(1, **{"--count": self.count})
        if self.length <= _MOST_TOKENS:
            task.check_length(self.length)
        size = task.sequence_length(self.length)
        if self.count * size > _MOST_TOKENS:
            option = "--length" if size > _MOST_TOKENS else "--count"
            raise SettingError(option, f"at most {_MOST_TOKENS} tokens in total", Shown(f"{self.count} x {size}"))
        batch = task.sample(Stream(seed=self.seed, name=self.stream), 0, self.count, self.length)
        for row in range(len(batch)):
            console.print(sequence_text(batch.view(row), console.width))
        data = {
            "task": str(task),
            "tokens": batch.tokens.tolist(),
            "targets": batch.targets.tolist(),
            "sources": None if batch.sources is None else batch.sources[batch.scored].tolist(),
            "position_ids": None if batch.position_ids is None else batch.position_ids.tolist(),
            "vocabulary": list(task.vocabulary.names),
        }
        return Outcome(data)
