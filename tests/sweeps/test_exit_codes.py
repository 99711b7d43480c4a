"""Exit codes: good means that every run finished, also where a failure could not be written down."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweeps.curricula import Crashing, Filling
from sweeps.simulated_ray import SimulatedRay
from sweeps.test_faults import refuse_writing, small_disk
from training.small_runs import small_run
from training.test_train import cut, flip

from sparsity_lab import cli
from sparsity_lab.generators import Planted
from sparsity_lab.settings import canonical_json
from sparsity_lab.sweeps import Results, Serial, Sweep, grid, run_sweep
from sparsity_lab.training import FixedLength, RunConfig, train
from sparsity_lab.training.files import write_file
from sparsity_lab.training.lease import Lease

__all__ = ["small_disk"]  # a fixture


def runs_with(curriculum: FixedLength) -> list[RunConfig]:
    return grid(small_run(training=small_run().training.replace(curriculum=curriculum)), {"seed": [0, 1]})


def written(sweep: Sweep, tmp_path: Path) -> str:
    """A sweep file."""
    file = tmp_path / f"{sweep.name}.json"
    file.write_text(canonical_json(sweep))
    return str(file)


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = cli.run([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def check_all_failed(
    capsys: pytest.CaptureFixture[str],
    sweep: Sweep,
    engine: str,
    tmp_path: Path,
    reason: str,
    mend: Callable[[], None],
) -> None:
    """The sweep names each failure, though no folder holds it; ``--status`` and ``report`` see that runs are left."""
    out = tmp_path / "out"
    code, data = outcome(capsys, "sweep", written(sweep, tmp_path), "--out", str(out), "--engine", engine)
    assert code == 1
    assert [one["run"] for one in data["unfinished"]] == [run.id for run in sweep.runs]
    assert all(one["status"] == "failed" and reason in one["reason"] for one in data["unfinished"])
    mend()
    assert not list(out.glob("*/failed.json"))
    for command in (("sweep", "--status", str(out)), ("report", str(out), "--out", str(tmp_path / "page.html"))):
        code, data = outcome(capsys, *command)
        assert code == 1
        assert [one["run"] for one in data["unfinished"]] == [run.id for run in sweep.runs]
        assert {one["status"] for one in data["unfinished"]} <= {"missing", "interrupted"}
        assert cli.run(command) == 1


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_serial_in_folders_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(name="refused", runs=runs_with(FixedLength(length=8)))
    patch = pytest.MonkeyPatch()
    try:
        for run in sweep.runs:
            refuse_writing(patch, tmp_path / "out" / run.id, honest=False)
        check_all_failed(capsys, sweep, "Serial()", tmp_path, ": Read-only file system", patch.undo)
    finally:
        patch.undo()


@pytest.mark.slow
def test_processes_whose_disk_is_full(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker can write no file from the second step on, nor can the process that started it."""
    sweep = Sweep(name="full", runs=runs_with(Filling(length=8)))
    monkeypatch.setattr("sparsity_lab.training.folder.write_file", no_room)
    check_all_failed(capsys, sweep, "Processes(workers=1)", tmp_path, "File too large", monkeypatch.undo)


