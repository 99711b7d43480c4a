"""Disks that are full or cannot be written, and files that were lost, cut, changed, or written by a newer release."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sweeps.curricula import Counted
from training.small_runs import small_run
from training.test_train import contents, cut, flip, flip_a_weight

from sparsity_lab import cli
from sparsity_lab.settings import SettingError
from sparsity_lab.sweeps import Results, Serial, Sweep, SweepEvent, overview, run_sweep
from sparsity_lab.training import Run, Status, files, status, train
from sparsity_lab.training.files import remove
from sparsity_lab.training.folder import RunFolder
from sparsity_lab.training.store import CHECKPOINT


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    tally = tmp_path / "tally"
    tally.mkdir()
    training = small_run().training.replace(
        curriculum=Counted(length=8, tally=str(tally)), steps=6, log_every=1, checkpoint_every=2
    )
    return Sweep(name="faulty", runs=[small_run(training=training, data_seed=seed) for seed in range(3)])


def steps_since(tmp_path: Path, act: Callable[[], object]) -> dict[str, int]:
    """Steps that were trained while ``act`` ran, by data seed."""

    def count() -> dict[str, int]:
        return {file.name: len(file.read_text().split()) for file in (tmp_path / "tally").iterdir()}

    before = count()
    act()
    return {seed: now - before.get(seed, 0) for seed, now in count().items() if now > before.get(seed, 0)}


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whoever waits for something that never comes, fails."""

    def fail(*_: object) -> None:
        raise TimeoutError("waited for what never comes")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def become_pipe(file: Path) -> None:
    """Reading it waits until somebody writes to it."""
    remove(file)
    os.mkfifo(file)


def become_closed(folder: Path) -> None:
    shutil.rmtree(folder / "evaluation")
    (folder / "evaluation").write_text("no folder")


Damage = Callable[[Path], object]
CHANGED = "was changed after it was written: the checksum differs"
DAMAGES: dict[str, tuple[Damage, Status, bool, str | None]] = {
    "flipped byte in the weights": (
        lambda folder: flip(folder / "model.safetensors"),
        Status.BROKEN,
        True,
        f"model.safetensors {CHANGED}",
    ),
    "cut metrics": (
        lambda folder: cut(folder / "metrics.parquet"),
        Status.BROKEN,
        True,
        f"metrics.parquet {CHANGED}",
    ),
    "lost metrics": (
        lambda folder: (folder / "metrics.parquet").unlink(),
        Status.BROKEN,
        True,
        "metrics.parquet is missing",
    ),
    "pipe for metrics": (
        lambda folder: become_pipe(folder / "metrics.parquet"),
        Status.BROKEN,
        True,
        "metrics.parquet cannot be read: Not a file",
    ),
    "cut marker": (lambda folder: cut(folder / "finished.json"), Status.BROKEN, True, f"finished.json {CHANGED}"),
    "pipe for a marker": (
        lambda folder: become_pipe(folder / "finished.json"),
        Status.BROKEN,
        True,
        "finished.json cannot be read: Not a file",
    ),
    "cut evaluation": (
        lambda folder: cut(next((folder / "evaluation").iterdir())),
        Status.UNEVALUATED,
        False,
        f".parquet {CHANGED}",
    ),
    "file for a folder": (become_closed, Status.UNEVALUATED, False, ".parquet cannot be read: Not a directory"),
    "pipe for a folder": (
        lambda folder: become_pipe(folder / "evaluation"),
        Status.UNEVALUATED,
        False,
        ".parquet cannot be read: Not a directory",
    ),
    "cut config": (
        lambda folder: cut(folder / "config.json"),
        Status.UNEVALUATED,
        False,
        "config.json: invalid JSON; the file is damaged",
    ),
    "pipe for a config": (
        lambda folder: become_pipe(folder / "config.json"),
        Status.UNEVALUATED,
        False,
        "config.json cannot be read: Not a file",
    ),
    "deleted run": (shutil.rmtree, Status.MISSING, True, None),
}
"""What is done to a run's folder, what is found then, whether the run is trained again, and what is said."""


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(("damage", "found", "trained", "words"), DAMAGES.values(), ids=DAMAGES)
def test_only_what_is_broken_is_named_and_made_again(
    sweep: Sweep,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Damage,
    found: Status,
    trained: bool,
    words: str | None,
) -> None:
    out = tmp_path / "out"
    run_sweep(sweep, out, Serial())
    before = contents(out)
    damaged = sweep.runs[1]
    damage(out / damaged.id)
    assert status(damaged, out) is found
    with pytest.raises(SettingError, match="finished run|config.json"):
        Run.load(out / damaged.id)
    # Weights are not read to make a frame.
    seen = "finished" if damage is DAMAGES["flipped byte in the weights"][0] else found.value
    assert Results(out).frame("runs")["status"].to_list() == ["finished", seen, "finished"]
    # The overview reads all that the next sweep will.
    told = overview(Results(out))
    assert told.counts == {"finished": 2, found.value: 1}
    assert [label for label, _ in told.damaged] == ([sweep.labels()[damaged.id]] if words else [])
    assert all(f"{damaged.id}/" in what and words in what for _, what in told.damaged if words)
    assert cli.run(["sweep", "--status", str(out)]) == 1
    assert (words or "") in capsys.readouterr().out
    events: list[SweepEvent] = []
    steps = steps_since(tmp_path, lambda: run_sweep(sweep, out, Serial(), events.append))
    assert steps == ({"1": 6} if trained else {})
    assert [event.status for event in events] == ["skipped", "skipped", "finished"]
    assert [event.damage for event in events] == [None, None, told.damaged[0][1] if words else None]
    assert contents(out) == before


