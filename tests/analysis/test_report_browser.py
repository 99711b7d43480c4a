"""The report in a real browser, where there is one: it loads without errors, fits narrow and wide windows, sorts its
tables, and shows the values of its curves."""

from pathlib import Path
from typing import Any

import pytest
from analysis.synthetic import results_of
from analysis.test_report import position, token
from browser import Opened

from sparsity_lab.analysis import write_report
from sparsity_lab.analysis.report.page import Section
from sparsity_lab.generators import Anchored, Recent
from sparsity_lab.settings.markup import table

ACTS = """() => {
const table = Array.from(document.querySelectorAll("#evaluation table"))[0];
table.closest("details").open = true;
const headings = Array.from(table.tHead.rows[0].cells);
const at = headings.findIndex((heading) => heading.textContent === "normalized accuracy");
const column = () => Array.from(table.tBodies[0].rows, (row) => row.cells[at].textContent);
const seen = { before: column() };
headings[at].click();
seen.rising = column();
headings[at].dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
seen.falling = column();
const box = document.querySelector(".value");
seen.hidden = box.hidden;
const points = document.querySelectorAll("#curves circle.point");
seen.points = points.length;
points[0].scrollIntoView();
points[0].dispatchEvent(new PointerEvent("pointerenter"));
seen.value = box.hidden ? null : box.textContent;
const place = box.getBoundingClientRect();
seen.inside = place.left >= 0 && place.right <= innerWidth;
const disc = points[0].getBoundingClientRect();
const svg = points[0].closest("svg").getBoundingClientRect();
seen.drawn = disc.left > svg.left && disc.right < svg.right && disc.top > svg.top && disc.bottom < svg.bottom;
points[0].dispatchEvent(new PointerEvent("pointerleave"));
seen.gone = box.hidden;
seen.width = innerWidth;
seen.needed = document.documentElement.scrollWidth;
seen.small = Array.from(document.querySelectorAll("p, li, td, th, summary, svg text"))
  .filter((one) => one.textContent.trim() && one.getClientRects().length)
  .map((one) => {
    const drawing = one.closest("svg");
    const scale = drawing ? drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width : 1;
    return scale * Number.parseFloat(getComputedStyle(one).fontSize);
  })
  .reduce((least, size) => Math.min(least, size), 99);
return seen;
}"""
"""Sort a table, point at a mark, and say what was seen."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [(token(1, seed), [1, 1, 1, 1]) for seed in (0, 1)]
    runs += [(token(2, seed), [1, 1, 0.8, 0.4 + 0.1 * seed]) for seed in (0, 1)]
    runs += [(position(Recent(width=8), seed), [1, 1, 0.9, 0.8]) for seed in (0, 1)]
    runs += [(position(Anchored(width=8), seed), [1, 1, 0.2, -0.05]) for seed in (0, 1)]
    claim = (
        "Coupled IDs predict better than RoPE where three places decide. " * 3,
        "held",
        "1.0 of the seeds",
        7,
        109.0,
    )
    decided = Section("decided", "Decided", table(["claim", "verdict", "estimate", "seeds", "e-value"], [claim]))
    return write_report(results_of(runs), tmp_path_factory.mktemp("report") / "report.html", first=decided)


@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_works(browser: Any, page: Path, width: int) -> None:
    opened = Opened(browser, page, width)
    seen = opened.page.evaluate(ACTS)
    assert opened.said == []
    opened.close()
    numbers = [float(text.replace("−", "-")) for text in seen["before"]]
    assert [float(text.replace("−", "-")) for text in seen["rising"]] == sorted(numbers) != numbers
    assert [float(text.replace("−", "-")) for text in seen["falling"]] == sorted(numbers, reverse=True)
    assert seen["hidden"]
    assert seen["points"] == 16  # four arms at four lengths
    assert seen["value"] == "k=1, length 8: 1.00 [1.00, 1.00], 2 runs"
    assert seen["inside"]
    assert seen["drawn"]
    assert seen["gone"]
    assert seen["width"] == width
    assert seen["needed"] <= width, "the page is wider than its window"
    assert seen["small"] >= 8, "text too small to read"


def test_a_broken_script_would_be_seen(browser: Any, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = text.replace(
        'document.addEventListener("scroll"', 'nothing.there;\ndocument.addEventListener("scroll"', 1
    )
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    opened = Opened(browser, tmp_path / "broken.html", 1600)
    assert opened.said == ["nothing is not defined"]
    opened.close()


@pytest.mark.parametrize(("width", "dark"), [(400, True), (1000, False), (1600, True)])
def test_nothing_is_cut_off_and_screen_readers_find_names(browser: Any, page: Path, width: int, dark: bool) -> None:
    opened = Opened(browser, page, width, dark=dark)
    opened.check()
    tables = "document.querySelectorAll('#decided .scroll, #summary .scroll')"
    cut = f"Array.from({tables}, (one) => one.scrollWidth - one.clientWidth)"
    assert width < 1000 or max(opened.page.evaluate(cut)) <= 0, "the last column of a table"
    mark = opened.page.evaluate("getComputedStyle(document.querySelector('th[tabindex]'), '::after').content")
    assert "↕" in mark, "a heading that sorts looks like one"
    opened.close()
