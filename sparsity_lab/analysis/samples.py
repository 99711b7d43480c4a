"""Sample sequences for people: coloured chips on a page, coloured words in a terminal.

Neither relies on colour alone: tokens that enter the rule have a frame and heavy type on a page, and square brackets
in a terminal; answers have a frame and angle brackets.
"""

from rich.text import Text

from sparsity_lab.analysis.markup import Markup
from sparsity_lab.generators import Batch, Task
from sparsity_lab.generators.batch_view import TokenView, sequence_view
from sparsity_lab.generators.batch_view import sequence_html as batch_sequence_html

__all__ = ["sequence_html", "sequence_text"]

_Words = list[tuple[str, str, tuple[int, ...]]]  # text, style, IDs

_STYLES = {"planted": "bold dark_orange", "answer": "bold green", "query": "bold blue", "cue": "magenta"}


def sequence_html(task: Task, batch: Batch, row: int) -> Markup:
    """One sequence of a batch as HTML that needs no style sheet: a chip for each token, those that enter the rule and
    the answers framed, coupled position IDs beneath. Hovering shows position and role."""
    return Markup(batch_sequence_html(batch, row, task.vocabulary))


def sequence_text(task: Task, batch: Batch, row: int, width: int | None = None) -> Text:
    """One sequence of a batch for a terminal: ``BOS a [1] b [0] = → 1``, tokens that enter the rule in brackets,
    answers inside the sequence as ``<1>``. Coupled position IDs stand in lines beneath, one for each kind.

    Args:
        width: characters of a line, for sequences with position IDs; None makes one line of each.
    """
    view = sequence_view(batch, row, task.vocabulary)
    tokens, after = view[: batch.tokens.shape[1]], view[batch.tokens.shape[1] :]
    kinds = len(tokens[0].position_ids)
    words: _Words = [(_word(token), _STYLES.get(token.part, "dim"), token.position_ids) for token in tokens]
    if after:
        none = (0,) * kinds
        words += [("→", "", none), *((token.name, _STYLES["answer"], none) for token in after)]
    text = Text()
    for line in _lines(words, width if kinds else None):
        text.append("\n" if text else "")
        sizes = [max(len(word), *(len(str(number)) for number in ids)) if kinds else 0 for word, _, ids in line]
        for i, ((word, style, _), size) in enumerate(zip(line, sizes, strict=True)):
            text.append(" " if i else "").append(word.ljust(size), style=style)
        for kind in range(kinds):
            numbers = (str(ids[kind] or "") for _, _, ids in line)
            text.append("\n" + " ".join(n.ljust(size) for n, size in zip(numbers, sizes, strict=True)), style="dim")
    return text


def _word(token: TokenView) -> str:
    around = {"planted": "[{}]", "answer": "<{}>"}.get(token.part, "{}")
    return around.format(token.name)


def _lines(words: _Words, width: int | None) -> list[_Words]:
    """Cut into lines of at most so many characters."""
    lines: list[_Words] = [[]]
    used = 0
    for word in words:
        size = 1 + max(len(word[0]), *(len(str(number)) for number in word[2]), 0)
        if width is not None and lines[-1] and used + size > width:
            lines.append([])
            used = 0
        lines[-1].append(word)
        used += size
    return lines
