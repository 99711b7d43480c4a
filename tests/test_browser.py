"""Tests in a browser are skipped where there is none, but never where they are asked for."""

import browser
import pytest


@pytest.mark.parametrize(("asked", "outcome"), [(True, pytest.fail.Exception), (False, pytest.skip.Exception)])
def test_without_a_browser(monkeypatch: pytest.MonkeyPatch, asked: bool, outcome: type[BaseException]) -> None:
    monkeypatch.setattr(browser, "PROGRAM", None)
    monkeypatch.delenv("CI", raising=False)
    if asked:
        monkeypatch.setenv("CI", "true")
    with pytest.raises(outcome, match="no Chromium on this machine"), browser.chromium():
        pass
