"""Small pieces of HTML. Every text is escaped, unless it is ``Markup``.

This module imports nothing else from ``sparsity_lab``, so that every part of the lab can use it for notebooks.
"""

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any


class Markup(str):
    """HTML that is ready for the page."""

    __slots__ = ()

    def __html__(self) -> "Markup":
        """Tells template engines that this text is HTML."""
        return self


def visible(text: str) -> str:
    """The text with escapes such as ``\\x1b`` for characters that control a terminal or change the writing direction.
    Line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(repr(letter)[1:-1] if _steers(letter) else letter for letter in text)


def _steers(letter: str) -> bool:
    # Control characters, format characters, surrogates, and separators of lines and paragraphs.
    return letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def escape(value: Any) -> Markup:
    """Any value as escaped and ``visible`` HTML text. ``Markup`` stays unchanged."""
    return value if isinstance(value, Markup) else Markup(html.escape(visible(str(value))))


def join(parts: Iterable[Any], between: str = "\n") -> Markup:
    """The escaped parts, joined."""
    return Markup(between.join(escape(part) for part in parts))


def element(tag: str, *children: Any, **attributes: str | None) -> Markup:
    """``<tag>`` around its children. Attribute names lose a trailing underscore (``class_``). None omits an
    attribute."""
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{shown}>{join(children, '')}</{tag}>")


def details(summary: Any, *children: Any) -> Markup:
    """A part of the page that opens on a click."""
    return element("details", element("summary", summary), *children)


def cell(value: Any, digits: int = 3) -> str:
    """A value as tables show it: floats rounded, None as a dash, and booleans as yes or no."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value, digits) if isinstance(value, float) else str(value)


def number(value: float, digits: int = 2) -> str:
    """A number with a fixed number of decimals and a true minus sign; never "−0.00"."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def signed_interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """``[−0.05, 0.37]``, or "no interval"."""
    return "no interval" if low is None or high is None else f"[{number(low, digits)}, {number(high, digits)}]"


def _column_style(values: Sequence[Any]) -> str | None:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int | float) for value in known):
        return "number"
    return "words" if any(isinstance(value, str) and len(value) > 40 for value in known) else None


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], digits: int = 3) -> Markup:
    """A table that scrolls sideways in its own box. Columns of numbers are aligned right, and long texts break into
    lines."""
    rows = list(rows)
    style = [_column_style([row[i] for row in rows]) for i in range(len(headers))]
    head = element("tr", *(element("th", h, scope="col", class_=s) for h, s in zip(headers, style, strict=True)))
    body = [
        element(
            "tr",
            *(
                element("td", v if isinstance(v, Markup) else cell(v, digits), class_=s)
                for v, s in zip(row, style, strict=True)
            ),
        )
        for row in rows
    ]
    inner = element("table", element("thead", head), "\n", element("tbody", join(body)))
    return element("div", inner, class_="scroll")
