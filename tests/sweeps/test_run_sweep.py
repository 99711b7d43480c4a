"""``run_sweep`` and ``Results``: every engine gives the same bytes, and no run takes another down."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pytest
from sweeps.curricula import Crashing, Killing
from training.small_runs import Alternating, small_run
from training.test_train import contents, flip

from sparsity_lab.generators import Planted, Recent
from sparsity_lab.settings import SettingError
from sparsity_lab.sweeps import Ended, Engine, Processes, Results, Serial, Sweep, SweepEvent, grid, run_sweep
from sparsity_lab.sweeps.engines import execute
from sparsity_lab.training import Evaluation, FixedLength, Run, RunConfig, Status, status, train

SWEEP = Sweep(name="four", runs=grid(small_run(), {"task.k": [1, 2], "seed": [0, 1]}))


def with_curriculum(curriculum: FixedLength, **changes: object) -> RunConfig:
    return small_run(training=small_run().training.replace(curriculum=curriculum), **changes)


def diverging(**changes: object) -> RunConfig:
    training = small_run().training.replace(learning_rate=1e30, warmup=0.0, clip=1e30)
    return small_run(training=training, **changes)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_sweep(SWEEP, tmp_path_factory.mktemp("serial"), Serial())


def test_processes_give_the_bytes_of_serial(serial: Results, tmp_path: Path) -> None:
    run_sweep(SWEEP, tmp_path, Processes(workers=2))
    assert len(contents(tmp_path)) == 1 + 4 * 5
    assert contents(tmp_path) == contents(serial.folder)


def test_finished_runs_are_skipped_and_broken_ones_repeated(serial: Results, tmp_path: Path) -> None:
    run_sweep(SWEEP, tmp_path, Serial())
    broken = SWEEP.runs[2]
    flip(tmp_path / broken.id / "model.safetensors")
    events: list[SweepEvent] = []
    run_sweep(SWEEP, tmp_path, Serial(), progress=events.append)
    assert [(event.finished, event.total, event.status) for event in events] == [
        (1, 4, "skipped"),
        (2, 4, "skipped"),
        (3, 4, "skipped"),
        (4, 4, "finished"),
    ]
    assert events[-1].run == SWEEP.labels()[broken.id]
    assert contents(tmp_path) == contents(serial.folder)


def test_failures_are_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    cure = tmp_path / "cure"
    crashing = with_curriculum(Crashing(length=8, cure=str(cure)))
    runs = [
        diverging(),
        crashing,
        small_run(),
        small_run(data_seed=2, parent=crashing),
        small_run(parent=diverging()),
    ]
    sweep = Sweep(name="hard", runs=runs)
    events: list[SweepEvent] = []
    results = run_sweep(sweep, tmp_path / "out", Serial(), progress=events.append)
    assert sorted(event.status for event in events) == ["diverged", "failed", "failed", "failed", "finished"]
    assert [bool(event.reason) for event in events if event.status == "finished"] == [False]
    assert [" at step " in str(event.reason) for event in events if event.status == "diverged"] == [True]
    by_run = {failure.run.id: failure for failure in results.failures}
    assert set(by_run) == {run.id for run in runs} - {runs[2].id}
    assert by_run[runs[0].id].status == "diverged"
    marker = json.loads((tmp_path / "out" / runs[0].id / "finished.json").read_bytes())
    assert by_run[runs[0].id].step == marker["step"]
    assert by_run[crashing.id].reason == "RuntimeError: no cure"
    assert "in at\n" in json.loads((tmp_path / "out" / crashing.id / "failed.json").read_bytes())["traceback"]
    assert by_run[runs[3].id].reason == f"its parent {crashing.id} failed"
    assert "diverged at step" in by_run[runs[4].id].reason
    assert "1 diverged, 3 failed, 1 finished" in repr(results)

    # A crash is tried again, a divergence is not.
    cure.touch()
    events.clear()
    results = run_sweep(sweep, tmp_path / "out", Serial(), progress=events.append)
    assert [failure.run.id for failure in results.failures] == [runs[0].id, runs[4].id]
    assert not (tmp_path / "out" / crashing.id / "failed.json").exists()
    assert Run.load(tmp_path / "out" / runs[3].id).config == runs[3]


@pytest.mark.slow
def test_a_sweep_that_no_memory_holds_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**8}.__getitem__)
    run = small_run()
    with pytest.raises(SettingError, match=rf"{run.id}\.model: expected a run that fits in this machine's memory"):
        run_sweep(Sweep(name="large", runs=[run]), tmp_path / "out", Processes(workers=1))
    assert not (tmp_path / "out").exists()


def test_dying_workers_do_not_take_the_sweep_down(tmp_path: Path) -> None:
    """One run kills its worker whenever it runs, one only once; the innocent ones beside them all finish."""
    tallies = [tmp_path / "always", tmp_path / "once"]
    for tally in tallies:
        tally.mkdir()
    always = with_curriculum(Killing(length=8, tally=str(tallies[0]), times=99))
    once = with_curriculum(Killing(length=8, tally=str(tallies[1]), times=1))
    sweep = Sweep(name="lethal", runs=[always, once, small_run(), small_run(data_seed=1)])
    results = run_sweep(sweep, tmp_path / "out", Processes(workers=2))
    assert [(failure.run.id, failure.reason) for failure in results.failures] == [
        (always.id, "its worker process died 2 times, last by SIGKILL")
    ]
    assert len(list(tallies[0].iterdir())) == 2
    assert [status(run, tmp_path / "out") for run in sweep.runs[1:]] == [Status.FINISHED] * 3


def test_parents_come_first_and_once(tmp_path: Path) -> None:
    parent = small_run()
    children = [small_run(parent=parent, data_seed=seed) for seed in (1, 2)]
    events: list[SweepEvent] = []
    results = run_sweep(Sweep(name="family", runs=children), tmp_path, Serial(), progress=events.append)
    assert [event.run for event in events] == [f"parent {parent.id}", "data_seed=1", "data_seed=2"]
    assert results.frame("runs")["run"].to_list() == [child.id for child in children]
    assert status(parent, tmp_path) is Status.FINISHED


def test_parent_in_the_sweep_keeps_the_evaluation_it_has_there(tmp_path: Path) -> None:
    parent = small_run(evaluation=Evaluation(lengths=(8, 32), sequences=4))
    child = small_run(parent=small_run())
    sweep = Sweep(name="family", runs=[child, parent])
    run_sweep(sweep, tmp_path, Serial())
    assert Run.load(tmp_path / parent.id).evaluation["length"].to_list() == [8, 32]
    events: list[SweepEvent] = []
    run_sweep(sweep, tmp_path, Serial(), progress=events.append)
    assert [event.status for event in events] == ["skipped", "skipped"]


def test_frames_join_the_settings(serial: Results) -> None:
    frame = serial.frame("evaluation")
    assert frame["task.k"].to_list() == [1] * 6 + [2] * 6
    assert frame["data_seed"].to_list() == [0, 0, 0, 1, 1, 1] * 2
    assert frame["model.position"].unique().to_list() == ["NoPE()"]
    assert frame["task"].to_list() == frame["condition_task"].to_list()
    for run in SWEEP.runs:
        own = Run.load(serial.folder / run.id).evaluation
        assert frame.filter(run=run.id).select(own.columns[2:]).equals(own.drop("condition", "task"))
    assert serial.frame("metrics")["step"].to_list() == [0, 3, 6, 9, 11] * 4
    assert serial.frame("timing").filter(phase="evaluation").height == 4
    runs = serial.frame("runs")
    assert runs["run"].to_list() == [run.id for run in SWEEP.runs]
    assert runs["status"].to_list() == ["finished"] * 4
    summary = serial.frame("summary")
    assert summary.select("run", "condition").rows() == [(run.id, "trained") for run in SWEEP.runs]
    with pytest.raises(SettingError, match="did you mean 'metrics'"):
        serial.frame("metric")  # type: ignore[arg-type]


def test_unlike_runs_share_a_frame_with_nulls(tmp_path: Path) -> None:
    base = small_run()
    runs = [
        base.replace(task=Planted(k=2, locality=Recent(width=4))),
        base.replace(task=Alternating(), evaluation=base.evaluation.replace(threshold=0.5)),
    ]
    results = run_sweep(Sweep(name="unlike", runs=runs), tmp_path, Serial())
    frame = results.frame("runs")
    assert frame["task.k"].to_list() == [2, None]
    assert frame["task.locality"].to_list() == ["Recent(width=4)", None]
    assert frame["task.optimum_known"].to_list() == [None, True]
    assert results.frame("summary")["run"].to_list() == [run.id for run in runs]


def test_new_evaluation_is_what_the_frame_shows(tmp_path: Path) -> None:
    first = Sweep(name="one", runs=[small_run()])
    run_sweep(first, tmp_path, Serial())
    weights = (tmp_path / first.runs[0].id / "model.safetensors").stat().st_mtime_ns
    second = Sweep(name="two", runs=[small_run(evaluation=Evaluation(lengths=(8, 20), sequences=4))])
    results = run_sweep(second, tmp_path, Serial())
    assert results.frame("evaluation")["length"].to_list() == [8, 20]
    # The first sweep still has all that it asked for.
    assert Results(tmp_path, first).frame("evaluation")["length"].to_list() == [4, 8, 16]
    assert (tmp_path / first.runs[0].id / "model.safetensors").stat().st_mtime_ns == weights


def test_folder_without_a_sweep_shows_all_its_runs(tmp_path: Path) -> None:
    run_sweep(SWEEP, tmp_path, Serial())
    (tmp_path / "sweep.json").unlink()
    results = Results(tmp_path)
    assert results.sweep is None
    assert results.frame("runs")["run"].to_list() == sorted(run.id for run in SWEEP.runs)


def test_copies_of_a_run_are_not_counted_as_runs(tmp_path: Path) -> None:
    results = run_sweep(SWEEP, tmp_path, Serial())
    original = tmp_path / SWEEP.runs[0].id
    shutil.copytree(original, tmp_path / "copy")
    assert results.others == ()
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(SettingError, match=f"copy: expected the id of the run in it, {original.name}"):
        Results(tmp_path)
    shutil.rmtree(original)
    with pytest.raises(SettingError, match=f"copy: expected the id of the run in it, {original.name}"):
        Results(tmp_path)
    (tmp_path / "copy").rename(original)
    assert Results(tmp_path).frame("runs")["status"].to_list() == ["finished"] * 4


def test_empty_and_damaged_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="a folder with runs"):
        Results(tmp_path / "none")
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(SettingError, match=r"sweep\.json"):
        Results(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SettingError) as error:
        run_sweep(SWEEP, tmp_path / "file", Serial())
    assert error.value.path == "out"


def test_missing_and_broken_runs_are_told_apart(tmp_path: Path) -> None:
    results = run_sweep(SWEEP, tmp_path, Serial())
    assert results.frame("runs")["reason"].to_list() == [None] * 4
    flip(tmp_path / SWEEP.runs[0].id / "metrics.parquet")
    for file in (tmp_path / SWEEP.runs[1].id).rglob("*.*"):
        file.unlink()
    assert results.frame("runs")["status"].to_list() == ["broken", "missing", "finished", "finished"]
    named = f"{SWEEP.runs[0].id}/metrics.parquet was changed after it was written: the checksum differs"
    assert results.frame("runs")["reason"].to_list() == [named, None, None, None]
    assert named in repr(results)
    assert results.frame("evaluation")["run"].unique(maintain_order=True).to_list() == [r.id for r in SWEEP.runs[2:]]
    assert isinstance(results.frame("metrics").schema["step"], pl.Int64)


def test_results_are_those_of_the_sweep(tmp_path: Path) -> None:
    parent = small_run()
    first = Sweep(name="first", runs=[small_run(data_seed=seed) for seed in (1, 2, 3)])
    second = Sweep(name="second", runs=[small_run(data_seed=4, parent=parent)])
    run_sweep(first, tmp_path, Serial())
    results = run_sweep(second, tmp_path, Serial())
    assert results.sweep == second
    assert results.frame("runs")["run"].to_list() == [second.runs[0].id]
    assert results.others == tuple(sorted(run.id for run in first.runs))
    assert repr(results).splitlines()[0].endswith("1 run (1 finished) and 3 runs of other sweeps")
    assert Results(tmp_path).sweep == second
    earlier = Results(tmp_path, sweep=first)
    assert earlier.frame("runs")["status"].to_list() == ["finished"] * 3
    assert earlier.others == tuple(sorted([parent.id, second.runs[0].id]))
    # Neither a damaged run nor one that is in no sweep's way stops a reader.
    (tmp_path / first.runs[0].id / "finished.json").write_text("{")
    assert len(results.others) == 2
    # Another sweep that writes its own sweep.json meanwhile changes nothing of this one.
    (tmp_path / "sweep.json").unlink()
    assert results.frame("runs")["run"].to_list() == [second.runs[0].id]
    assert Results(tmp_path).others == ()


def test_other_evaluation_by_train_leaves_a_sweep_finished(tmp_path: Path) -> None:
    results = run_sweep(SWEEP, tmp_path, Serial())
    run = SWEEP.runs[0]
    train(run.replace(evaluation=run.evaluation.replace(lengths=(8, 20))), tmp_path)
    assert results.frame("runs")["status"].to_list() == ["finished"] * 4
    assert results.frame("evaluation").filter(run=run.id)["length"].to_list() == [4, 8, 16]


def test_fault_in_one_folder_stops_no_other_run(tmp_path: Path) -> None:
    """A file where a run's folder belongs, and folders where its files do."""
    run_sweep(SWEEP, tmp_path, Serial())
    no_folder, no_metrics, no_failure, _ = SWEEP.runs
    for file in (tmp_path / no_folder.id).rglob("*.*"):
        file.unlink()
    (tmp_path / no_folder.id / "evaluation").rmdir()
    (tmp_path / no_folder.id).rmdir()
    (tmp_path / no_folder.id).write_text("kept")
    (tmp_path / no_metrics.id / "metrics.parquet").unlink()
    (tmp_path / no_metrics.id / "metrics.parquet").mkdir()
    (tmp_path / no_failure.id / "failed.json").mkdir()
    (tmp_path / no_failure.id / "finished.json").unlink()
    child = small_run(parent=no_folder)
    sweep = Sweep(name="faults", runs=[*SWEEP.runs, child])
    for engine in (Serial(), Processes(workers=1)):
        events: list[SweepEvent] = []
        results = run_sweep(sweep, tmp_path, engine, events.append)
        by_label = {event.run: event for event in events}
        failed = [by_label[sweep.labels()[run.id]] for run in (no_folder, child)]
        assert [event.status for event in failed] == ["failed", "failed"]
        expected = f"SettingError: out: cannot make the folder {tmp_path / no_folder.id}: File exists"
        assert failed[0].reason == expected
        assert results.frame("runs")["status"].to_list() == ["failed", "finished", "finished", "finished", "failed"]
        assert [failure.run.id for failure in results.failures] == [no_folder.id, child.id]
    assert (tmp_path / no_folder.id).read_text() == "kept"
    assert not (tmp_path / no_failure.id / "failed.json").exists()


