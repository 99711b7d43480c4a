"""Pages in a real browser: what it says on its console, what is cut off, and what a screen reader would miss."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

CUT_OFF = """() => {
  const found = [];
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) found.push(`page: ${wide} wide`);
  // The site's theme scrolls its whole article sideways rather than the page.
  for (const one of document.querySelectorAll(".content")) {
    if (one.scrollWidth > one.clientWidth + 1) found.push(`article: ${one.scrollWidth} in ${one.clientWidth}`);
  }
  for (const text of document.querySelectorAll("svg text")) {
    const own = text.getBoundingClientRect(), canvas = text.ownerSVGElement.getBoundingClientRect();
    if (!own.width) continue;
    const out = [canvas.left - own.left, own.right - canvas.right, canvas.top - own.top, own.bottom - canvas.bottom];
    if (Math.max(...out) > 2) found.push(`svg: ${text.textContent.trim()} (${out.map(Math.round)})`);
  }
  for (const one of document.querySelectorAll("h1, h2, h3, p, li, td, th, figcaption, summary, button, label")) {
    const style = getComputedStyle(one);
    if (style.overflowX === "hidden" && one.scrollWidth > one.clientWidth + 1) found.push(`text: ${one.textContent}`);
  }
  return found;
}"""
"""What lies outside of its canvas, its box or the window."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright's; a test is skipped where there is none, and fails where ``CI`` is set."""
    if PROGRAM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine, and CI is set")
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Opened:
    """A page in a window of this width, and what the browser said of it."""

    def __init__(self, browser: Any, page: Path | str, width: int, *, dark: bool = False) -> None:
        scheme = "dark" if dark else "light"
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("requestfailed", lambda request: self.said.append(f"not loaded: {request.url}"))
        self.page.goto(page.as_uri() if isinstance(page, Path) else page)

    def check(self) -> None:
        """Nothing on the console, nothing cut off, no finding of axe that is serious or critical."""
        from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415

        assert self.said == []
        assert self.page.evaluate(CUT_OFF) == []
        found = Axe().run(self.page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in serious] == []

    def close(self) -> None:
        """Close the page."""
        self.page.close()
