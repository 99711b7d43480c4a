"""The house: imports point one way, and the page about it names what is there."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from architecture_picture import PICTURE, imported_names, imports, picture, rows  # noqa: E402

BELOW = {"settings": set(), "generators": {"settings"}, "kernels": {"settings"}, "models": {"kernels", "settings"}}
"""What the lowest packages may import."""

INTEROP = {"settings", "kernels", "models", "analysis"}
"""What may be imported by the package for models of others, which only the command line and benchmarks import."""


def test_imports_point_one_way() -> None:
    graph = imports()
    order = [name for names in rows(graph) for name in names]
    assert set(order) == set(graph)
    for name, allowed in BELOW.items():
        assert graph[name] <= allowed, f"{name} imports {graph[name] - allowed}"
    assert order[-1] == "cli"
    assert graph["interop"] <= INTEROP
    assert {name for name, others in graph.items() if "interop" in others} <= {"cli", "benchmarks"}
    assert not any(
        "experiments" in name for file in ROOT.glob("sparsity_lab/**/*.py") for name in imported_names(file)
    )


def test_a_circle_between_files_of_one_package_is_seen_too() -> None:
    """No two files of one package import each other, not even for annotations alone."""
    for package in imports():
        files = {
            ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imported_names(file)
            for file in (ROOT / "sparsity_lab" / package).rglob("*.py")
        }
        own = {name: {other for other in names if other in files and other != name} for name, names in files.items()}
        # An __init__ re-exports the files below it.
        rows({name: {other for other in others if not other.startswith(f"{name}.")} for name, others in own.items()})


def test_one_name_has_one_idea() -> None:
    """No two public classes of the package and the studies share a name."""
    files = [*ROOT.glob("sparsity_lab/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    places = defaultdict(list)
    for file in files:
        for name in re.findall(r"^class ([A-Z]\w*)", file.read_text(encoding="utf-8"), re.MULTILINE):
            places[name].append(str(file.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.committed
def test_the_page_names_every_package_and_the_picture_is_current() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## The house")[2].partition("\n## ")[0]
    assert set(re.findall(r"`sparsity_lab/(\w+)/`", table)) == set(imports())
    for folder, start in re.findall(r"^\| `([\w/]+)/` \|.*\| (`[^|]*`),? ?[^|]*\|$", table, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", start):
            assert (ROOT / folder / name).exists(), f"{folder}/{name}"
    assert PICTURE.read_text(encoding="utf-8") == picture(imports()), "run `make pictures`"


def test_the_command_that_draws_it(tmp_path: Path) -> None:
    before = PICTURE.read_bytes()
    subprocess.run([sys.executable, ROOT / "docs" / "architecture_picture.py"], check=True, cwd=tmp_path)
    assert PICTURE.read_bytes() == before
