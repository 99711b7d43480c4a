"""The package's docstrings as the markup that Sphinx reads.

Docstrings are written for people at a prompt. They have Google sections, double backticks around code, *italics*
where a word is defined, formulas in Unicode, and displayed formulas on indented lines. Other text that
reStructuredText would take for markup (bars, lone stars, a trailing underscore) is escaped. Indented formulas stay
unchanged.
"""

import re
from typing import Any

__all__ = ["as_markup"]

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Note|Notes|Example|Examples):$")
# An entry of a section. Sphinx takes a word before a name for its type: names described together are one word.
_TOGETHER = re.compile(r"(?m)^( +)(\w+(?:, \w+)+)(?=: )")
_CODE = re.compile(r"(``(?:(?!\n\s*\n).)+?``)", re.DOTALL)
_STRESSED = re.compile(r"((?<![\w*])\*\*?[^\s*](?:[^*\n]*[^\s*])?\*\*?(?![\w*]))")


def as_markup(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Sphinx's hook: change the lines in place."""
    joined = _TOGETHER.sub(lambda entry: entry[1] + entry[2].replace(", ", ","), "\n".join(lines))
    parts = _CODE.split(joined)
    text = "".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))
    lines[:] = _with_formulas(text.split("\n"))


def _escaped(text: str) -> str:
    parts = _STRESSED.split(text)
    return "".join(part if i % 2 else _escape(part) for i, part in enumerate(parts))


def _escape(text: str) -> str:
    text = re.sub(r"([|*`])", r"\\\1", text)
    # "x_" before anything but a letter or digit would be a link.
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def _with_formulas(lines: list[str]) -> list[str]:
    """Indented paragraphs before the first section become literal blocks."""
    made: list[str] = []
    inside = False
    for i, line in enumerate(lines):
        if _SECTION.match(line):
            return made + lines[i:]
        indented = line.startswith("    ")
        if indented and not inside and (i == 0 or not lines[i - 1].strip()):
            made += ["::", ""]
            inside = True
        elif line.strip() and not indented:
            inside = False
        made.append(line.replace("\\", "") if inside and indented else line)
    return made
