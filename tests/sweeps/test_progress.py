"""How far a sweep is: time left, the view from another shell, and what Ctrl-C leaves."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from sweeps.curricula import Crashing, Holding
from training.small_runs import small_run
from training.test_train import contents, flip

from sparsity_lab import cli
from sparsity_lab.settings import canonical_json
from sparsity_lab.sweeps import Results, Serial, Sweep, SweepEvent, grid, overview, run_sweep
from sparsity_lab.sweeps.progress import Estimate, work
from sparsity_lab.training import Evaluation, Status, Training, status, store, train
from sparsity_lab.training.files import Writer
from sparsity_lab.training.folder import RunFolder
from sparsity_lab.training.lease import Lease


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
    with Lease.hold(tmp_path / runs[1].id, wait=False):
        found = overview(Results(tmp_path, sweep))
        run_sweep(Sweep(name="seen", runs=runs[:1]), tmp_path, Serial())
    assert found.counts == {"finished": 1, "failed": 1, "missing": 2, "running": 1}
    assert [(one.run, one.process) for one in found.running] == [(sweep.labels()[runs[1].id], os.getpid())]
    assert found.failed == ((sweep.labels()[crashing.id], "RuntimeError: no cure"),)
    assert found.seconds_left is not None
    assert found.seconds_left > 0
    assert overview(Results(tmp_path, sweep)).seconds_left is None  # nobody works on it
    assert cli.run(["sweep", "--status", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "seen: 1 run: 1 finished\n"
    assert cli.run(["sweep", "--status", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["counts"] == {"finished": 1}
    for wrong in (["sweep"], ["sweep", "demo", "--status", str(tmp_path)], ["sweep", "--status", "nowhere"]):
        assert cli.run(wrong) == 2


def test_a_holder_without_a_sign_of_life_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a node that was lost, whose end nobody here can see."""
    run = small_run()
    (tmp_path / "sweep.json").write_text(canonical_json(Sweep(name="lost", runs=[run])))
    file = tmp_path / run.id / "lease" / Writer(place="f" * 12, process=1, started=1).mark()
    file.parent.mkdir(parents=True)
    file.write_text('{"host": "far", "process": 1, "since": "2026-01-01T00:00:00+00:00"}')
    for age, told in ((0.0, ""), (600.0, "; silent for 600 s, possibly lost")):
        os.utime(file, (time.time() - age, time.time() - age))
        assert [one.lost for one in overview(Results(tmp_path)).running] == [bool(told)]
        assert cli.run(["sweep", "--status", str(tmp_path)]) == 1
        line = "running lost: on far, process 1, since 2026-01-01T00:00:00+00:00"
        assert capsys.readouterr().out.splitlines()[-1] == line + told


def test_parents_are_part_of_what_is_seen(tmp_path: Path) -> None:
    parent, waiting = small_run(), small_run(data_seed=5)
    crashing = small_run(training=small_run().training.replace(curriculum=Crashing(length=8)))
    runs = [small_run(data_seed=1, parent=one) for one in (parent, crashing, waiting)]
    sweep = Sweep(name="family", runs=runs)
    run_sweep(Sweep(name="family", runs=runs[:2]), tmp_path, Serial())
    (tmp_path / waiting.id).mkdir()
    with Lease.hold(tmp_path / waiting.id, wait=False):
        found = overview(Results(tmp_path, sweep))
    assert found.total == 6
    assert found.counts == {"finished": 2, "failed": 2, "running": 1, "missing": 1}
    assert [one.run for one in found.running] == [f"parent {waiting.id}"]
    assert found.failed == (
        (f"parent {crashing.id}", "RuntimeError: no cure"),
        (sweep.labels()[runs[1].id], f"its parent {crashing.id} failed"),
    )
    # How a parent was evaluated is its own affair, unless it is itself in the sweep.
    train(parent.replace(evaluation=Evaluation(lengths=(8, 32), sequences=4)), tmp_path)
    (tmp_path / parent.id / "evaluation" / f"{parent.evaluation_id}.parquet").unlink()
    marker = RunFolder(tmp_path / parent.id).marker
    assert marker is not None
    files = {name: digest for name, digest in marker.files.items() if parent.evaluation_id not in name}
    (tmp_path / parent.id / "finished.json").write_bytes(store.Marker(status="finished", files=files).to_json())
    assert status(parent, tmp_path) is Status.UNEVALUATED
    assert overview(Results(tmp_path, sweep)).counts["finished"] == 2
    assert overview(Results(tmp_path, Sweep(name="both", runs=[parent, *runs]))).counts["finished"] == 1
    flip(tmp_path / parent.id / "model.safetensors")
    ((label, what),) = overview(Results(tmp_path, sweep)).damaged
    assert label == f"parent {parent.id}"
    assert what.startswith(f"{parent.id}/model.safetensors was changed")


LONGEST_WAIT = 240.0
"""Seconds, for what takes ten on an idle machine."""


@pytest.mark.parametrize(
    "engine",
    [
        "Serial()",
        *(pytest.param(engine, marks=pytest.mark.slow) for engine in ("Processes(workers=2)", "RayEngine()")),
    ],
)
def test_ctrl_c_leaves_what_can_be_gone_on_with(tmp_path: Path, engine: str) -> None:
    """Each run is held at its third step, after a checkpoint, when the signal comes."""
    if engine.startswith("Ray"):
        pytest.importorskip("ray")
    held, out = tmp_path / "held", tmp_path / "out"
    held.mkdir()
    training = Training(
        steps=6, batch_size=4, log_every=1, checkpoint_every=1, curriculum=Holding(length=8, folder=str(held))
    )
    sweep = Sweep(name="held", runs=grid(small_run(training=training), {"seed": [0, 1]}))
    file = tmp_path / "sweep.json"
    file.write_text(canonical_json(sweep))
    command = [sys.executable, "-m", "sparsity_lab.cli", "sweep", str(file), "--out", str(out), "--engine", engine]
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "240"}
    process = subprocess.Popen(
        [*command, "--import", "sweeps.curricula"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **ray},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # its own, which gets the signal as from a terminal
    )
    try:
        at_once = 1 if engine == "Serial()" else 2
        deadline = time.monotonic() + LONGEST_WAIT
        while len(list(held.iterdir())) < at_once:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=LONGEST_WAIT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert told.endswith("sparsity-lab: interrupted; run the same command again to continue\n")
    # Workers of Ray are ended by its own processes, so what they held may be given up only by the next sweep.
    left = [path for path in out.rglob("*") if path.suffix == ".tmp" or path.name == "lease"]
    assert engine == "RayEngine()" or not left
    seen = overview(Results(out))
    assert Counter(seen.counts) == Counter(interrupted=at_once, missing=2 - at_once)
    assert seen.damaged == ()
    assert len(list(out.glob("*/checkpoint.safetensors"))) == at_once
    (held / "go").touch()
    assert run_sweep(sweep, out, Serial()).failures == ()
    run_sweep(sweep, tmp_path / "whole", Serial())
    assert contents(out) == contents(tmp_path / "whole")
