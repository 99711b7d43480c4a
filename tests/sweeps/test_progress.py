"""How far a sweep is: time left, the view from another shell, and what Ctrl-C leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweeps.curricula import Crashing
from training.small_runs import small_run
from training.test_train import contents

from sparsity_lab import cli
from sparsity_lab.sweeps import Results, Serial, Sweep, SweepEvent, grid, overview, run_sweep
from sparsity_lab.sweeps.progress import Estimate, work
from sparsity_lab.training import Evaluation
from sparsity_lab.training.claims import Claim


def longer(steps: int, **changes: object):
    return small_run(training=small_run().training.replace(steps=steps), **changes)


def test_work_counts_tokens() -> None:
    # 12 steps of 4 sequences of 6 + 2 tokens, three times; 16 sequences of 6, 10 and 18.
    assert work(small_run()) == 3 * 12 * 4 * 8 + 16 * (6 + 10 + 18)
    doubled = small_run(evaluation=Evaluation(lengths=(8,), sequences=16, conditions={"a": small_run().task}))
    assert work(doubled) == 3 * 12 * 4 * 8 + 16 * 10


def test_time_left_is_by_work_and_not_by_runs() -> None:
    brief = Evaluation(lengths=(8,), sequences=2)
    runs = [longer(steps, evaluation=brief, data_seed=seed) for seed, steps in enumerate((10, 10, 1000))]
    now = [100.0]
    estimate = Estimate(runs, clock=lambda: now[0])
    estimate.over(runs[0], skipped=True)
    assert estimate.seconds_left() is None
    now[0] += 4.0
    estimate.over(runs[1], skipped=False)
    assert estimate.seconds_left() == pytest.approx(400, rel=0.05)  # not 4: the last run is a hundred times as long
    estimate.over(runs[2], skipped=False)
    assert estimate.seconds_left() == 0


def test_events_say_how_long(tmp_path: Path) -> None:
    events: list[SweepEvent] = []
    sweep = Sweep(name="timed", runs=grid(small_run(), {"seed": [0, 1, 2]}))
    run_sweep(Sweep(name="first", runs=sweep.runs[:1]), tmp_path, Serial())
    run_sweep(sweep, tmp_path, Serial(), events.append)
    assert events[0].seconds_left is None
    assert events[1].seconds_left is not None
    assert events[1].seconds_left > 0
    assert events[2].seconds_left == 0


def test_overview_sees_what_runs_and_why_others_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crashing = small_run(training=small_run().training.replace(curriculum=Crashing(length=8)))
    runs = [small_run(), small_run(data_seed=1), small_run(data_seed=2), small_run(data_seed=3), crashing]
    run_sweep(Sweep(name="part", runs=[runs[0], crashing]), tmp_path, Serial())
    sweep = Sweep(name="seen", runs=runs)
    (tmp_path / runs[1].id).mkdir()
    with Claim.hold(tmp_path / runs[1].id, wait=False):
        found = overview(Results(tmp_path, sweep))
        run_sweep(Sweep(name="seen", runs=runs[:1]), tmp_path, Serial())
    assert found.counts == {"finished": 1, "failed": 1, "missing": 2, "running": 1}
    assert [(one.run, one.process) for one in found.running] == [(sweep.labels()[runs[1].id], os.getpid())]
    assert found.failed == ((sweep.labels()[crashing.id], "RuntimeError: no cure"),)
    assert found.seconds_left is not None
    assert found.seconds_left > 0
    assert overview(Results(tmp_path, sweep)).seconds_left is None  # nobody works on it
    assert cli.run(["sweep", "--status", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "seen: 1 runs: 1 finished\n"
    assert cli.run(["sweep", "--status", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["counts"] == {"finished": 1}
    for wrong in (["sweep"], ["sweep", "demo", "--status", str(tmp_path)], ["sweep", "--status", "nowhere"]):
        assert cli.run(wrong) == 2


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_leaves_what_can_be_gone_on_with(tmp_path: Path) -> None:
    file, out = tmp_path / "sweep.toml", tmp_path / "out"
    training = "Training(steps=3000, batch_size=4, log_every=1, checkpoint_every=20)"
    file.write_text(
        f'name = "long"\n[base]\ntask = "Planted"\ntraining = "{training}"\n'
        'evaluation = "Evaluation(lengths=[24], sequences=8)"\n[grid]\nseed = [0, 1]\n'
    )
    command = [sys.executable, "-m", "sparsity_lab.cli", "sweep", str(file), "--out", str(out), "--workers", "1"]
    # In a group of its own, which gets the signal as from a terminal.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    wait_for(lambda: list(out.glob("*/checkpoint.safetensors")))
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told == "sparsity-lab: interrupted; the same command goes on from here\n"
    names = {path.name for path in out.rglob("*")}
    assert not [name for name in names if name.endswith(".tmp") or name == "claim"]
    states = overview(Results(out)).counts
    assert states == {"interrupted": 1, "missing": 1}
    assert contents(out).keys() >= {"sweep.json"}
