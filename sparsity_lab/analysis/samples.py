"""Sample sequences for people: coloured chips on a page, coloured words in a terminal.

Neither relies on colour alone: planted tokens have a frame and heavy type on a page, and square brackets in a
terminal.
"""

from dataclasses import dataclass

from rich.text import Text

from sparsity_lab.analysis.markup import Markup, element, join
from sparsity_lab.generators import Batch, Task

__all__ = ["sequence_html", "sequence_text"]

# Translucent grounds and the page's own ink are readable on light and on dark pages.
_CHIP = "display: inline-block; padding: 0 .35em; margin: .1em; border-radius: .3em; border: 2px solid transparent; "
_CSS = {
    "planted": "background: #d55e0040; border-color: #d55e00; font-weight: 700;",
    "answer": "background: #009e7340; border-color: #009e73; font-weight: 700;",
    "query": "background: #0072b230; border: 2px dashed #3d8fcc;",
    "cue": "background: #c4689a30; border: 2px dotted #c4689a;",
    "special": "opacity: .75;",
}
_PLAIN = "background: #7d7d7d26;"
_TERMINAL = {"planted": "bold dark_orange", "answer": "bold green", "query": "bold blue", "cue": "magenta"}


@dataclass(frozen=True)
class _Token:
    name: str
    part: str
    position: int
    position_id: int


def sequence_html(task: Task, batch: Batch, row: int) -> Markup:
    """One sequence of a batch as HTML that needs no style sheet: a chip for each token, those that enter the rule
    framed, then the answer. Hovering shows position and role; coupled position IDs stand beside their tokens."""
    chips = [_chip(token) for token in _tokens(task, batch, row)]
    answers = [_chip(token) for token in _answers(task, batch, row)]
    return element("div", join([*chips, " → ", *answers], " "), class_="sequence")


def sequence_text(task: Task, batch: Batch, row: int) -> Text:
    """One sequence of a batch for a terminal: ``BOS a [1] b [0] = → 1``, tokens that enter the rule in brackets."""
    text = Text()
    for token in _tokens(task, batch, row):
        name = f"[{token.name}]" if token.part == "planted" else token.name
        text.append(name, style=_TERMINAL.get(token.part, "dim"))
        text.append(f":{token.position_id} " if token.position_id else " ", style="dim")
    text.append("→")
    for token in _answers(task, batch, row):
        text.append(" ").append(token.name, style=_TERMINAL["answer"])
    return text


def _tokens(task: Task, batch: Batch, row: int) -> list[_Token]:
    sources = set() if batch.sources is None else set(batch.sources[row].flatten().tolist())
    ids = None if batch.position_ids is None else batch.position_ids[row].amax(dim=0).tolist()
    names, roles = task.vocabulary.names, task.vocabulary.roles
    # What could have been planted but does not enter the rule is not marked.
    parts = ["planted alphabet" if role == "planted" else role for role in roles]
    return [
        _Token(names[token], "planted" if at in sources else parts[token], at, ids[at] if ids else 0)
        for at, token in enumerate(batch.tokens[row].tolist())
    ]


def _answers(task: Task, batch: Batch, row: int) -> list[_Token]:
    places = batch.scored[row].nonzero()[:, 0].tolist()
    return [_Token(task.vocabulary.names[batch.targets[row, at]], "answer", at, 0) for at in places]


def _chip(token: _Token) -> Markup:
    where = f"answer at position {token.position}" if token.part == "answer" else f"position {token.position}"
    hint = where if token.part == "answer" else f"{where}, {token.part}"
    inner = [token.name, *([element("sub", token.position_id)] if token.position_id else [])]
    return element("span", *inner, style=_CHIP + _CSS.get(token.part, _PLAIN), title=hint)