def test_folder_that_cannot_be_entered_is_read_as_broken(tmp_path: Path, monkeypatch) -> None:
    results = run_sweep(SWEEP, tmp_path, Serial())
    closed = tmp_path / SWEEP.runs[0].id
    real_open, real_stat = os.open, os.stat

    def refuse(path: object) -> None:
        if Path(os.fspath(path)).is_relative_to(closed) and Path(os.fspath(path)) != closed:  # type: ignore[call-overload]
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", lambda path, *arguments: refuse(path) or real_open(path, *arguments))
    monkeypatch.setattr(os, "stat", lambda path, **options: refuse(path) or real_stat(path, **options))
    assert results.frame("runs")["status"].to_list() == ["broken", "finished", "finished", "finished"]
    assert results.frame("runs")["reason"][0] == f"{closed.name}/finished.json cannot be read: Permission denied"
    assert results.failures == ()
    assert results.frame("evaluation")["run"].n_unique() == 3


def test_failure_to_repair_damaged_weights_is_listed(tmp_path: Path, monkeypatch) -> None:
    results = run_sweep(SWEEP, tmp_path, Serial())
    run = SWEEP.runs[0]
    flip(tmp_path / run.id / "model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, _: path != tmp_path / run.id)
        run_sweep(SWEEP, tmp_path, Serial())
    (failure,) = results.failures
    assert failure.run == run
    assert "cannot write to" in failure.reason
    assert f"{run.id}/model.safetensors was changed after it was written" in failure.reason
    run_sweep(SWEEP, tmp_path, Serial())
    assert results.failures == ()


def test_damaged_failure_says_so(tmp_path: Path) -> None:
    run = small_run()
    file = tmp_path / run.id / "failed.json"
    file.parent.mkdir()
    for damaged in (b"", b'{"reas', b"[]", b'{"reason": 3}', b"\xff"):
        file.write_bytes(damaged)
        failure = Results(tmp_path, Sweep(name="one", runs=[run])).failures[0]
        assert (failure.status, failure.reason) == ("failed", "failed.json is damaged")
    assert run_sweep(Sweep(name="one", runs=[run]), tmp_path, Serial()).failures == ()
    file.write_text("left by an earlier release beside a finished run")
    run_sweep(Sweep(name="one", runs=[run]), tmp_path, Serial())
    assert not file.exists()


UNGUARDED = """
import sys
sys.path.insert(0, sys.argv[2])
from training.small_runs import small_run
from sparsity_lab.sweeps import Processes, Sweep, grid, run_sweep
sweep = Sweep(name="unguarded", runs=grid(small_run(), {"seed": [0, 1]}))
print(*{failure.reason for failure in run_sweep(sweep, sys.argv[1], Processes(workers=2)).failures}, sep="\\n")
"""


@pytest.mark.slow
def test_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, str(script), str(tmp_path / "out"), tests]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert len(done.stdout.splitlines()) == 1
    assert "could not start" in done.stdout
    assert 'if __name__ == "__main__":' in done.stdout
    assert "RuntimeError: a worker process reached run_sweep while importing the main script" in done.stderr
    # The workers were started once, and no run began.
    assert done.stderr.count("RuntimeError: a worker") <= 2
    assert len(list((tmp_path / "out").rglob("config.json"))) == 0


