import io
import re
import warnings
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from analysis.synthetic import frame_of
from matplotlib.figure import Figure
from pandas.errors import Pandas4Warning

from sparsity_lab.analysis import PALETTE, extrapolation_curve, figure_svg
from sparsity_lab.analysis.style import (
    GRAY,
    INK,
    draw_cells,
    look,
    new_axes,
    relative_luminance,
    seaborn_plot,
    styled,
)


@pytest.fixture
def curve():
    return extrapolation_curve(
        frame_of(("a0", {"task.k": 1}, [1, 1, 0.5, 0.2]), ("a1", {"task.k": 1}, [1, 1, 0.6, 0]))
    )


def test_the_same_figure_gives_the_same_bytes(curve):
    assert figure_svg(curve.figure(), "x") == figure_svg(curve.figure(), "x")


def test_a_matplotlibrc_changes_nothing():
    frame = frame_of(("a0", {"task.k": 1}, [1, 1, 0.5, 0.2]))
    plain = figure_svg(extrapolation_curve(frame, by="task.k").figure())
    own = {"font.family": "serif", "lines.markeredgewidth": 5, "xtick.major.size": 20, "svg.hashsalt": "own"}
    with mpl.rc_context(own):
        assert figure_svg(extrapolation_curve(frame, by="task.k").figure()) == plain


def test_cells_are_vectors_with_row_0_on_top():
    with styled():
        ax = new_axes(2, 2)
        draw_cells(ax, np.array([[0.0, 1.0], [np.nan, 0.5]]), vmin=0, vmax=1, cmap="gray")
        svg = figure_svg(ax.figure)
    assert "<image" not in svg
    cells = svg[svg.index("QuadMesh") : svg.index("axis_1")]
    assert re.findall(r"(fill|stroke): (none|#\w+)", cells) == [
        ("stroke", "#000000"),  # black is what an SVG fills with unless told
        *(("fill", "#ffffff"), ("stroke", "#ffffff"), ("fill", "none"), ("fill", "#808080"), ("stroke", "#808080")),
    ]
    assert ax.get_ylim() == (1.5, -0.5)
    mesh = ax.collections[0]
    np.testing.assert_array_equal(mesh.get_array().filled(-1), [[0, 1], [-1, 0.5]])
    np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [-0.5, 0.5, 1.5])


def test_a_shade_is_not_chosen_by_the_last_bit():
    def shades(values):
        ax = new_axes(2, 2)
        draw_cells(ax, values, vmin=0, vmax=1, cmap="viridis")
        mesh = ax.collections[0]
        mesh.update_scalarmappable()
        return mesh.get_facecolors()

    borders = np.arange(1, 256).reshape(15, 17) / 256
    np.testing.assert_array_equal(shades(borders), shades(np.nextafter(borders, 0)))


def test_no_date_no_version_no_address_but_namespaces(curve):
    svg = figure_svg(curve.figure())
    assert "Matplotlib" not in svg
    assert "metadata" not in svg
    assert set(re.findall(r"https?://[^\s\"']*", svg)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_svg_is_valid_and_its_ids_are_its_own(curve):
    svg = figure_svg(curve.figure(), 'a "label" <b>')
    assert ET.parse(io.StringIO(svg)).getroot().get("aria-label") == 'a "label" <b>'
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]*)\)", svg)) | set(re.findall(r'href="#([^"]*)"', svg))
    assert used
    assert used <= set(ids)
    other = figure_svg(curve.plot(linewidth=5).figure)
    assert not set(ids) & set(re.findall(r'\bid="([^"]*)"', other))


def test_text_and_label_stay_what_they_are():
    name = 'id="x url(#z) href="#q font-family: y; #20242b'
    figure = Figure()
    figure.text(0.5, 0.5, name)
    svg = figure_svg(figure, name)
    root = ET.parse(io.StringIO(svg)).getroot()
    assert root.get("aria-label") == name
    assert name in "".join(root.itertext())


def test_ink_follows_the_page_and_the_ground_is_transparent(curve):
    svg = figure_svg(curve.figure())
    assert "currentColor" in svg
    assert INK not in svg
    assert "#ffffff" not in svg
    assert "<style" not in svg


@pytest.mark.parametrize("ground", ["#ffffff", "#15181d"])
@pytest.mark.parametrize("color", [*PALETTE, GRAY])
def test_colors_are_readable_on_white_and_on_dark(color, ground):
    light, dark = sorted([relative_luminance(color), relative_luminance(ground)], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_luminance_ends():
    assert relative_luminance("white") == pytest.approx(1)
    assert relative_luminance("black") == 0
    assert relative_luminance("#808080") == pytest.approx(0.2159, abs=1e-4)


def test_looks_differ_even_without_color():
    assert len({(look(i).marker, look(i).dash) for i in range(36)}) == 36


def test_the_bridge_turns_polars_into_lists_and_silences_one_warning_only():
    def draw(data, warning):
        warnings.warn("old ways", warning, stacklevel=1)
        return data

    assert seaborn_plot(draw, pl.DataFrame({"x": [1, 2]}), warning=Pandas4Warning) == {"x": [1, 2]}
    with pytest.raises(UserWarning, match="old ways"):
        seaborn_plot(draw, [1], warning=UserWarning)


def test_dollar_signs_are_text():
    frame = frame_of(("a0", {"name": "$x_1$"}, [1] * 4))
    figure = extrapolation_curve(frame, by="name").figure()
    assert isinstance(figure, Figure)
    assert "name=$x_1$" in figure_svg(figure)