def test_ray_whose_disk_is_full(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(name="full", runs=runs_with(FixedLength(length=8)))
    reason = "OSError: [Errno 28] No space left on device"
    monkeypatch.setitem(sys.modules, "ray", SimulatedRay({canonical_json(run): [reason] for run in sweep.runs}))
    monkeypatch.setattr("sparsity_lab.training.folder.write_file", no_room)
    check_all_failed(capsys, sweep, "RayEngine()", tmp_path, reason, monkeypatch.undo)


def test_a_disk_that_is_full(capsys: pytest.CaptureFixture[str], tmp_path: Path, small_disk: Path) -> None:
    """Room for the sweep's own file alone."""
    sweep = Sweep(name="full", runs=runs_with(FixedLength(length=8)))
    file = written(sweep, tmp_path)
    filler = small_disk / "filler"
    size = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(b"x" * (size - 8 * 1024))
    for engine in ("Serial()", "Processes(workers=1)"):
        code, data = outcome(capsys, "sweep", file, "--out", str(small_disk), "--engine", engine)
        assert (code, len(data["unfinished"])) == (1, 2)
        assert all("No space left on device" in one["reason"] for one in data["unfinished"])
    assert cli.run(["sweep", "--status", str(small_disk)]) == 1
    filler.unlink()
    code, data = outcome(capsys, "sweep", file, "--out", str(small_disk), "--engine", "Serial()")
    assert (code, data["unfinished"]) == (0, [])
    assert cli.run(["sweep", "--status", str(small_disk)]) == 0


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda folder: flip(folder / "model.safetensors"),
    "metrics": lambda folder: cut(folder / "metrics.parquet"),
    "evaluation": lambda folder: cut(next((folder / "evaluation").iterdir())),
    "interrupted": lambda folder: (folder / "finished.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("of_parent", [False, True], ids=["run", "parent"])
def test_status_and_report_of_a_folder_with_a_run_that_is_not_whole(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, damage: Callable[[Path], object], of_parent: bool
) -> None:
    parent = small_run(training=small_run().training.replace(steps=2))
    child = parent.replace(parent=parent)
    out = tmp_path / "out"
    run_sweep(Sweep(name="family", runs=[child]), out, Serial())
    commands = (("sweep", "--status", str(out)), ("report", str(out)))
    assert [cli.run(command) for command in commands] == [0, 0]
    damage(out / (parent if of_parent else child).id)
    for command in commands:
        code, data = outcome(capsys, *command)
        assert (code, len(data["unfinished"])) == (1, 1)


def test_failed_runs_and_runs_in_progress(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good, bad = small_run(), small_run(training=small_run().training.replace(curriculum=Crashing(length=8)))
    results = run_sweep(Sweep(name="both", runs=[good, bad]), tmp_path, Serial())
    assert [failure.run for failure in results.failures] == [bad]
    for command in (("sweep", "--status", str(tmp_path)), ("report", str(tmp_path))):
        assert outcome(capsys, *command)[0] == 1
    with Lease.hold(tmp_path / bad.id, wait=False):
        code, data = outcome(capsys, "sweep", "--status", str(tmp_path))
        assert (code, data["counts"], [one["status"] for one in data["unfinished"]]) == (
            1,
            {"finished": 1, "running": 1},
            ["running"],
        )
        assert outcome(capsys, "report", str(tmp_path))[0] == 1


def test_train_that_cannot_write(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    file.write_text(canonical_json(small_run()))

    def refuse(file: Path, content: bytes, **options: Any) -> None:
        if file == weights:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        write_file(file, content, **options)

    weights = tmp_path / "out" / small_run().id / "model.safetensors"
    monkeypatch.setattr("sparsity_lab.training.folder.write_file", refuse)
    assert cli.run(["train", str(file), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"sparsity-lab: [Errno 28] No space left on device: '{weights}'\n"


def test_a_failure_is_forgotten_when_the_run_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(name="again", runs=[small_run()])
    with monkeypatch.context() as patch:
        refuse_writing(patch, tmp_path / small_run().id, honest=False)
        results = run_sweep(sweep, tmp_path, Serial())
        assert [failure.status for failure in results.failures] == ["failed"]
        assert results.frame("runs")["status"].to_list() == ["failed"]
        assert Results(tmp_path).failures == ()  # the folder holds nothing
    train(small_run(), tmp_path)
    assert results.failures == ()


def test_train_says_in_one_line_that_the_disk_is_full(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_disk: Path
) -> None:
    filler = small_disk / "filler"
    size = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(b"x" * (size - 32 * 1024))
    (tmp_path / "run.json").write_text(canonical_json(runs_with(FixedLength(length=8))[0]))
    line = ["train", str(tmp_path / "run.json"), "--out", str(small_disk / "runs")]
    assert cli.run(line) == 1
    told = capsys.readouterr()
    assert told.err.startswith("sparsity-lab: [Errno 28] No space left on device: ")
    assert told.err.count("\n") == 1
    filler.unlink()
    assert cli.run(line) == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(*_: object) -> None:
        raise error

    monkeypatch.setattr(Planted, "sample", sample)
    assert cli.run(["sample", "Planted"]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("sparsity-lab: out of memory")