class Elsewhere(Engine):
    """Its workers have no shared folder: after the first runs, all write to one of their own."""

    kind = "Elsewhere"

    def __init__(self, own: Path, shared: int) -> None:
        self.own, self.shared, self.executed = own, shared, 0

    def run(self, runs: Sequence[str], out: Path, modules: Sequence[str] = ()) -> Iterator[Ended]:
        for index, run in enumerate(runs):
            self.executed += 1
            yield Ended(index, execute(run, str(out if index < self.shared else self.own)))

    def knows_main(self) -> bool:
        return True


def test_workers_that_write_elsewhere_are_told_at_the_first_run(tmp_path: Path) -> None:
    engine = Elsewhere(tmp_path / "own", shared=0)
    with pytest.raises(SettingError) as error:
        run_sweep(SWEEP, tmp_path / "out", engine)
    assert str(error.value) == (
        f"engine: expected workers that write to {tmp_path / 'out'}: check that all their machines see one shared "
        f"folder under this path, got nothing of {SWEEP.runs[0].id}, which has ended"
    )
    assert engine.executed == 1


def test_one_machine_that_writes_elsewhere_fails_its_runs_alone(tmp_path: Path) -> None:
    engine = Elsewhere(tmp_path / "own", shared=2)
    results = run_sweep(SWEEP, tmp_path / "out", engine)
    assert engine.executed == 4
    assert [(one.run.id, one.reason.split(":")[0]) for one in results.failures] == [
        (run.id, f"expected workers that write to {tmp_path / 'out'}") for run in SWEEP.runs[2:]
    ]
    # The next sweep makes what is missing.
    assert run_sweep(SWEEP, tmp_path / "out", Serial()).failures == ()
