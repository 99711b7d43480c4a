"""What objects show in a notebook: plain HTML that loads nothing, with what their text says, and their text with what
the HTML says."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sparsity_lab.analysis import drop, extrapolation_curve, heat_map
from sparsity_lab.generators import Planted, Recent, Stream, certify
from sparsity_lab.kernels import LSSAR
from sparsity_lab.models import Decoder
from sparsity_lab.sweeps import Results, Serial, Sweep, grid, run_sweep
from sparsity_lab.sweeps.live import _line
from sparsity_lab.training import Evaluation, FixedLength, Run, RunConfig, Training

IMAGE = "data:image/svg+xml;base64,"


class Page(HTMLParser):
    """Text, tags and addresses of a piece of HTML, checked for balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        loads = [str(value) for name, value in attrs if name in ("src", "href") and not str(value).startswith("#")]
        if tag != "img":
            self.open.append(tag)
        elif loads[0].startswith(IMAGE):
            # A figure: its text is text.
            self.words += Page(base64.b64decode(loads.pop().removeprefix(IMAGE)).decode()).words
        self.loads += loads

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def facts(text: str) -> set[str]:
    """Names and numbers in a text. Names of two letters at least: others are signs of a formula."""
    return set(re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?|[A-Za-z]\w+", text.replace("_", " ").replace("−", "-")))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    base = RunConfig(
        task=Planted(k=1, locality=Recent(width=4)),
        model=Decoder(num_layers=1, num_heads=1, d_model=8),
        training=Training(steps=2, batch_size=4, curriculum=FixedLength(length=6)),
        evaluation=Evaluation(lengths=(6, 12), sequences=8),
    )
    sweep = Sweep(name="small", runs=tuple(grid(base, {"task.k": [1, 2]})))
    return run_sweep(sweep, tmp_path_factory.mktemp("runs"), Serial())


@pytest.fixture(scope="module")
def objects(results: Results) -> dict[str, Any]:
    task = Planted(k=2, coupled=True)
    run = Run.load(results.folder / results.runs[0].id)
    return {
        "task": task,
        "decoder": Decoder(kernel=(LSSAR(p=3), LSSAR())),
        "run config": run.config,
        "batch": task.sample(Stream(), 0, 8, 10),
        "truth": task.truth(10),
        "certificate": certify(Planted(k=1), sequences=1000, lengths=(6,)),
        "run": run,
        "variant": run.with_kernel(LSSAR()),
        "sweep": results.sweep,
        "results": results,
        "curve": extrapolation_curve(results, measure="accuracy", only_learned=False),
        "drop": drop(results, factor=2, measure="accuracy"),
        "heat map": heat_map(results, measure="accuracy", length=12),
    }


NAMES = ("task", "decoder", "run config", "batch", "truth", "certificate", "run", "variant", "sweep", "results",
         "curve", "drop", "heat map")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_page_needs_nothing_and_says_what_the_text_says(objects: dict[str, Any], name: str) -> None:
    one = objects[name]
    page = Page(one._repr_html_())
    assert "script" not in page.tags
    assert not any(str(load).startswith(("http", "//")) for load in page.loads)
    shown = facts(" ".join(page.words))
    missing = {word for word in facts(str(one) if name in ("task", "decoder") else repr(one)) if word not in shown}
    # Names of fields and classes that Python's own form has.
    spoken = {"Setting", "FrozenMapping", "True", "False", "None", "at", "lengths", "to", "Config"}
    assert missing - spoken <= set(re.findall(r"[A-Z]\w+", repr(one)))


@pytest.mark.parametrize("name", ["batch", "truth", "certificate", "results"])
def test_the_text_says_what_the_page_says(objects: dict[str, Any], name: str) -> None:
    one = objects[name]
    told = facts(repr(one))
    legend = {"source", "answer", "query", "cue", "other", "declared", "run", "runs", "id", "status", "reach", "or",
              "why", "there", "is", "none", "check", "tests", "smallest", "more", "sequences"}  # fmt: skip
    assert facts(" ".join(Page(one._repr_html_()).words)) - told <= legend


def test_fields_that_differ_from_their_defaults_stand_out() -> None:
    page = Planted(k=2)._repr_html_()
    assert "<b>k</b>" in page
    assert "<b>noise</b>" not in page


def test_texts_are_escaped(tmp_path: Path) -> None:
    sweep = Sweep(name="<script>x</script>", runs=(RunConfig(task=Planted()),))
    assert "script" not in Page(sweep._repr_html_()).tags
    assert "script" not in Page(Results(tmp_path, sweep)._repr_html_()).tags


def test_a_line_of_progress_is_plain_html() -> None:
    page = Page(_line("3 of 4 runs; failed: <a>", 3, 4, ["failed: b"]))
    assert page.tags == {"div", "progress"}
    assert "<a>" in "".join(page.words)
