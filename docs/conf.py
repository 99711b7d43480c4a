"""Sphinx configuration of the documentation site.

Built by ``make docs``, strictly: a broken link or a name that nothing defines fails the build, and nothing is fetched
from the network. What can be made from the package (task gallery, kernel pages, pictures, the reference) is made by
``docs/pages`` before each build, into ``docs/generated``.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pages import docstrings, references, write_pages

from sparsity_lab import __version__

project = "sparsity_lab"
author = "The sparsity_lab developers"
version = release = __version__
html_title = "sparsity_lab"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# Parts of other pages.
exclude_patterns = ["_build", "generated/pictures", "generated/command_line.md", "generated/headlines.md"]

# What is not marked as code of some language is a formula or what a command prints.
highlight_language = "text"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["lab.css"]
html_js_files = ["lab.js"]
html_copy_source = False
html_show_sphinx = False

# Headings get anchors, so that pages can link to each other's sections as they do on a code host.
myst_heading_anchors = 4
myst_links_external_new_tab = False
# Notebooks are committed with their outputs; their own test executes them.
nb_execution_mode = "off"

napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

# Public names of this package must resolve. Those of others would need their sites; and a signature may name a class
# that is not public and so has no page.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!sparsity_lab).*"), ("py:class", r"sparsity_lab\.(\w+\.\w+)\..*")]


# Behind a part of a path or of a call, and between the words of a name.
_BREAKS = re.compile(r"(?<=\w\w[/_(,])(?=\w)|(?<=[a-z]{3})(?=[A-Z][a-z])")


def breakable(body: str) -> str:
    """The page with places in the code of its tables where a line may break, so that none breaks inside a word."""

    def in_cell(cell: re.Match[str]) -> str:
        return re.sub(r'(?<=<span class="pre">)[^<]+', lambda code: _BREAKS.sub("<wbr>", code[0]), cell[0])

    return re.sub(r"<t[dh]\b.*?</t[dh]>", in_cell, body, flags=re.DOTALL)


def listed(body: str) -> str:
    """The page with the parameters of a long signature as a list. Sphinx makes them definitions of no term."""

    def as_list(found: re.Match[str]) -> str:
        items = re.sub("(</?)dd>", r"\1li>", found[1])
        return f'<ul class="parameters">{items}</ul>'

    return re.sub(r'<dl>(\s*<dd><em class="sig-param.*?)</dl>', as_list, body, flags=re.DOTALL)


def _made_readable(app, page, template, context, doctree):
    """The captions of the navigation are headings. Screen readers need their level, which the theme leaves out."""
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    if "body" in context:
        context["body"] = breakable(listed(context["body"]))


def setup(app):
    # After the theme has made its navigation, with priority 500.
    app.connect("html-page-context", _made_readable, priority=900)
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir)))
    # Before napoleon, which has priority 500.
    app.connect("autodoc-process-docstring", docstrings.as_markup, priority=400)
    app.connect("missing-reference", references.resolve)
