"""Readable sequences: the part of each token, as colored chips on a page and colored words in a terminal.

Neither depends on color alone. On a page, sources and answers have a frame and bold type, and a tooltip names the
part. In a terminal, they have square and angle brackets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from sparsity_lab.settings.markup import Markup, escape

_Words = list[tuple[str, str, tuple[int, ...]]]  # text, style, IDs

LONGEST_SHOWN = 160
"""Tokens. A page shows only both ends of a longer sequence, and a terminal shows nothing."""

# Translucent backgrounds and the page's own text color are readable on light and dark pages.
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

    >>> view = Planted(k=1).sample(Stream(seed=0), 0, 1, 3).view(0)
    >>> [token.name for token in view][:1], view[0].part
    (['BOS'], 'special')

    Attributes:
        name: name in the vocabulary.
        part: ``"answer"`` for a scored token, ``"planted"`` for a source of one, otherwise its role.
        position: position in the sequence; for an answer that is not a token of it, the position of its query.
        position_ids: coupled IDs, one of each kind; empty without coupling.
        after: True for an answer that is not a token of the sequence, because it comes after the end or is hidden.
    """

    name: str
    part: str
    position: int
    position_ids: tuple[int, ...] = ()
    after: bool = False


def sequence_html(view: Sequence[TokenView]) -> Markup:
    """One sequence from ``Batch.view`` as HTML without a style sheet. Each token is a chip with its coupled IDs
    below. An arrow leads to answers that are not tokens of the sequence. A tooltip shows position and part.

    >>> sequence_html(Planted(k=1).sample(Stream(seed=0), 0, 1, 3).view(0)).startswith("<")
    True
    """
    tokens, after = [token for token in view if not token.after], [token for token in view if token.after]
    chips = [_chip(token) for token in tokens]
    if len(chips) > LONGEST_SHOWN:
        chips = [
            *chips[: LONGEST_SHOWN // 2],
            f" … {len(chips) - LONGEST_SHOWN} more … ",
            *chips[-LONGEST_SHOWN // 2 :],
        ]
    parts = [*chips, *(["→"] if after else []), *(_chip(token, "answer at") for token in after)]
    return Markup(f'<div class="sequence">{" ".join(parts)}</div>')


def _chip(token: TokenView, where: str = "") -> str:
    hint = f"{where} position {token.position}" if where else f"position {token.position}, {token.part}"
    ids = "".join(f'<sub style="{_ID}">{number or "·"}</sub>' for number in token.position_ids)
    css = _CHIP + _CSS.get(token.part, _PLAIN)
    return f'<span style="{css}" title="{escape(hint)}">{escape(token.name)}{ids}</span>'


def legend_html() -> str:
    """The legend of the chips."""
    chips = " ".join(f'<span style="{_CHIP}{_CSS.get(part, _PLAIN)}">{word}</span>' for part, word in _LEGEND)
    return f"<p>{chips}</p>"


def sequence_text(view: Sequence[TokenView], width: int | None = None) -> Text:
    """One sequence from ``Batch.view`` for a terminal: ``BOS a [1] b [0] = → 1``. Tokens that enter the rule are in
    square brackets, and answers inside the sequence in angle brackets. Coupled position IDs are in the lines below,
    one line for each kind.

    >>> print(sequence_text(Planted(k=1).sample(Stream(seed=0), 0, 1, 3).view(0)))
    BOS b d [1] = → 1

    Args:
        width: characters per line, for sequences with position IDs; None makes one line.
    """
    tokens, after = [token for token in view if not token.after], [token for token in view if token.after]
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
    """Cut into lines of at most ``width`` characters."""
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
