"""The guides run as they stand, with fewer steps and sequences: the Python on each page, from top to bottom, in a
process of its own. What they show is what the notebook about own classes imports."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs" / "how_to").glob("*.md"))
SMALLER = {r"steps=\d+": "steps=2", r"sequences=\d+": "sequences=8"}


def code_of(guide: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", guide.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


FIRST, *OTHERS = (guide for guide in GUIDES if code_of(guide))


@pytest.mark.parametrize(
    "guide",
    [FIRST, *(pytest.param(guide, marks=pytest.mark.slow) for guide in OTHERS)],
    ids=lambda guide: guide.stem,
)
def test_the_code_on_the_page_runs(guide: Path, tmp_path: Path) -> None:
    code = "\n\n".join(code_of(guide))
    for size, smaller in SMALLER.items():
        code = re.sub(size, smaller, code)
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error", "page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_pages_use_public_names_alone(guide: Path) -> None:
    """``from sparsity_lab.<package> import ...``, never a module inside a package, nor what a class keeps private."""
    code = "\n".join(code_of(guide))
    assert re.findall(r"sparsity_lab\.\w+\.\w+", code) == []
    assert re.findall(r"(?<!self)\._[a-z]\w*", code) == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_page_shows_the_file_that_it_names(guide: Path) -> None:
    """Where the notebook about own classes imports the file."""
    text = guide.read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+\.py)`", text.split("```")[0]):
        file = ROOT / "notebooks" / "own" / name
        if file.is_file() and code_of(guide):
            assert code_of(guide)[0] == file.read_text(encoding="utf-8")
