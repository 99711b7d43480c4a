"""The page around a report: one HTML file that needs nothing but itself.

Its script sorts tables and shows values at once; without it tables keep their order, and browsers show the values
themselves after a moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from sparsity_lab.settings.markup import Markup, element, join

__all__ = ["Section", "page"]


@dataclass(frozen=True)
class Section:
    """A part of the page, with the name under which its links find it."""

    anchor: str
    heading: str
    content: Markup


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole HTML document: style and script inside, no address outside itself; light or dark as the reader's
    system says."""
    css, script = (
        resources.files("sparsity_lab.analysis").joinpath(name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    links = join([element("a", section.heading, href=f"#{section.anchor}") for section in sections])
    body = [
        element("section", element("h2", section.heading), "\n", section.content, id=section.anchor)
        for section in sections
    ]
    return join(
        [
            Markup('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            # Without this line browsers ask for an icon.
            Markup('<link rel="icon" href="data:,">'),
            element("title", title),
            element("style", Markup(f"\n{css}")),
            Markup("</head>\n<body>"),
            element("h1", title),
            element("nav", links),
            *body,
            element("script", Markup(f"\n{script}")),
            Markup("</body>\n</html>\n"),
        ]
    )
