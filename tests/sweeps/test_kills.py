"""Sweeps that are killed at any instant, that share a folder, or that are stopped and wake up again.

The cases are in ``killing.py``, a process of its own that forks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killing.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_no_interruption_changes_a_byte(tmp_path: Path) -> None:
    counts = {"group": 20, "worker": 20, "coordinator": 3, "together": 3, "stopped": 4}
    command = [sys.executable, str(SCRIPT), str(tmp_path), *(f"{case}={count}" for case, count in counts.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["problems"] == [], done.stderr
    # The instants are spread over the time of a sweep, so most of them meet it at work.
    assert seen["group"]["killed in the middle"] >= 5
    assert seen["group"]["runs finished before"] >= 5
    assert seen["worker"]["killed"] >= 5
