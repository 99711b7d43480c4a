"""Sample sequences of a task for people, on a page and in a terminal; see ``Batch.view``."""

from rich.text import Text

from sparsity_lab.generators import Batch, Task, token_view
from sparsity_lab.settings.markup import Markup

__all__ = ["sequence_html", "sequence_text"]


def sequence_html(task: Task, batch: Batch, row: int) -> Markup:
    """One sequence of a batch as HTML that needs no style sheet: a chip for each token, those that enter the rule and
    the answers framed, coupled position IDs beneath. Hovering shows position and role."""
    return Markup(token_view.sequence_html(batch.view(row, task.vocabulary)))


def sequence_text(task: Task, batch: Batch, row: int, width: int | None = None) -> Text:
    """One sequence of a batch for a terminal: ``BOS a [1] b [0] = → 1``, tokens that enter the rule in brackets,
    answers inside the sequence as ``<1>``. Coupled position IDs stand in lines beneath, one for each kind.

    Args:
        width: characters of a line, for sequences with position IDs; None makes one line of each.
    """
    return token_view.sequence_text(batch.view(row, task.vocabulary), width)
