"""Settings that a notebook's cell, or a script itself, defines: which engines know them, and what is said if not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sparsity_lab.sweeps import Engine, Processes, RayEngine, Serial

OWN = """
from sparsity_lab.generators import Planted, Rule
from sparsity_lab.settings import SettingError, register
from sparsity_lab.models import Decoder, NoPE
from sparsity_lab.sweeps import Processes, RayEngine, Serial, Sweep, run_sweep
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training
from sparsity_lab.generators import First

@register
class LastOne(First):
    pass

def sweep(rule):
    return Sweep(name="own", runs=[RunConfig(
        task=Planted(k=1, rule=rule),
        model=Decoder(num_layers=1, num_heads=2, d_model=16, position=NoPE()),
        training=Training(steps=2, batch_size=4, curriculum=FixedLength(length=8)),
        evaluation=Evaluation(lengths=(8,), sequences=4),
    )])
"""
CELLS = [
    OWN,
    "assert run_sweep(sweep(LastOne()), 'serial', Serial()).failures == ()",
    """
for engine in (Processes(workers=1), RayEngine()):
    try:
        run_sweep(sweep(LastOne()), "refused", engine)
    except SettingError as error:
        print(error)
import pathlib
assert not pathlib.Path("refused").exists()
old = LastOne()
""",
    # What the message says to do.
    "%%writefile my_settings.py\nfrom sparsity_lab.generators import First\n"
    "from sparsity_lab.settings import register\n\n@register\nclass LastOne(First):\n    pass\n",
    "from my_settings import LastOne\nassert old == LastOne()",
    "assert run_sweep(sweep(LastOne()), 'out', Processes(workers=1)).failures == ()",
]
SHELL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
for cell in json.load(sys.stdin):
    shell.run_cell(cell).raise_error()
"""


def told(engine: str) -> str:
    return (
        f"runs: expected settings that the workers of {engine} can import (write the cell to a file, as in "
        "%%writefile my_settings.py, and import LastOne from there; or use Serial()), got LastOne, which this "
        "session defines"
    )


@pytest.mark.slow
def test_a_class_of_a_notebook(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHELL],
        input=json.dumps(CELLS),
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("runs")] == [
        told("Processes"),
        told("RayEngine"),
    ]


SCRIPT = """
if __name__ == "__main__":
    assert run_sweep(sweep(LastOne()), "out", Processes(workers=1)).failures == ()
    try:
        run_sweep(sweep(LastOne()), "refused", RayEngine())
    except SettingError as error:
        print(error)
"""


def test_a_class_of_a_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(OWN + SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, told("RayEngine") + "\n"), done.stderr


@pytest.mark.parametrize(
    ("engine", "session", "script"), [(Serial(), True, True), (Processes(), False, True), (RayEngine(), False, False)]
)
def test_engines_say_what_they_know(
    engine: Engine, session: bool, script: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert engine.knows_main() is session
    main.__file__ = "script.py"
    assert engine.knows_main() is script
