"""What is installed: the wheel holds the package and nothing else, and works by itself."""

import json
import os
import re
import subprocess
import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import sparsity_lab
from sparsity_lab.cli import COMMANDS

ROOT = Path(__file__).parent.parent
STEM = f"sparsity_lab-{sparsity_lab.__version__}"


def told(*command: str, cwd: Path, path: Path | None = None) -> str:
    """What Python says to a command, with the folder ``path`` before all that is installed."""
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else dict(os.environ)
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, by the back end that the tests bring along."""
    folder = tmp_path_factory.mktemp("wheel")
    told("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (file,) = folder.iterdir()
    return file


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"{STEM}-py3-none-any.whl"
    package = ROOT / "sparsity_lab"
    expected = {file.relative_to(ROOT).as_posix() for file in package.rglob("*") if file.is_file()}
    expected = {name for name in expected if "__pycache__" not in name}
    assert {"sparsity_lab/py.typed", "sparsity_lab/analysis/report.css"} <= expected
    about = {f"{STEM}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    with ZipFile(wheel) as archive:
        assert set(archive.namelist()) == expected | about | {f"{STEM}.dist-info/licenses/LICENSE"}
        metadata = Parser().parsestr(archive.read(f"{STEM}.dist-info/METADATA").decode())
        commands = archive.read(f"{STEM}.dist-info/entry_points.txt").decode()
    assert metadata["Version"] == sparsity_lab.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"ray", "notebooks", "docs", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    assert "sparsity-lab = sparsity_lab.cli:main" in commands


SCRIPT = """
import sys
import sparsity_lab
from sparsity_lab.cli import run
assert sparsity_lab.__file__.startswith(sys.argv[1]), sparsity_lab.__file__
assert run(["list", "engine", "--json"]) == 0
short = "Training(steps=2, batch_size=4)", "Evaluation(lengths=[24], sequences=8)"
assert run(["train", "--task", "Planted", "--training", short[0], "--evaluation", short[1], "--json"]) == 0
assert run(["report", "runs", "--json"]) == 0
"""


def test_wheel_works_by_itself(wheel: Path, tmp_path: Path) -> None:
    """From the wheel's own files: a list, a run, and a report whose page has its style."""
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    said = told("-c", SCRIPT, str(tmp_path / "installed"), cwd=tmp_path, path=tmp_path / "installed")
    listed, trained, _ = (json.loads(line) for line in said.splitlines())
    assert "RayEngine" in listed["engine"]
    assert trained["status"] == "finished"
    style = (ROOT / "sparsity_lab" / "analysis" / "report.css").read_text().split("{")[0].strip()
    assert style in (tmp_path / "runs" / "report.html").read_text()


def test_license_is_the_whole_of_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text
    assert text.rstrip().endswith("limitations under the License.")
    assert [number for number in range(1, 10) if not re.search(rf"^   {number}\. ", text, re.MULTILINE)] == []


def test_citation_and_changelog_are_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == sparsity_lab.__version__
    assert cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    numbers = [identifier["value"] for work in cited["references"] for identifier in work["identifiers"]]
    assert {"arXiv:2502.16792", "arXiv:2501.13428", "arXiv:2506.21137", "arXiv:2309.12307"} <= set(numbers)
    for work in cited["references"]:
        # What the format demands of a reference.
        assert {"type", "title", "authors"} <= set(work)
    versions = re.findall(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == sparsity_lab.__version__


def test_changelog_names_every_command() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert [name for name in COMMANDS if f"`{name}`" not in text] == []
