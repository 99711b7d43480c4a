"""Descriptions of settings from their docstrings: in words without formulas, and by field."""

import inspect
import itertools
import re
from collections.abc import Iterator

from sparsity_lab.settings.setting import Setting, field_hints

_FORMULA = re.compile(r"[=Σ√^⌈<>|φσ]|->|\bw_|\*\*|\.\. ")
_END = re.compile(r"(?<=[^.\s]{2})\.(?:\s|$)")
_FIELD = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)


def in_words(doc: str | None, width: int) -> str:
    """A short description from a docstring: the part of its first sentence before a formula, cut to the width. The
    first clause is always kept."""
    text = _plain(inspect.cleandoc(doc or "").split("\n\n")[0])
    sentence = _END.split(text)[0].rstrip(".")
    first, *more = re.split(r"(?<=[\w)])[:;] ", sentence)
    if _FORMULA.search(first):
        first, more = _FORMULA.split(first)[0].rpartition(", ")[0] or first, []
    words = ": ".join([first, *itertools.takewhile(lambda clause: not _FORMULA.search(clause), more)])
    for between in (": ", " (", ", "):
        while len(words) > width and between in words:
            words = words.rpartition(between)[0]
    # If the cut is inside parentheses, remove all of them.
    return words if words.count("(") == words.count(")") else words.rpartition(" (")[0]


def paragraphs(doc: str | None) -> list[str]:
    """The paragraphs of a docstring before its sections, each in one line. Indented formulas keep their lines."""
    found = []
    for part in re.split(r"\n\s*\n", inspect.cleandoc(doc or "")):
        if re.match(r"(Attributes|Args|Raises|Returns|Example|Examples|Note|Notes|References):", part):
            break
        found.append(part if part.startswith(" ") else _plain(part))
    return found


def field_words(cls: type[Setting]) -> dict[str, str]:
    """The meaning of each field, by name, from the docstring of the class or of a base class."""
    said: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        said.update(_said(owner.__doc__))
    return {name: said.get(name, "") for name in field_hints(cls)}


def _said(doc: str | None) -> Iterator[tuple[str, str]]:
    _, _, attributes = inspect.cleandoc(doc or "").partition("Attributes:\n")
    section = re.split(r"\n(?=\S)", attributes)[0]
    for names, words in _FIELD.findall(section):
        for name in names.split(", "):
            yield name, _plain(words)


def _plain(text: str) -> str:
    """The text in one line, without backquotes."""
    return " ".join(text.split()).replace("``", "")
