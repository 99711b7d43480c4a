"""Pieces of MyST Markdown."""

from collections.abc import Iterable, Sequence

__all__ = ["autodoc", "boxed", "code", "fenced", "page", "raw", "summary", "table"]


def page(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def fenced(directive: str, body: str, argument: str = "", **options: str) -> str:
    """A directive; its fence is longer than any within."""
    lines = [f":{name.replace('_', '-')}: {value}".rstrip() for name, value in options.items()]
    return "\n".join([f"`````{{{directive}}} {argument}".rstrip(), *lines, *([""] if lines else []), body, "`````"])


def raw(html: str) -> str:
    return fenced("raw", boxed(html), "html")


def boxed(html: str) -> str:
    """A picture is in a box of its own, and scrolls there if the page is narrow; all else is as it was."""
    return f'<div class="scroll">{html}</div>' if html.startswith("<svg") else html


def code(text: str, language: str = "") -> str:
    return f"````{language}\n{text.strip()}\n````"


def autodoc(directive: str, name: str, *options: str) -> str:
    """An autodoc directive, in the markup that it makes."""
    body = "\n".join([f".. {directive}:: {name}", *(f"   :{option}:" for option in options)])
    return fenced("eval-rst", body)


def summary(documented: object) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((documented.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *(line(row) for row in rows)])
