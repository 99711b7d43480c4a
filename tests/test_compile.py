"""What ``tests/compiled/`` holds, in a process of its own, where signatures are not checked at run time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CASES = sorted(Path(__file__).with_name("compiled").glob("*.py"))


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_compiled(cases: Path) -> None:
    options = ["-q", "-x", "--show-capture=no", "-p", "no:cacheprovider"]
    options += ["-W", "ignore::DeprecationWarning"]  # of PyTorch's compiler itself
    command = [sys.executable, "-m", "pytest", *options, str(cases)]
    environment = {**os.environ, "SHAPES_UNCHECKED": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=cases.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
