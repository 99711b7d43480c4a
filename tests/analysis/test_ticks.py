import itertools

import pytest
from analysis.synthetic import frame_of

from sparsity_lab.analysis import extrapolation_curve
from sparsity_lab.analysis.style import new_axes, styled
from sparsity_lab.analysis.ticks import fitting


def test_labels_keep_their_distance():
    places, widths = [0, 10, 50, 90, 100], [8] * 5
    assert fitting(places, widths, gap=4) == {0, 2, 4}
    assert fitting(places, widths, gap=1) == {0, 1, 2, 3, 4}
    # Wider labels need more room.
    assert fitting(places, [8, 8, 80, 8, 8], gap=1) == {0, 1, 3, 4}
    assert fitting([5], [8], gap=1) == {0}
    assert fitting([], [], gap=1) == set()


def test_the_ends_come_first_then_what_is_to_be_kept_then_the_larger():
    assert fitting([0, 20, 25, 100], [8] * 4, gap=1) == {0, 2, 3}
    assert fitting([0, 20, 25, 100], [8] * 4, gap=1, keep=[1]) == {0, 1, 3}


@pytest.mark.parametrize("width", [2.5, 4.9, 12])
def test_no_two_labels_touch_at_any_width_of_the_figure(width):
    lengths = (16, 24, 32, 48, 64, 96, 144, 192, 240, 1000, 1024)
    curve = extrapolation_curve(frame_of(("a0", {"task.k": 1}, [1] * 11), lengths=lengths))
    with styled():
        ax = curve.plot(new_axes(width, 4))
        figure = ax.get_figure(root=True)
        figure.canvas.draw()
        boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 3
    assert all(left.x1 + 2 < right.x0 for left, right in itertools.pairwise(boxes))
    assert {ax.get_xticklabels()[0].get_text(), ax.get_xticklabels()[-1].get_text()} == {"16", "1024"}
