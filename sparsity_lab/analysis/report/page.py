"""A page that needs nothing but itself: one HTML file with its style and script inside.

The script sorts tables and shows the values of curves at once. Without it, tables keep their order, and browsers show
the values themselves after a moment.
"""

import functools
import html
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import jinja2

from sparsity_lab.settings.markup import Markup, details, element, escape, join, signed_interval, table, visible


@dataclass(frozen=True)
class Section:
    """A part of the page, with the name under which its links find it."""

    anchor: str
    heading: str
    content: Markup


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole HTML document. It loads nothing, and is light or dark as the reader's system says."""
    return document("page.html", title=title, sections=sections)


def document(name: str, **values: Any) -> str:
    """A template with these values."""
    return _templates().get_template(name).render(values)


def macros(name: str) -> Any:
    """The macros of a template, as functions that give ``Markup``."""
    return cast(ModuleType, _templates().get_template(name).module)


def framed(title: str, page: str, file: str) -> Markup:
    """A page in a frame of a notebook. One that is not trusted shows the words above it, and no frame."""
    write = element("code", f'.write("{file}")')
    words = element("p", "Where nothing stands below, ", write, " makes a page that any browser opens.")
    style = "width: 100%; height: 640px; border: 0"
    frame = f'<iframe title="{escape(title)}" sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(page)}">'
    return join([words, Markup(f"{frame}</iframe>")])


@functools.cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("sparsity_lab.analysis", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    templates.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    templates.globals |= {"table": table, "details": details, "interval": signed_interval}
    return templates


def _shown(value: Any) -> Any:
    """HTML as it is. In all else, characters that steer a terminal or the direction of writing are written out."""
    return value if hasattr(value, "__html__") else visible(str(value))
