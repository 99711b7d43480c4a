"""Sample sequences of the tasks of runs."""

from collections.abc import Iterable, Iterator

from sparsity_lab.generators import Stream, Task, sequence_html
from sparsity_lab.settings.markup import Markup, join
from sparsity_lab.training import RunConfig

MOST_TOKENS = 4096
"""Sequences that are shown are no longer than this."""


def sample_length(config: RunConfig, task: Task) -> int | None:
    """The longest trained length whose sequences a page can show, or else the shortest; None if it has too many
    tokens too. None as well for a task that reads files: a store from elsewhere can name any file of its reader."""
    low, high = config.training.curriculum.range()
    lengths = () if task.reads_files else (high, low)
    return next((length for length in lengths if task.sequence_length(length) <= MOST_TOKENS), None)


def sample_sequences(tasks: Iterable[tuple[Task, int | None]], count: int) -> Iterator[tuple[str, int, Markup]]:
    """Name, length and the first ``count`` sequences of each task at its length, once for each pair; none of a task
    without a length. The first of them is the one that an attention map reads."""
    named = {(str(task), length): task for task, length in tasks if length is not None}
    for (name, length), task in named.items():
        batch = task.sample(Stream(seed=0, name="analysis"), 0, count, length)
        yield name, length, join([sequence_html(batch.view(row)) for row in range(len(batch))])
