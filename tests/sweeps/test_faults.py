"""Disks that are full or cannot be written, and files that were lost, cut, changed, or written by a newer release."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweeps.curricula import Counted
from training.small_runs import small_run
from training.test_train import contents, cut, flip

from sparsity_lab.settings import SettingError
from sparsity_lab.sweeps import Results, Serial, Sweep, SweepEvent, run_sweep
from sparsity_lab.training import Run, Status, files, status
from sparsity_lab.training.store import read_config


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


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, Status, bool]] = {
    "flipped byte in the weights": (lambda folder: flip(folder / "model.safetensors"), Status.BROKEN, True),
    "cut metrics": (lambda folder: cut(folder / "metrics.parquet"), Status.BROKEN, True),
    "cut evaluation": (lambda folder: cut(next((folder / "evaluation").iterdir())), Status.UNEVALUATED, False),
    "cut config": (lambda folder: cut(folder / "config.json"), Status.UNEVALUATED, False),
    "deleted run": (shutil.rmtree, Status.MISSING, True),
}
"""What is done to a run's folder, what is found then, and whether the run is trained again."""


@pytest.mark.parametrize(("damage", "found", "trained"), DAMAGES.values(), ids=DAMAGES)
def test_only_what_is_broken_is_made_again(
    sweep: Sweep, tmp_path: Path, damage: Damage, found: Status, trained: bool
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
    events: list[SweepEvent] = []
    steps = steps_since(tmp_path, lambda: run_sweep(sweep, out, Serial(), events.append))
    assert steps == ({"1": 6} if trained else {})
    assert [event.status for event in events] == ["skipped", "skipped", "finished"]
    assert contents(out) == before


def test_folders_that_changed_places_are_not_taken_for_each_other(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sweep(sweep, out, Serial())
    before = contents(out)
    first, second, _ = (out / run.id for run in sweep.runs)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    assert [status(run, out) for run in sweep.runs] == [Status.BROKEN, Status.BROKEN, Status.FINISHED]
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


def test_flipped_byte_in_a_checkpoint_is_not_gone_on_from(sweep: Sweep, tmp_path: Path) -> None:
    run_sweep(sweep, tmp_path / "whole", Serial())
    out = tmp_path / "out"
    (out / sweep.runs[0].id).mkdir(parents=True)
    # As a run is left that was killed after its second checkpoint.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsity_lab.training.run.evaluate", lambda *_: pytest.fail("killed"))
        patch.setattr("sparsity_lab.training.run.save_weights", _killed)
        run_sweep(sweep, out, Serial())
    checkpoint = out / sweep.runs[1].id / "checkpoint.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[-100] ^= 1
    checkpoint.write_bytes(content)
    steps = steps_since(tmp_path, lambda: run_sweep(sweep, out, Serial()))
    assert steps == {"0": 2, "1": 6, "2": 2}
    assert contents(out) == contents(tmp_path / "whole")


def _killed(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


# --- full disks


def check_full(sweep: Sweep, tmp_path: Path, out: Path, make_room: Callable[[], None]) -> None:
    """Every run that has no room says so and names its file; with room again only these are made."""
    events: list[SweepEvent] = []
    run_sweep(sweep, out, Serial(), events.append)
    reasons = [event.reason or "" for event in events]
    assert [event.status for event in events] == ["failed"] * 3
    assert all("[Errno 28] No space left on device" in reason and str(out) in reason for reason in reasons)
    assert not list(out.rglob("*.tmp"))
    assert not list(out.glob("*/claim"))
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
    check_full(sweep, tmp_path, small_disk, filler.unlink)


@pytest.mark.parametrize(
    "full", ["claim", "config.json", "checkpoint.safetensors", "model.safetensors", "finished.json"]
)
def test_write_without_room(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    real = Path.open

    class Full:
        def __init__(self, file: Path) -> None:
            file.touch()

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write(self, _: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(self: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        place = self.parent.name if full == "claim" else self.name
        if "w" in mode and place.startswith(f".{full}."):
            return Full(self)
        return real(self, mode, *arguments, **options)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(Path, "open", opened)
    check_full(sweep, tmp_path, tmp_path / "out", lambda: monkeypatch.setattr(Path, "open", real))


def test_no_room_for_the_sweep_itself(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sparsity_lab.sweeps.execute.write_file", full)
    with pytest.raises(SettingError, match="out: expected a folder that can be written .No space left on device"):
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
    with pytest.raises(SettingError, match="out: expected a folder that can be written"):
        run_sweep(sweep, small_disk, Serial())
    # Reading is all that reading needs.
    assert Results(small_disk).frame("runs")["status"].to_list() == ["finished"] * 3
    assert contents(small_disk) == before


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
        read_config(run)
    assert Results(out).frame("runs")["status"].to_list() == ["unevaluated", "finished", "finished"]
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
