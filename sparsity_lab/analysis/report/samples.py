"""Sample sequences of the tasks of runs."""

from collections.abc import Iterable, Iterator

from sparsity_lab.generators import Stream, Task, sequence_html
from sparsity_lab.settings.markup import Markup, join


def sample_sequences(tasks: Iterable[tuple[Task, int]], count: int) -> Iterator[tuple[str, int, Markup]]:
    """Name, length and the first ``count`` sequences of each task at its length, once for each pair. The first of
    them is the one that an attention map reads.

    A task that reads files is left out: a store from elsewhere can name any file of its reader.
    """
    named = {(str(task), length): task for task, length in tasks if not task.reads_files}
    for (name, length), task in named.items():
        batch = task.sample(Stream(seed=0, name="analysis"), 0, count, length)
        yield name, length, join([sequence_html(batch.view(row)) for row in range(len(batch))])
