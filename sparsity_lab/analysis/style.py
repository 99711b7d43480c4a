"""One style for all figures.

Figures are ``matplotlib.figure.Figure`` objects of their own; pyplot's state is never touched. Colors begin with
the Okabe-Ito palette, which is safe for color-blind readers. Its light colors are darkened until each has a contrast
of at least 3 to 1 on white and on a dark page. Markers and dashes repeat the color coding for print. In an SVG all
ink is ``currentColor`` and the ground is transparent, so that a figure follows its page's light or dark.
"""

import base64
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.style
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from pandas.errors import Pandas4Warning

from sparsity_lab.settings.markup import Markup, escape, visible

PALETTE = (
    "#0072b2", "#d55e00", "#009e73", "#c4689a", "#b07800", "#3d8fcc",
    "#8a6fd1", "#7a8a00", "#a8653f", "#14919b", "#e0526e", "#6d7f8f",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[str | tuple[float, ...], ...] = ("", (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5), (3, 3), (8, 2))

INK = "#20242b"
"""Text, axes and reference lines; ``currentColor`` in an SVG."""
GRAY = "#7d7d7d"
"""Shading and what is not available; readable on white and on dark pages."""

_SERIES_FONT = "DejaVu Sans"
"""Shipped with matplotlib, so that text is measured alike on every machine."""
_PAGE_FONTS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
"""What an SVG asks for: fonts no wider than the measured one, so that nothing outgrows its place."""

_RC: Any = {
    "font.family": [_SERIES_FONT],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": False,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.color": GRAY,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "sparsity_lab",
}


class Look(NamedTuple):
    """How one arm is drawn.

    >>> look(0).marker
    'o'
    """

    color: str
    marker: str
    dash: str | tuple[float, ...]


class Point(NamedTuple):
    """A place in a figure that says something when a reader points at it."""

    ax: Axes
    x: float
    y: float
    words: str


def look(index: int) -> Look:
    """The look of the arm with this index. Twelve arms differ in color. Mark and dash move with the color, and shift
    after six arms, so that 36 arms differ without color too.

    >>> look(0) != look(1)
    True
    """
    turn, place = divmod(index, len(MARKERS))
    color = PALETTE[index % len(PALETTE)]
    return Look(color, MARKERS[(place + turn) % len(MARKERS)], DASHES[(place + 2 * turn) % len(DASHES)])


def looks_of(*groups: Sequence[str]) -> dict[str, Look]:
    """A look for each name of all groups, the same wherever the name is drawn: a color has one meaning on a page.

    >>> list(looks_of(["softmax", "LSSA"], ["k=1"]))
    ['softmax', 'LSSA', 'k=1']
    """
    names = dict.fromkeys(name for group in groups for name in group)
    return {name: look(index) for index, name in enumerate(names)}


def line_style(style: Look) -> dict[str, Any]:
    """The look as arguments of ``Axes.plot``.

    >>> sorted(line_style(look(0)))
    ['color', 'linestyle', 'marker', 'markeredgewidth']
    """
    dash: Any = "-" if isinstance(style.dash, str) else (0, style.dash)
    return {"color": style.color, "marker": style.marker, "linestyle": dash, "markeredgewidth": 0}


@contextmanager
def styled() -> Iterator[None]:
    """Context in which figures take this style, whatever the user's matplotlibrc says; matplotlib's settings are
    restored on leaving it.

    >>> with styled():
    ...     ax = extrapolation_curve(results, only_learned=False).plot()
    >>> ax.get_ylabel().splitlines()[0]
    'normalized accuracy'
    """
    with mpl.style.context("default"), mpl.rc_context(_RC):
        yield


def new_axes(width: float, height: float) -> Axes:
    """Axes of a figure of their own, ``width`` by ``height`` inches. To be called inside ``styled()``."""
    return Figure(figsize=(width, height), layout="constrained").subplots()


def draw_cells(ax: Axes, values: NDArray[np.float64], **style: Any) -> None:
    """Draw a matrix as cells with integer centers, row 0 on top; NaN stays empty.

    The cells are vectors. A raster image would be compressed by a library that chooses its method by the processor,
    so the bytes of an SVG would differ between machines.

    >>> from matplotlib.figure import Figure
    >>> ax = Figure().add_subplot()
    >>> draw_cells(ax, np.eye(3))
    >>> [float(end) for end in ax.get_ylim()]
    [2.5, -0.5]

    Args:
        style: arguments for ``Axes.pcolormesh`` (``cmap``, ``vmin``, ...).
    """
    # Between two shades of the map, the last bit of a mean would choose; it too differs between processors.
    shown = np.ma.masked_invalid(values.round(9))
    rows, columns = shown.shape
    # Edges of the cells' own color leave no seam between them.
    ax.pcolormesh(range(columns), range(rows), shown, shading="nearest", edgecolors="face", linewidth=0.8, **style)
    ax.set_ylim(rows - 0.5, -0.5)


def seaborn_plot(function: Callable[..., Any], data: Any, **arguments: Any) -> Any:
    """Call a seaborn function on a polars frame.

    Seaborn 0.13.2 cannot read polars 2 frames, so it gets a dict of lists. It also calls pandas in ways that pandas 4
    will change, so that one warning is silenced here. Other data pass as they are.
    """
    if isinstance(data, pl.DataFrame):
        data = data.to_dict(as_series=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Pandas4Warning)
        return function(data=data, **arguments)


def relative_luminance(color: Any) -> float:
    """Relative luminance of a color as WCAG 2 defines it, 0 for black to 1 for white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(color: Any) -> str:
    """Black or white, whichever can be read on a ground of this color.

    >>> ink_on("white"), ink_on("#0072b2")
    ('#000000', '#ffffff')
    """
    return "#000000" if relative_luminance(color) > 0.18 else "#ffffff"


def make_visible(figure: Figure) -> Figure:
    """The figure, with characters in its texts written out that steer a terminal: fonts have none, and the warning
    that matplotlib gives would repeat them."""
    for text in figure.findobj(Text):
        if (shown := visible(text.get_text())) != text.get_text():
            text.set_text(shown)
    return figure


def figure_svg(figure: Figure, label: str = "", points: Sequence[Point] = ()) -> str:
    """The figure as one ``<svg>`` element for a page.

    The same figure gives the same bytes: no date, no version, and ids made from the content, so that several
    figures can share a page. Text stays text; ink is ``currentColor``; the ground is transparent; the size comes
    from the page, up to 1.35 times the figure's own.

    >>> from matplotlib.figure import Figure
    >>> figure_svg(Figure(), label="An empty figure").startswith("<svg")
    True

    Args:
        label: what the figure shows, for screen readers.
        points: places with words, which browsers show when the pointer rests there.
    """
    buffer = io.StringIO()
    with styled():
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        make_visible(figure).savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = visible(buffer.getvalue())
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Matplotlib's style element would reach the whole page; the root can say the same to its own children.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = _TAG.sub(lambda tag: _restyled(tag[0]), text)
    width = float(figure.get_figwidth()) * 96
    min_width = 0.7 * width if width > 480 else 0
    opening = (
        '<svg role="img" stroke-linejoin="round" '
        # A wide figure on a narrow page scrolls in its box before its text becomes too small to read.
        f'style="width: 100%; height: auto; max-width: {1.35 * width:.0f}px; min-width: {min_width:.0f}px" '
    )
    text = re.sub(r'<svg (.*?)width="[^"]*" height="[^"]*"', lambda found: opening + found[1], text, count=1)
    text = text.removesuffix("</svg>") + "".join(_target(figure, point) for point in points) + "</svg>"
    content = f"{label}\n{text}".encode(errors="backslashreplace")
    prefix = "f" + hashlib.blake2b(content, digest_size=4).hexdigest()
    text = _TAG.sub(lambda tag: _prefixed(tag[0], prefix), text)
    # The label comes last, for it is text too.
    return text.replace("<svg ", f'<svg aria-label="{escape(label)}" ', 1) + "\n"


def figure_image(figure: Figure, label: str) -> Markup:
    """The figure as one ``<img>``, for notebooks: JupyterLab removes SVG elements from one that it does not trust, as
    a fresh copy is, and leaves their text. Ink is black, on a white ground.

    Args:
        label: what the figure shows, for screen readers.
    """
    return image_of(figure_svg(figure, label))


def image_of(svg: str) -> Markup:
    """What ``figure_svg`` gave, as one ``<img>`` that holds it."""
    end = svg.index(">") + 1
    opening, inner = svg[:end], svg[end:]
    found = re.search(r'aria-label="([^"]*)".* viewBox="0 0 ([\d.]+) ([\d.]+)"', opening, flags=re.DOTALL)
    assert found is not None
    width, height = (round(float(points) * 96 / 72) for points in found.groups()[1:])
    opening = re.sub(r' style="[^"]*"', f' width="{width}" height="{height}" color="#000000"', opening, count=1)
    standing = f'{opening}<rect width="100%" height="100%" fill="#ffffff"/>{inner}'
    url = "data:image/svg+xml;base64," + base64.b64encode(standing.encode()).decode()
    return Markup(f'<img alt="{found[1]}" width="{width}" src="{url}">')


def _target(figure: Figure, point: Point) -> str:
    """A transparent disc at the point, with its words; the SVG's unit is 1/72 inch and its y runs down."""
    across, up = figure.dpi_scale_trans.inverted().transform(point.ax.transData.transform((point.x, point.y)))
    x, y = 72 * across, 72 * (figure.get_figheight() - up)
    words = escape(point.words)
    return (
        f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="9" style="fill: transparent" tabindex="0">'
        f"<title>{words}</title></circle>"
    )


# The text between the tags is the reader's and stays unchanged.
_TAG = re.compile(r"<[a-zA-Z][^>]*>")


def _restyled(tag: str) -> str:
    """A tag with the page's fonts and ink."""
    tag = re.sub(r"font-family: [^;\"]*", f"font-family: {_PAGE_FONTS}", tag)
    tag = re.sub(rf"(font: [^;\"]*?)'{_SERIES_FONT}'[^;\"]*", rf"\g<1>{_PAGE_FONTS}", tag)
    return re.sub(INK, "currentColor", tag, flags=re.IGNORECASE)


def _prefixed(tag: str, prefix: str) -> str:
    """A tag whose id, and whose links to ids, begin with ``prefix``."""
    tag = re.sub(r'\sid="', f' id="{prefix}-', tag)
    return tag.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