@pytest.mark.usefixtures("no_waiting")
def test_pipes_in_place_of_files_stop_nobody(sweep: Sweep, tmp_path: Path) -> None:
    run_sweep(sweep, tmp_path / "whole", Serial())
    out = tmp_path / "out"
    run_sweep(sweep, out, Serial())
    folder = out / sweep.runs[1].id
    for names in (("timing.parquet", "environment.json", "failed.json"), ("lease", "trained.json"), (CHECKPOINT,)):
        for name in names:
            become_pipe(folder / name)
        if CHECKPOINT in names:
            (folder / "finished.json").unlink()
        repr(Results(out))
        Results(out).frame("timing")
        assert overview(Results(out)).total == 3
        assert run_sweep(sweep, out, Serial()).failures == ()
        assert contents(out) == contents(tmp_path / "whole")
    become_pipe(out / "sweep.json")
    with pytest.raises(SettingError, match=r"sweep\.json: Not a file"):
        Results(out)


def test_folders_that_changed_places_are_not_taken_for_each_other(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sweep(sweep, out, Serial())
    before = contents(out)
    first, second, _ = (out / run.id for run in sweep.runs)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    assert [status(run, out) for run in sweep.runs] == [Status.BROKEN, Status.BROKEN, Status.FINISHED]
    named = f"{first.name}/config.json belongs to another run, {second.name}"
    assert Results(out).frame("runs")["reason"][0] == named
    assert set(steps_since(tmp_path, lambda: run_sweep(sweep, out, Serial()))) == {"0", "1"}
    assert contents(out) == before


def test_nothing_outside_a_broken_run_is_removed(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sweep(sweep, out, Serial())
    before = contents(out)
    folder = out / sweep.runs[0].id
    (folder / "evaluation").rename(tmp_path / "precious")
    kept = contents(tmp_path / "precious")
    (folder / "evaluation").symlink_to(tmp_path / "precious", target_is_directory=True)
    flip(folder / "model.safetensors")
    run_sweep(sweep, out, Serial())
    assert contents(tmp_path / "precious") == kept
    assert contents(out) == before


def test_damaged_checkpoint_is_named_and_not_gone_on_from(sweep: Sweep, tmp_path: Path) -> None:
    run_sweep(sweep, tmp_path / "whole", Serial())
    out = tmp_path / "out"
    # As runs are left that were killed after their second checkpoint.
    for run in sweep.runs:
        with pytest.raises(KeyboardInterrupt):
            train(run, out, progress=_interrupt_at_the_end)
    names = [f"{run.id}/checkpoint.safetensors" for run in sweep.runs]
    flip_a_weight(out / names[1])
    (out / names[2]).write_bytes((out / names[0]).read_bytes())
    named = [
        None,
        f"{names[1]} was changed after it was written: the checksum differs",
        f"{names[2]} belongs to another run, {sweep.runs[0].id}",
    ]
    told = overview(Results(out, sweep))
    assert told.counts == {"interrupted": 3}
    assert told.damaged == tuple(zip(list(sweep.labels().values())[1:], named[1:], strict=True))
    events: list[SweepEvent] = []
    steps = steps_since(tmp_path, lambda: run_sweep(sweep, out, Serial(), events.append))
    assert [event.damage for event in events] == named
    assert steps == {"0": 2, "1": 6, "2": 6}
    assert contents(out) == contents(tmp_path / "whole")


def _interrupt_at_the_end(done: int, *_: object) -> None:
    if done == 6:
        raise KeyboardInterrupt


# --- full disks


def check_refused(
    sweep: Sweep, tmp_path: Path, out: Path, make_room: Callable[[], None], code: int = errno.ENOSPC
) -> None:
    """Every run whose file is refused says so and names it; when that is over only these are made."""
    events: list[SweepEvent] = []
    run_sweep(sweep, out, Serial(), events.append)
    reasons = [event.reason or "" for event in events]
    assert [event.status for event in events] == ["failed"] * 3
    assert all(f"[Errno {code}] {os.strerror(code)}" in reason and str(out) in reason for reason in reasons)
    assert not list(out.rglob("*.tmp"))
    assert not list(out.glob("*/lease"))
    make_room()
    assert run_sweep(sweep, out, Serial()).failures == ()
    steps = steps_since(tmp_path, lambda: run_sweep(sweep, out, Serial()))
    assert steps == {}
    run_sweep(sweep, tmp_path / "whole", Serial())
    assert contents(out) == contents(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(sweep: Sweep, tmp_path: Path, small_disk: Path) -> None:
    filler = small_disk / "filler"
    size = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    # Room for the sweep's own file and for the first small files of a run, not for weights.
    filler.write_bytes(b"x" * (size - 32 * 1024))
    check_refused(sweep, tmp_path, small_disk, filler.unlink)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
@pytest.mark.parametrize(
    "refused", ["lease", "config.json", "checkpoint.safetensors", "model.safetensors", "finished.json"]
)
def test_write_that_is_refused(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, code: int
) -> None:
    """A stand-in, where nothing can be mounted, for disks that are full, or become read-only during a sweep as a
    damaged one does."""
    real, real_of_path = os.open, Path.open

    def is_refused(file: Path) -> bool:
        place = file.parent.name if refused == "lease" else file.name
        if not place.startswith(f".{refused}."):
            return False
        if code == errno.EROFS:
            raise OSError(code, os.strerror(code), str(file))
        os.close(real(file, os.O_CREAT | os.O_WRONLY))
        return True

    def opened(path: Any, flags: int, *arguments: int, **options: Any) -> int:
        full = flags & os.O_CREAT and is_refused(Path(path))
        return real("/dev/full", os.O_WRONLY) if full else real(path, flags, *arguments, **options)

    def opened_path(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        # Of a file that is created by its name alone, in a lease.
        if "w" in mode and is_refused(self):
            return real_of_path(Path("/dev/full"), mode, *arguments, **options)
        return real_of_path(self, mode, *arguments, **options)

    def make_room() -> None:
        monkeypatch.setattr(os, "open", real)
        monkeypatch.setattr(Path, "open", real_of_path)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(Path, "open", opened_path)
    check_refused(sweep, tmp_path, tmp_path / "out", make_room, code)


def test_no_room_for_the_sweep_itself(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sparsity_lab.sweeps.execute.write_file", full)
    with pytest.raises(SettingError, match="out: cannot write to .*: No space left on device"):
        run_sweep(sweep, tmp_path / "out", Serial())


def test_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def stop() -> None:
        raise OSError(errno.EIO, "Input/output error")

    file = tmp_path / "file"
    files.write_file(file, b"old")
    with pytest.raises(OSError, match=f"Input/output error: '{file}'"):
        files.write_file(file, b"new", check=stop)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


# --- folders that cannot be written


def test_read_only_disk(sweep: Sweep, tmp_path: Path, small_disk: Path) -> None:
    run_sweep(sweep, small_disk, Serial())
    before = contents(small_disk)
    done = subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting read-only is not permitted here: {done.stderr.strip()}")
    with pytest.raises(SettingError, match="out: cannot write to"):
        run_sweep(sweep, small_disk, Serial())
    # Reading is all that reading needs.
    assert Results(small_disk).frame("runs")["status"].to_list() == ["finished"] * 3
    assert contents(small_disk) == before


@pytest.mark.parametrize("honest", [True, False])
def test_read_only_folder(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: bool) -> None:
    """A stand-in, where nothing can be mounted: every call that writes is refused, and so is the question whether one
    may, unless the file system is not honest about it, as some on a network."""
    out = tmp_path / "out"
    run_sweep(sweep, out, Serial())
    before = contents(out)
    with monkeypatch.context() as patch:
        refuse_writing(patch, out, honest)
        with pytest.raises(OSError, match="Read-only file system"):
            (out / "file").write_text("x")
        with pytest.raises(SettingError, match="out: cannot write to"):
            run_sweep(sweep, out, Serial())
        assert Results(out).frame("runs")["status"].to_list() == ["finished"] * 3
        assert overview(Results(out)).counts == {"finished": 3}
        assert Run.load(out / sweep.runs[0].id).model()
    assert contents(out) == before


def test_read_only_run_folder(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run's folder refuses to be written: its failure is told, and the others go on."""
    out = tmp_path / "out"
    run_sweep(sweep, out, Serial())
    before = contents(out)
    for run in sweep.runs[:2]:
        cut(out / run.id / "metrics.parquet")
    events: list[SweepEvent] = []
    with monkeypatch.context() as patch:
        refuse_writing(patch, out / sweep.runs[0].id, honest=False)
        run_sweep(sweep, out, Serial(), events.append)
    told = {event.run: event for event in events}
    first, second, third = (told[label] for label in sweep.labels().values())
    assert (first.status, second.status, third.status) == ("failed", "finished", "skipped")
    assert "Read-only file system" in str(first.reason)
    assert sweep.runs[0].id in str(first.reason)
    run_sweep(sweep, out, Serial())
    assert contents(out) == before


def refuse_writing(patch: pytest.MonkeyPatch, folder: Path, honest: bool) -> None:
    """Have the system refuse to write in a folder, as a read-only file system does."""

    def refused(path: object) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).is_relative_to(folder)

    def refusing(real: Callable[..., object], writes: Callable[..., bool] = lambda *_, **__: True) -> object:
        def call(path: object, *arguments: object, **options: object) -> object:
            if refused(path) and writes(*arguments, **options):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, *arguments, **options)

        return call

    for name in ("mkdir", "rmdir", "unlink", "rename", "replace", "utime"):
        patch.setattr(os, name, refusing(getattr(os, name)))
    patch.setattr(os, "open", refusing(os.open, lambda flags, *_, **__: bool(flags & (os.O_WRONLY | os.O_RDWR))))
    patch.setattr(io, "open", refusing(io.open, lambda mode="r", *_, **__: bool(set(mode) & set("wax+"))))
    if honest:
        patch.setattr(os, "access", lambda path, mode, real=os.access: not refused(path) and real(path, mode))


# --- newer releases


def test_fields_of_a_newer_release_are_named(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sweep(sweep, out, Serial())
    before = contents(out)
    run, other = out / sweep.runs[0].id, out / sweep.runs[1].id
    data = json.loads((run / "config.json").read_bytes())
    data["training"]["momentum_decay"] = 0.5
    (run / "config.json").write_text(json.dumps(data))
    with pytest.raises(SettingError, match=r"config\.json\.training\.momentum_decay: expected a field of Training"):
        RunFolder(run).config  # noqa: B018
    assert Results(out).frame("runs")["status"].to_list() == ["unevaluated", "finished", "finished"]
    assert "config.json.training.momentum_decay" in Results(out).frame("runs")["reason"][0]
    with pytest.raises(SettingError, match="momentum_decay"):
        Run.load(run)
    assert Run.load(other).config == sweep.runs[1]
    assert steps_since(tmp_path, lambda: run_sweep(sweep, out, Serial())) == {}
    assert contents(out) == before
    whole = json.loads((out / "sweep.json").read_bytes())
    whole["runs"][2]["task"]["kind"] = "PlantedAnew"
    (out / "sweep.json").write_text(json.dumps(whole))
    with pytest.raises(SettingError, match=r"sweep\.json\.runs\[2\]\.task\.kind: expected a task .* 'PlantedAnew'"):
        Results(out)
    assert steps_since(tmp_path, lambda: run_sweep(sweep, out, Serial())) == {}
    assert contents(out) == before
