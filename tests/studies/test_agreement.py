"""What is the same on every processor, and what is not."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from sparsity_lab.analysis import figure_svg
from sparsity_lab.analysis.style import styled
from sparsity_lab.studies.agreement import agree


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("| 0.125 [−0.010, 0.260] |", "| 0.126 [−0.011, 0.260] |", True),
        ("| 0.125 |", "| 0.127 |", False),
        ("| 0.125 |", "| −0.125 |", False),
        ("it was 0.999.", "it was 1.000.", True),
        ("L 12.5 13", "L 12.499999 12.999999", True),
        ("L 12.5 13", "L 12.499997 13", False),
        ("L 12.5 13", "L 12.5 14", False),
        ("3 seeds", "4 seeds", False),
        ("held", "did not hold", False),
        ("#0072b2", "#0072b3", False),
        ("torch 2.13.0", "torch 2.13.1", False),
        ("k1.25", "k1.26", False),
        ('<g id="fa-m1"/><use href="#fa-m1"/>', '<g id="fb-m2"/><use href="#fb-m2"/>', True),
        ('<g id="a"/><g id="b"/><use href="#b"/>', '<g id="a"/><g id="b"/><use href="#a"/>', False),
        ("a 0.1", "a 0.1 0.1", False),
    ],
)
def test_agreement(one: str, other: str, same: bool) -> None:
    assert agree(one, other) is same
    assert agree(other, one) is same


def drawn(values: np.ndarray) -> str:
    with styled():
        figure = Figure()
        figure.subplots().plot(values, marker="o")
        return figure_svg(figure, "a curve")


def test_figures_agree_whose_last_bits_differ() -> None:
    values = np.random.default_rng(0).random(200)
    other = np.nextafter(values, 2)
    assert agree(drawn(values), drawn(other))
    assert agree(drawn(values), drawn(values * (1 + 1e-9)))
    assert not agree(drawn(values), drawn(values * (1 + 1e-3)))
