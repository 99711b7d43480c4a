"""The documentation site builds without a warning, and would not with a broken link or name."""

import json
import re
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest
from browser import Opened, chromium

ROOT = Path(__file__).parent.parent
PROGRAM = Path(sys.executable).parent
sys.path.insert(0, str(ROOT / "docs"))


def build(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """As ``make docs`` builds it."""
    command = [PROGRAM / "sphinx-build", "-W", "--keep-going", "-n", "-q", "-b", "html", *options, source, out]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """Without a warning; it has a page for everything that is registered, and loads nothing from elsewhere.
    Some of its pages, one of them a notebook, are looked at in a browser."""
    import sparsity_lab.generators  # noqa: PLC0415
    import sparsity_lab.kernels  # noqa: PLC0415, F401  (both register what is listed)
    from sparsity_lab.settings import kinds  # noqa: PLC0415

    done = build(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr
    kernels = [kind for kind, kernel in kinds("kernel").items() if kernel.__module__.startswith("sparsity_lab.")]
    for kind in kernels:
        text = (tmp_path / "generated" / "kernels" / f"{kind}.html").read_text(encoding="utf-8")
        assert "<svg" in text, kind
        assert "Cost" in text
    gallery = (tmp_path / "generated" / "tasks.html").read_text(encoding="utf-8")
    # Other tests in this process register tasks of their own.
    tasks = [task for task in kinds("task").values() if task.__module__.startswith("sparsity_lab.")]
    assert gallery.count('class="sequence"') == len(tasks)
    assert (tmp_path / "generated" / "notebooks" / "01_planted_correlations.html").is_file()
    assert "130" in (tmp_path / "command_line.html").read_text(encoding="utf-8")
    for page in tmp_path.rglob("*.html"):
        loads = re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", page.read_text(encoding="utf-8"))
        assert not [load for load in loads if re.search(r"""(src|href)=["'](https?:)?//""", load)], page.name
    with chromium() as browser:
        for name, width, dark in SEEN:
            opened = Opened(browser, tmp_path / f"{name}.html", width, dark=dark)
            opened.check()
            boxes = opened.page.evaluate(BOXES)
            assert not [words for words, place in boxes if place != 0], "out of reach of the keyboard"
            assert not [words for words, _ in boxes if width >= 1000 and "table-wrapper" in words], "a table too wide"
            opened.close()


BOXES = """() => Array.from(document.querySelectorAll("article :is(.table-wrapper, .scroll, p, pre)"))
  .filter((box) => box.scrollWidth > box.clientWidth + 1)
  .map((box) => [`${box.className}: ${box.textContent.trim().slice(0, 60)}`, box.tabIndex])"""
"""What scrolls sideways, and its place in the order of the keyboard."""


SEEN = [
    ("index", 400, True),
    ("index", 1000, False),
    ("index", 1600, True),
    ("generated/claims", 1600, True),
    ("generated/claims", 400, False),
    ("generated/field", 1000, False),
    ("generated/field", 400, True),
    ("concepts", 400, False),
    ("kernels", 1000, False),
    ("kernels", 400, True),
    ("papers", 1000, False),
    ("generated/kernels/AdaptiveSparse", 1000, False),
    ("generated/notebooks/03_attention_kernels", 400, True),
]
"""Pages that are also looked at in a browser: page, width, and whether it is dark."""


def test_parameters_of_a_long_signature_are_a_list() -> None:
    import conf  # noqa: PLC0415

    def parameters(outer: str, inner: str, attributes: str = "") -> str:
        each = (f'<{inner}><em class="sig-param">{name}</em>,</{inner}>' for name in ("a", "b"))
        return f"<{outer}{attributes}>\n{''.join(each)}</{outer}>"

    terms = "<dl><dt>a word</dt><dd>what it means</dd></dl>"
    page = terms + parameters("dl", "dd") + terms
    assert conf.listed(page) == terms + parameters("ul", "li", ' class="parameters"') + terms


def test_names_that_are_described_together_stay_together() -> None:
    from pages import docstrings  # noqa: PLC0415

    lines = ["Args:", "    low, high: the smallest, then the largest: both count.", "    k: one, two: three."]
    docstrings.as_markup(None, "class", "", None, None, lines)
    assert lines == ["Args:", "    low,high: the smallest, then the largest: both count.", "    k: one, two: three."]


def test_code_in_tables_breaks_between_words() -> None:
    import conf  # noqa: PLC0415

    def cell(code: str) -> str:
        return f'<td><code><span class="pre">{code}</span></code></td>'

    seen = "experiments/|softplus_|extrapolation", "Adaptive|Sparse(|block_|size=64,", "--budget", "RoPE", "k_free"
    for code in seen:
        assert conf.breakable(cell(code.replace("|", ""))) == cell(code.replace("|", "<wbr>"))
    outside = '<p><code><span class="pre">experiments/recall</span></code></p>'
    assert conf.breakable(outside) == outside


BROKEN = {
    "page": "[gone](missing.md)",
    "section": "[gone](index.md#no-such-section)",
    "name": "{py:obj}`sparsity_lab.kernels.Sofmax`",
    "picture": "![gone](no.png)",
}


def test_broken_links_fail_the_build(tmp_path: Path) -> None:
    """With the site's own settings, on pages of one line each."""
    settings = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    settings = settings.replace("Path(__file__).parent", f"Path({str(ROOT / 'docs')!r})")
    settings = re.sub(r"    app\.connect\(\"builder-inited\".*\n", "", settings)
    (tmp_path / "conf.py").write_text(settings.replace('html_static_path = ["static"]', ""))
    for name, text in BROKEN.items():
        (tmp_path / f"{name}.md").write_text(f"# A page\n\n{text}\n")
    pages = "\n".join(BROKEN)
    (tmp_path / "index.md").write_text(f"# Start\n\n```{{toctree}}\n{pages}\n```\n")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    for name in BROKEN:
        assert f"{name}.md" in done.stderr, f"a broken {name} was not seen"


def test_headlines_and_claims_are_those_of_the_records(tmp_path: Path) -> None:
    """Every claim of every study stands on the page of all claims with its verdict, and each verdict comes with its
    estimate and what was asked of it."""
    from pages import results  # noqa: PLC0415

    made = results.pages(ROOT / "docs")
    rows = re.findall(r"<tr data-verdict=.*?</tr>", made["claims.md"])
    records = [json.loads(file.read_text(encoding="utf-8")) for file in ROOT.glob("experiments/*/result.json")]
    claims = [claim for record in records for claim in record["claims"]]
    for claim in claims:
        (row,) = [row for row in rows if escape(claim["statement"]) in row and claim["verdict"] in row]
        assert f'data-verdict="{claim["verdict"]}"' in row
        assert escape(results.threshold(claim)) in row
        if claim["estimate"] is not None:
            assert f"{claim['estimate']:.3f}" in row
    cards = re.findall(r'<section class="card">.*?</section>', made["headlines.md"])
    assert len(cards) == len(results.HEADLINES) + len(results.EXACT)
    headlines = [claim for claim in claims if claim["id"].startswith("headline_")]
    for claim in headlines:
        (card,) = [card for card in cards if escape(claim["statement"]) in card]
        assert f">{claim['verdict']}</strong> {escape(claim['statement'])}" in card
        assert f"{claim['estimate']:.2f} [{claim['low']:.2f}, {claim['high']:.2f}]" in card


def test_papers_name_place_command_cost_and_differences() -> None:
    """No cost or budget is below what the committed runs of the study took."""
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ") for line in text.splitlines() if "`sparsity-lab decide experiments/" in line
    ]
    assert len(rows) > 8
    for _, where, _, command, cost, differences in rows:
        study, budget = re.fullmatch(r"`sparsity-lab decide experiments/(\w+) --budget (\d+)`", command).groups()  # type: ignore[union-attr]
        record = ROOT / "experiments" / study / "result.json"
        spent = json.loads(record.read_text())["run"]["core_minutes"] if record.is_file() else 0
        assert spent <= int(cost.split(",")[0]) <= int(budget), study
        assert record.is_file() or cost.endswith(", estimated"), study
        assert where
        assert differences


def test_commands_name_studies_that_exist() -> None:
    """In all pages and notebooks; a name with a dot is a file that the reader makes."""
    sources = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/**/*.md")]
    sources += ROOT.glob("notebooks/*.py")
    texts = [file.read_text(encoding="utf-8") for file in sources if "generated" not in file.parts]
    named = {name for text in texts for name in re.findall(r"sparsity-lab (?:sweep|decide) ([\w/.]+)", text)}
    assert len(named) > 10
    assert [name for name in named if "." not in name and name.islower() and not (ROOT / name).is_dir()] == []


def test_every_promise_names_a_test_that_exists() -> None:
    """The last cell of each row of promises names tests; ``::name`` is in the file named before it."""
    page = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| promise \| test \|\n\|.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert len(tables) == 2
    file = ROOT
    for row in "".join(tables).splitlines():
        *_, cell = row.rstrip("| ").split(" | ")
        named = re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", cell)
        assert any(any(one) for one in named), row
        for path, name in named:
            file = ROOT / path if path else file
            assert f"\ndef {name}" in file.read_text(encoding="utf-8"), (file.name, name)
