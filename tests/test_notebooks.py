"""The notebooks: every source runs in its small size, one of them in a real kernel, and what is committed beside the
sources is what they say."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jupytext
import nbformat
import pytest
from browser import Opened

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("[0-9]*.py"))

SVG = "{http://www.w3.org/2000/svg}"
TITLE = re.compile(r"font-weight: 700; font-size: 10\.5px")
"""How the lines of a title are drawn."""

RUN_ALL = """
import runpy, sys, traceback
failed = []
for source in sys.argv[1:]:
    try:
        runpy.run_path(source)
    except Exception:
        traceback.print_exc()
        failed.append(source)
sys.exit(", ".join(failed) or None)
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The folder of notebooks where runs may be left, and in whose name settings may be registered."""
    ignored = shutil.ignore_patterns("runs", "*.ipynb", ".ipynb_checkpoints", "__pycache__")
    return Path(shutil.copytree(NOTEBOOKS, tmp_path / "notebooks", ignore=ignored))


def smoke_environment() -> dict[str, str]:
    return os.environ | {"SPARSITY_LAB_SMOKE": "1", "MPLBACKEND": "agg"}


@pytest.mark.slow
def test_every_source_runs_in_its_small_size(copied: Path) -> None:
    """As scripts in one process, since starting a kernel for each would take most of the time."""
    command = [sys.executable, "-c", RUN_ALL, *(source.name for source in SOURCES)]
    done = subprocess.run(
        command, cwd=copied, env=smoke_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_notebook_runs_in_a_kernel_and_shows_its_progress(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", smoke_environment())
    monkeypatch.syspath_prepend(str(copied))
    import execute  # noqa: PLC0415

    begun = time.perf_counter()
    notebook = execute.execute(copied / "02_length_generalization.py", copied)
    assert time.perf_counter() - begun < 120
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pages = ["".join(output["data"].get("text/html", "")) for output in outputs if "data" in output]
    assert any("<progress" in page and "5 of 5 runs" in page for page in pages)
    assert any('<img alt="' in page for page in pages)
    assert not any("<svg" in page for page in pages)
    assert not any("<script" in page for page in pages)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_figures_are_images_that_an_untrusted_notebook_shows(source: Path) -> None:
    """JupyterLab removes SVG elements from the pages of a notebook that it does not trust, as a fresh clone is."""
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not any("<svg" in data.get("text/html", "") or "image/svg+xml" in data for data in shown)
    assert not any("image/png" in data for data in shown), "a figure without words: see `figure_image`"
    for page in (data["text/html"] for data in shown if "<img" in data.get("text/html", "")):
        for image in re.findall(r"<img [^>]*>", page):
            url = re.search(r'src="data:image/svg\+xml;base64,([^"]*)"', image)
            assert url
            root = ElementTree.fromstring(base64.b64decode(url[1]))
            assert root.tag == f"{SVG}svg"
            assert int(root.get("width", "0")) > 200
            alt = re.search(r'alt="([^"]{5,})"', image)
            assert alt
            # Matplotlib writes each line of a title as a text of its own.
            lines = [text.text or "" for text in root.iter(f"{SVG}text") if TITLE.search(text.get("style") or "")]
            assert len(lines) <= 2
            assert unescape(alt[1]).startswith(" ".join(lines).removesuffix(" …"))


@pytest.mark.committed
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_committed_notebook_is_its_source_executed(source: Path) -> None:
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    wanted = [(cell.cell_type, cell.source) for cell in jupytext.read(source).cells]
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == wanted, "run `make notebooks`"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert any(output.get("data", {}).get("text/html") for cell in code for output in cell.outputs)


OUTPUTS = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Outputs</title>
<meta name="viewport" content="width=device-width">
<style>@media (prefers-color-scheme: dark) {{ body {{ background: #111111; color: #e6e6e6; }} }}</style></head>
<body><main><h1>Outputs</h1>{}</main></body></html>"""
WINDOWS = ((400, True), (1000, False), (1600, True))


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(SOURCES)), ids=lambda place: SOURCES[place].stem)
def test_outputs_in_a_browser(browser: Any, tmp_path: Path, place: int) -> None:
    """Without JupyterLab's own page around them. As there, what is wide scrolls in its box. The notebooks take turns
    in three windows."""
    notebook = nbformat.read(SOURCES[place].with_suffix(".ipynb"), as_version=4)
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    boxes = "\n".join(f'<div style="overflow-x: auto" tabindex="0">{page}</div>' for page in pages)
    (tmp_path / "outputs.html").write_text(OUTPUTS.format(boxes), encoding="utf-8")
    width, dark = WINDOWS[place % len(WINDOWS)]
    opened = Opened(browser, tmp_path / "outputs.html", width, dark=dark)
    opened.check()
    opened.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab that has never run, on a copy of the notebooks: it trusts none of them. It has no
    kernels, and draws all cells of a notebook, also those out of sight."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    for source in SOURCES:
        shutil.copy(source.with_suffix(".ipynb"), home / "notebooks")
    tracker = home / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({"windowingMode": "none"}))
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "HOME")
    own = {name: str(home / name) for name in folders} | {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = (
        "--no-browser", "--allow-root", f"--port={port}", "--port-retries=0", "--IdentityProvider.token=",
        f"--notebook-dir={home / 'notebooks'}", "--KernelSpecManager.allowed_kernelspecs=none",
    )  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", *options]
    with (
        (home / "log").open("w") as log,
        subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log) as lab,
    ):
        while lab.poll() is None and not _answers(port):
            time.sleep(0.2)
        assert lab.poll() is None, (home / "log").read_text()
        yield f"http://127.0.0.1:{port}"
        lab.kill()


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


SHOWN = """async () => {
  const images = Array.from(document.querySelectorAll(".jp-OutputArea-output img"));
  await Promise.all(images.map((image) => image.decode()));
  return images.map((image) => [image.alt, image.naturalWidth, image.getBoundingClientRect().width]);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_jupyterlab_shows_every_figure_of_a_fresh_clone(browser: Any, lab: str, source: Path) -> None:
    """Which it does not trust."""
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    pages = [
        output.data.get("text/html", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "data" in output
    ]
    wanted = [alt for page in pages for alt in re.findall(r'<img alt="([^"]*)"', page)]
    opened = Opened(browser, f"{lab}/doc/tree/{source.with_suffix('.ipynb').name}", 1000)
    cells = len(notebook.cells)
    opened.page.wait_for_function(f"document.querySelectorAll('.jp-Notebook .jp-Cell').length === {cells}")
    shown = opened.page.evaluate(SHOWN)
    assert [escape(alt) for alt, *_ in shown] == wanted
    assert all(own > 0 and seen > 100 for _, own, seen in shown), shown
    tables = sum(page.count("<table") for page in pages)
    assert opened.page.locator(".jp-OutputArea-output table").count() == tables
    assert [words for words in opened.said if re.search("error|not loaded", words, re.IGNORECASE)] == []
    opened.close()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_notebook_says_how_long_it_takes(source: Path) -> None:
    first = jupytext.read(source).cells[0].source
    assert re.search(r"^This notebook takes [a-z ]+ minutes? on two idle cores\.$", first, re.MULTILINE)
