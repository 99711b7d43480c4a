"""Sequences for people: what part each token plays, as colored chips on a page and colored words in a terminal.

Neither relies on color alone: sources and answers have a frame and heavy type on a page, where hovering says the
part in words, and square and angle brackets in a terminal.
"""

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from sparsity_lab.generators.task import Batch, Vocabulary

__all__ = ["TokenView", "batch_html", "batch_text", "legend_html", "sequence_html", "sequence_text", "sequence_view"]

_Words = list[tuple[str, str, tuple[int, ...]]]  # text, style, IDs

_SEQUENCES = 6
_TOKENS = 160  # of a longer sequence, both ends are shown

# Translucent grounds and the page's own ink are readable on light and on dark pages.
_CHIP = (
    "display: inline-block; padding: 0 .35em; margin: .1em; border-radius: .3em; border: 2px solid transparent; "
    "vertical-align: top; text-align: center; "
)
_CSS = {
    "planted": "background: #d55e0040; border-color: #d55e00; font-weight: 700;",
    "answer": "background: #009e7340; border-color: #009e73; font-weight: 700;",
    "query": "background: #0072b230; border: 2px dashed #3d8fcc;",
    "cue": "background: #c4689a30; border: 2px dotted #c4689a;",
    "special": "opacity: .75;",
}
_PLAIN = "background: #7d7d7d26;"
_ID = "display: block; font-size: .7em; line-height: 1.1; font-weight: 400; opacity: .8;"
_STYLES = {"planted": "bold dark_orange", "answer": "bold green", "query": "bold blue", "cue": "magenta"}
_LEGEND = (("planted", "source"), ("answer", "answer"), ("query", "query"), ("cue", "cue"), ("background", "other"))


@dataclass(frozen=True)
class TokenView:
    """One token of a sequence.

    Attributes:
        name: as the vocabulary has it.
        part: ``"answer"`` for a token that is scored, ``"planted"`` for a source of one, else its role.
        position: in the sequence; of the last answer, which may be no token of it, that of the query.
        position_ids: coupled IDs, one of each kind; empty without coupling.
    """

    name: str
    part: str
    position: int
    position_ids: tuple[int, ...] = ()


def sequence_view(batch: "Batch", row: int, vocabulary: "Vocabulary | None" = None) -> list[TokenView]:
    """The tokens of one sequence, and last the answer that comes after its end, if there is one.

    Where more than nine tenths of the tokens are scored, as in text, none is marked as an answer, and sources are
    those of the last target.
    """
    vocabulary = vocabulary or batch.vocabulary
    tokens, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
    scored = batch.scored[row].nonzero()[:, 0].tolist()
    dense = 10 * len(scored) > 9 * len(tokens)
    sources: set[int] = set()
    if batch.sources is not None:
        marking = scored[-1:] if dense else scored
        sources = set(batch.sources[row, marking].flatten().tolist())
    answers = set() if dense else {at + 1 for at in scored}
    ids = [] if batch.position_ids is None else batch.position_ids[row].T.tolist()

    def part(at: int, token: int) -> str:
        role = vocabulary.roles[token] if vocabulary else "data"
        # What could have been planted but does not enter the rule is not marked.
        role = "planted alphabet" if role == "planted" else role
        return "answer" if at in answers else "planted" if at in sources else role

    def name(token: int) -> str:
        return vocabulary.names[token] if vocabulary else str(token)

    shown = [
        TokenView(name(token), part(at, token), at, tuple(ids[at]) if ids else ()) for at, token in enumerate(tokens)
    ]
    last = len(tokens) - 1
    return [*shown, TokenView(name(targets[last]), "answer", last)] if last in scored else shown


def sequence_html(batch: "Batch", row: int, vocabulary: "Vocabulary | None" = None) -> str:
    """One sequence as HTML that needs no style sheet: a chip for each token with its coupled IDs beneath, and after
    an arrow the answer at the end. Hovering shows position and part."""
    view = sequence_view(batch, row, vocabulary)
    tokens, after = view[: batch.tokens.shape[1]], view[batch.tokens.shape[1] :]
    chips = [_chip(token) for token in tokens]
    if len(chips) > _TOKENS:
        chips = [*chips[: _TOKENS // 2], f" … {len(chips) - _TOKENS} more … ", *chips[-_TOKENS // 2 :]]
    parts = [*chips, *(["→"] if after else []), *(_chip(token, "answer at") for token in after)]
    return f'<div class="sequence">{" ".join(parts)}</div>'


def _chip(token: TokenView, where: str = "") -> str:
    hint = f"{where} position {token.position}" if where else f"position {token.position}, {token.part}"
    ids = "".join(f'<sub style="{_ID}">{number or "·"}</sub>' for number in token.position_ids)
    css = _CHIP + _CSS.get(token.part, _PLAIN)
    return f'<span style="{css}" title="{html.escape(hint)}">{html.escape(token.name)}{ids}</span>'


def legend_html() -> str:
    """What the looks of the chips mean."""
    chips = " ".join(f'<span style="{_CHIP}{_CSS.get(part, _PLAIN)}">{word}</span>' for part, word in _LEGEND)
    return f"<p>{chips}</p>"


def batch_html(batch: "Batch") -> str:
    """The first sequences of a batch, with a legend."""
    head = repr(batch).splitlines()[0]
    count = min(_SEQUENCES, len(batch))
    rows = "".join(sequence_html(batch, row) for row in range(count))
    more = f"<p>… {len(batch) - count} more sequences</p>" if len(batch) > count else ""
    return f"<div><p>{html.escape(head)}</p>{legend_html()}{rows}{more}</div>"


def sequence_text(batch: "Batch", row: int, vocabulary: "Vocabulary | None" = None, width: int | None = None) -> Text:
    """One sequence for a terminal: ``BOS a [1] b [0] = → 1``, tokens that enter the rule in brackets, answers inside
    the sequence as ``<1>``. Coupled position IDs stand in lines beneath, one for each kind.

    Args:
        width: characters of a line, for sequences with position IDs; None makes one line of each.
    """
    view = sequence_view(batch, row, vocabulary)
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


def batch_text(batch: "Batch") -> str:
    """What ``batch_html`` shows, as plain text."""
    count = min(_SEQUENCES, len(batch))
    shown = [sequence_text(batch, row).plain for row in range(count)] if batch.tokens.shape[1] <= _TOKENS else []
    left = len(batch) - len(shown)
    more = [f"… {left} more sequences"] if left else []
    return "\n".join("  " + line for text in [*shown, *more] for line in text.split("\n"))
