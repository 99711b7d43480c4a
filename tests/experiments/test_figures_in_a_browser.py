"""The figures of the studies in a real browser: no text outside of its canvas."""

from pathlib import Path
from typing import Any

import pytest
from browser import CUT_OFF

FIGURES = sorted((Path(__file__).parents[2] / "experiments").glob("*/result.svg"))


def outside(browser: Any, drawing: str) -> list[str]:
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.set_content(f"<body>{drawing}")
    found: list[str] = page.evaluate(CUT_OFF)
    page.close()
    return found


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.parent.name)
def test_no_text_is_cut_off(browser: Any, figure: Path) -> None:
    assert outside(browser, figure.read_text(encoding="utf-8")) == []


def test_text_outside_would_be_seen(browser: Any) -> None:
    drawing = '<svg viewBox="0 0 100 20" width="100"><text x="80" y="10">too long for this</text></svg>'
    assert outside(browser, drawing)[0].startswith("svg: too long for this")
