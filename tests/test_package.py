"""What is installed: the wheel holds the package and nothing else, and works by itself."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

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
    assert {"sparsity_lab/py.typed", "sparsity_lab/analysis/report/page.css"} <= expected
    about = {f"{STEM}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    with ZipFile(wheel) as archive:
        assert set(archive.namelist()) == expected | about | {f"{STEM}.dist-info/licenses/LICENSE"}
        about_it = Parser().parsestr(archive.read(f"{STEM}.dist-info/METADATA").decode())
        commands = archive.read(f"{STEM}.dist-info/entry_points.txt").decode()
    assert about_it["Version"] == sparsity_lab.__version__
    assert about_it["License-Expression"] == "Apache-2.0"
    assert {"ray", "transformers", "notebooks", "docs", "dev"} <= set(about_it.get_all("Provides-Extra", []))
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
    style = (ROOT / "sparsity_lab" / "analysis" / "report" / "page.css").read_text().split("{")[0].strip()
    assert style in (tmp_path / "runs" / "report.html").read_text()


def requirements(name: str, extras: tuple[str, ...] = ("",)) -> set[str]:
    """The installed distributions that one needs, directly or not, by their canonical names; no extras but those that
    are asked for."""
    found: set[str] = set()
    waiting = [(name, extras)]
    while waiting:
        of, own = waiting.pop()
        for text in metadata.requires(of) or ():
            needed = Requirement(text)
            wanted = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in own)
            if wanted and canonicalize_name(needed.name) not in found:
                found.add(canonicalize_name(needed.name))
                waiting.append((needed.name, ("", *needed.extras)))
    return found


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Path:
    """An environment with the wheel and what it requires, linked from where the tests have it, and nothing else."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    told("-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q", str(wheel), cwd=tmp_path)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in requirements("sparsity-lab"):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


@pytest.mark.slow
def test_wheel_in_an_empty_environment(environment: Path, tmp_path: Path) -> None:
    """Away from the clone, which cannot be imported there: a list, sequences, a certificate, the demo, and a study of
    one's own. What only the tests or the documentation need is not there either."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(ROOT / "experiments" / "sparse_parity" / "study.py", tmp_path / "elsewhere" / "my_study.py")

    def run(program: str, *arguments: str) -> str:
        command = [environment / "bin" / program, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path / "elsewhere", env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("python", "-c", "import sparsity_lab; print(sparsity_lab.__file__)").startswith(str(environment))
    paths = json.loads(run("python", "-c", "import sys, json; print(json.dumps(sys.path))"))
    assert not [path for path in paths if Path(path).resolve().is_relative_to(ROOT) and path]
    absent = ["pytest", "sphinx", "ray", "transformers", "experiments"]
    found = f"from importlib.util import find_spec; print([one for one in {absent} if find_spec(one)])"
    assert run("python", "-c", found) == "[]\n"
    assert "Planted" in json.loads(run("sparsity-lab", "list", "--json"))["task"]
    assert run("sparsity-lab", "sample", "Planted(k=2)", "--length", "8", "--count", "3").count("BOS") == 3
    certified = json.loads(run("sparsity-lab", "certify", "Planted", "--sequences", "3000", "--json"))
    assert certified["certificates"][0]["passed"]
    demo = json.loads(run("sparsity-lab", "demo", "--size", "smoke", "--workers", "1", "--json"))
    assert (tmp_path / "elsewhere" / demo["report"]).is_file()
    assert run("sparsity-lab", "sweep", "my_study.py", "--size", "smoke", "--workers", "1", "--json")


def test_every_pinned_package_installs_on_the_oldest_python() -> None:
    """Distributions ship an early 3.11: a pin that needs a later patch release cannot be installed there."""
    oldest = "3.11.0"
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    needed = {}
    for name, version in pins.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.version.split("+")[0] == version:
            needed[name] = installed.metadata.get("Requires-Python") or ""
    assert len(needed) > 100
    assert {name: text for name, text in needed.items() if oldest not in SpecifierSet(text)} == {}


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
        assert len(work["title"].split()) > 4, "the whole title"
        assert all({"family-names", "given-names"} <= set(author) for author in work["authors"])
    versions = re.findall(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == sparsity_lab.__version__


def test_changelog_names_every_command() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert [name for name in COMMANDS if f"`{name}`" not in text] == []
