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


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_no_interruption_changes_a_byte(tmp_path: Path) -> None:
    counts = {"group": 20, "worker": 20, "coordinator": 3, "together": 3, "stopped": 4}
    command = [sys.executable, str(SCRIPT), str(tmp_path), *(f"{case}={count}" for case, count in counts.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["problems"] == [], done.stderr
    # The instants are spread over what a sweep does. The first may come before a run, or a worker, has begun, and the
    # last after all are over; two processes may do some more or less, so that the very last never comes.
    assert seen["group"]["killed"] >= 19
    assert seen["group"]["killed in the middle"] >= 16
    assert seen["group"]["runs finished before"] >= 20
    assert seen["worker"]["killed"] >= 18
    assert seen["coordinator"]["killed"] == 3
    assert seen["stopped"]["taken over"] == 4
