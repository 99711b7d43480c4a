"""Leases: one process at a time makes a run, whoever dies, stops, or judges late."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from training.small_runs import small_run

from sparsity_lab.training import Diverged, RunConfig, Status, files, status, store, train
from sparsity_lab.training import folder as folders
from sparsity_lab.training import lease as leases
from sparsity_lab.training.files import Writer
from sparsity_lab.training.folder import RunFolder, leave_failure
from sparsity_lab.training.lease import Lease, Leased, LeaseLost, Watch, drop_lease, holder_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    return tmp_path / "run"


def foreign(folder: Path, writer: Writer | None = None) -> Path:
    """A lease of a process on another machine, or of the one that is given; its file."""
    writer = writer or Writer(place="f" * 12, process=1, started=1)
    (folder / "lease").mkdir(exist_ok=True)
    file = folder / "lease" / writer.mark()
    file.write_text('{"host": "far", "process": 1, "since": "2026-01-01T00:00:00+00:00"}')
    return file


def test_one_holds_and_the_next_one_gets_it_after(folder: Path) -> None:
    with Lease.hold(folder, wait=False) as lease:
        holder = holder_of(folder)
        assert holder is not None
        assert holder.process == os.getpid()
        assert not holder.gone
        assert Lease.take(folder) is None
        with pytest.raises(Leased, match="run run is being made by another process"):
            Lease.hold(folder, wait=False)
        lease.check()
    assert [path.name for path in folder.iterdir()] == ["evaluation"]
    with Lease.hold(folder, wait=False):
        assert holder_of(folder) != holder


def test_lease_is_renewed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TERM", 0.3)
    with Lease.hold(folder, wait=False) as lease:
        file = next((folder / "lease").iterdir())
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 20
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0
        lease.check()


def test_dead_holder_of_this_machine_is_put_out_at_once(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = Writer.here()
    foreign(folder, Writer.numbered(child.pid))
    assert not Watch(folder).free()
    child.send_signal(signal.SIGKILL)
    # Nobody has asked how it ended: it still has a number.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Watch(folder).free()
    child.communicate()
    # A number that was given again is another process.
    foreign(folder, Writer(place=here.place, process=os.getpid(), started=here.started - 1))
    with Lease.hold(folder, wait=False):
        pass


def watched(watch: Watch, seconds: float, monkeypatch: pytest.MonkeyPatch, step: float = 5.0) -> bool:
    """What a watcher says after so many seconds of looking every ``step``."""
    now = [time.monotonic()]
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    free = watch.free()
    for _ in range(round(seconds / step)):
        now[0] += step
        free = watch.free()
    return free


def test_holder_elsewhere_loses_after_a_lease_without_renewal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = foreign(folder)
    os.utime(file, (0, 0))  # of a clock that is decades behind: it is not compared
    watch = Watch(folder)
    assert not watched(watch, leases.TERM - 5, monkeypatch)
    os.utime(file, (1, 1))
    assert not watched(watch, leases.TERM - 5, monkeypatch)
    assert watched(watch, 15, monkeypatch)
    assert not file.exists()


def test_pause_of_the_watcher_is_not_one_of_the_holder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(folder)
    watch = Watch(folder)
    assert not watched(watch, 3 * leases.TERM, monkeypatch, step=3 * leases.TERM)
    assert not watched(watch, 20, monkeypatch)


def test_late_judge_removes_nobody_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two find the same lease expired; the slower one acts when the faster one already holds the run."""
    foreign(folder)
    fast, slow = Watch(folder), Watch(folder)
    assert not watched(fast, leases.TERM - 5, monkeypatch)
    assert not watched(slow, leases.TERM - 5, monkeypatch)
    real, taken = holder_of(folder), []

    def late(_: Path) -> leases.Holder | None:
        if not taken:
            (folder / "lease" / real.mark).unlink()  # type: ignore[union-attr]
            taken.append(Lease.take(folder))
        return real

    monkeypatch.setattr(leases, "holder_of", late)
    assert watched(slow, 15, monkeypatch)
    taken[0].check()
    assert Lease.take(folder) is None
    taken[0].release()


def test_write_that_was_begun_before_a_takeover_never_lands(folder: Path) -> None:
    """A process stops at any point of a write, another one takes over, the first one goes on."""
    for moment in ("before the check", "after the check"):
        (folder / "file").write_bytes(b"old")
        first = Lease.take(folder)
        assert first is not None
        others: list[Lease] = []

        def stopped(lease: Lease, moment: str, others: list[Lease]) -> None:
            def take_over() -> None:
                next((folder / "lease").iterdir()).unlink()
                others.append(Lease.hold(folder, wait=False))
                files.write_file(folder / "file", b"new", check=others[0].check)

            if moment == "before the check":
                take_over()
            lease.check()
            if moment == "after the check":
                take_over()

        with pytest.raises((LeaseLost, FileNotFoundError)):
            files.write_file(folder / "file", b"late", check=lambda: stopped(first, moment, others))  # noqa: B023
        assert (folder / "file").read_bytes() == b"new"
        others[0].release()
        first.release()
        assert sorted(path.name for path in folder.iterdir()) == ["evaluation", "file"]


def late_replacements(config: RunConfig, out: Path, number: int) -> tuple[bool, set[str]]:
    """A worker stops just before it puts its n-th file in place. Another one takes over and finishes the run. Then
    the first one goes on. Whether it came so far, and which files of the finished run changed."""
    folder, replace, renames, finished = out / config.id, Path.replace, [], {}

    def found() -> dict[str, tuple[int, bytes]]:
        return {str(file): (file.stat().st_ino, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}

    def stopping(file: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == number:
            next((folder / "lease").iterdir()).unlink()
            train(config, out)
            finished.update(found())
        return replace(file, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", stopping)
        assert train(config, out).evaluation.height == 1
    return len(renames) >= number, {name for name, _ in finished.items() ^ found().items()} if finished else set()


def test_a_superseded_worker_replaces_no_file_of_a_finished_run(tmp_path: Path) -> None:
    training = small_run().training.replace(steps=2, log_every=1, checkpoint_every=1)
    config = small_run(training=training, evaluation=small_run().evaluation.replace(lengths=(8,)))
    number = 0
    for number in range(1, 100):
        stopped, changed = late_replacements(config, tmp_path / str(number), number)
        assert changed == set()
        if not stopped:
            break
    assert number > 12  # settings, environment, checkpoint, metrics, clocks, weights, evaluation and two markers
    # The mutant: who takes over leaves what lies next to the files.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "remove_unfinished", lambda _: None)
        _, changed = late_replacements(config, tmp_path / "mutant", 1)
    assert changed


HOLDS_ELSEWHERE = """
import sys
from pathlib import Path
from sparsity_lab.training.lease import Lease, holder_of
with Lease.hold(Path(sys.argv[1]), wait=False):
    print(holder_of(Path(sys.argv[1])).host, flush=True)
    sys.stdin.read()
"""


def test_two_host_names_on_one_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in another UTS namespace is elsewhere: its lease lasts for the whole term, whatever becomes of it."""
    command = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh", sys.executable, "-c"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, HOLDS_ELSEWHERE, str(folder)], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        if (host := child.stdout.readline().strip()) == "":
            pytest.skip("no other host name can be made here")
        assert host == "elsewhere"
        holder = holder_of(folder)
        assert holder is not None
        with pytest.raises(Leased):
            Lease.hold(folder, wait=False)
        child.kill()
        child.wait()
        assert not holder.gone
        with pytest.raises(Leased):
            Lease.hold(folder, wait=False)
        assert watched(Watch(folder), leases.TERM + 15, monkeypatch)


def test_without_the_fence_a_late_write_lands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: who takes over leaves what lies beside."""
    monkeypatch.setattr(leases, "remove_unfinished", lambda _: None)
    with pytest.raises(pytest.fail.Exception):
        test_write_that_was_begun_before_a_takeover_never_lands(folder)


def test_empty_and_odd_leases_stop_nobody(folder: Path) -> None:
    (folder / "lease").mkdir(exist_ok=True)
    with Lease.hold(folder, wait=False):
        pass
    (folder / "lease").write_text("a file")
    with Lease.hold(folder, wait=False):
        pass
    (folder / "lease" / "inner").mkdir(parents=True)
    os.mkfifo(folder / "lease" / "pipe")
    assert holder_of(folder) is None
    with Lease.hold(folder, wait=False):
        pass
    assert not (folder / "lease").exists()
    os.mkfifo(folder / "lease")
    with Lease.hold(folder, wait=False):
        pass


def test_lease_that_seems_free_and_cannot_be_had_is_anothers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that sees an old state of the folder."""
    tries = []
    monkeypatch.setattr(Lease, "take", lambda _: tries.append(1))
    with pytest.raises(Leased):
        Lease.hold(folder, wait=False)
    assert 1 < len(tries) < 10


def test_check_believes_no_memory_of_the_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``stat`` says may be as old as the attribute cache of a network file system; opening asks its server."""
    with Lease.hold(folder, wait=False) as lease:
        file = next((folder / "lease").iterdir())
        remembered = os.stat(file)
        lease.check()
        file.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", lambda *_, **__: remembered)
            patch.setattr(os, "lstat", lambda *_, **__: remembered)
            assert file.exists()
            with pytest.raises(LeaseLost, match="the lease on run run was lost"):
                lease.check()


@pytest.mark.parametrize(("code", "raised"), [(errno.ESTALE, LeaseLost), (errno.EIO, OSError)])
def test_only_a_missing_file_is_a_lost_lease(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, raised: type[Exception]
) -> None:
    def fail(path: object, *_: int) -> int:
        raise OSError(code, os.strerror(code), str(path))

    with Lease.hold(folder, wait=False) as lease, monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(raised):
            lease.check()


def test_lease_of_the_dead_leaves_a_finished_folder(folder: Path) -> None:
    file = foreign(folder, Writer(place=Writer.here().place, process=2**22 + 1, started=1))
    drop_lease(folder)
    assert not file.parent.exists()
    file = foreign(folder)
    drop_lease(folder)
    assert file.exists()


def test_no_lease_is_dropped_through_a_link(folder: Path) -> None:
    (folder / "lease").mkdir()
    link = folder.with_name("link")
    link.symlink_to(folder)
    drop_lease(link)
    assert (folder / "lease").is_dir()
    drop_lease(folder)
    assert not (folder / "lease").exists()


def test_rename_whose_answer_was_lost_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "rename", twice)
    assert Lease.take(folder) is not None


def test_run_that_was_taken_over_is_given_up_at_the_next_step(tmp_path: Path) -> None:
    config: RunConfig = small_run(training=small_run().training.replace(log_every=1))
    folder = tmp_path / config.id
    seen: list[int] = []

    def progress(done: int, *_: object) -> None:
        seen.append(done)
        if len(seen) == 5:
            next((folder / "lease").iterdir()).unlink()
            foreign_lease = Lease.take(folder)
            assert foreign_lease is not None
            # The other one finishes it and lets go.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Lease, "hold", lambda *_, **__: foreign_lease)
                train(config, tmp_path)

    run = train(config, tmp_path, progress=progress)
    assert seen == [1, 2, 3, 4, 5]
    assert run.evaluation.height == 3
    assert not (folder / "lease").exists()


def test_run_that_another_process_makes_is_left_or_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = small_run()
    child = small_run(parent=parent, data_seed=1)
    (tmp_path / parent.id).mkdir()
    with Lease.hold(tmp_path / parent.id, wait=False):
        for config in (parent, child):
            with pytest.raises(Leased, match=parent.id):
                train(config, tmp_path, wait=False)
    file = foreign(tmp_path / parent.id)
    monkeypatch.setattr(leases, "TERM", 0.2)
    train(child, tmp_path)
    assert not file.exists()
    assert {path.name for path in tmp_path.iterdir()} == {parent.id, child.id}


def crash(*_: object) -> None:
    raise RuntimeError("no\ncure")


def test_failure_is_on_record_before_the_run_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded after that would be taken for a failure of whoever has leased the run meanwhile."""
    release, recorded = Lease.release, []

    def released(self: Lease) -> None:
        recorded.append(RunFolder(self.folder).failure)
        release(self)

    monkeypatch.setattr(Lease, "release", released)
    with pytest.raises(RuntimeError, match="no"):
        train(small_run(), tmp_path, progress=crash)
    assert recorded == ["RuntimeError: no cure"]


def test_failure_after_a_takeover_is_nobodys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the loser of a lease meets after that, it says so and stops, and leaves the run to the other one."""
    config = small_run()
    folder = tmp_path / config.id

    def lose_and_crash(*_: object) -> None:
        next((folder / "lease").iterdir()).unlink()
        foreign(folder)
        crash()

    with pytest.raises(Leased):
        train(config, tmp_path, progress=lose_and_crash, wait=False)
    (told,) = caplog.messages
    assert told.startswith(f"the lease on run {config.id} was lost")
    leave_failure(folder, "what the other one will not see")
    assert RunFolder(folder).failure is None
    assert status(config, tmp_path) is Status.INTERRUPTED
    assert holder_of(folder) is not None


def test_failure_waits_for_a_holder_that_is_dying(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    try:
        foreign(folder, Writer.numbered(child.pid))
        leave_failure(folder, "its worker process died")
        assert RunFolder(folder).failure == "its worker process died"
    finally:
        child.kill()
        child.wait()


def test_failure_waits_for_nobody_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether that one is about to end cannot be seen: a sweep that loses many nodes would wait for each."""
    slept: list[float] = []
    monkeypatch.setattr(folders.time, "sleep", slept.append)
    foreign(folder)
    leave_failure(folder, "its node was lost")
    assert (slept, RunFolder(folder).failure) == ([], None)
    monkeypatch.setattr(folders, "_is_held_elsewhere", lambda _: False)
    monkeypatch.setattr(folders, "_DYING", 0.2)
    leave_failure(folder, "its node was lost")
    assert slept  # the mutant


def test_failure_is_forgotten_by_who_tries_again(tmp_path: Path) -> None:
    training = small_run().training.replace(learning_rate=1e30, warmup=0.0, clip=1e30)
    config = small_run(training=training)
    (tmp_path / config.id).mkdir()
    (tmp_path / config.id / store.FAILED).write_text("{}")
    with pytest.raises(Diverged):
        train(config, tmp_path)
    assert not (tmp_path / config.id / store.FAILED).exists()
    assert not (tmp_path / config.id / "lease").exists()


def test_the_name_of_a_process_need_not_be_text(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Writer.here()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self).replace(b"(", b"(\xff) Z "))
    assert Writer.numbered(here.process) == here


def test_a_live_process_that_may_not_be_looked_at_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Writer.here()
    later = dataclasses.replace(here, started=here.started + 1)
    assert not here.gone
    assert later.gone
    assert dataclasses.replace(here, process=2**22 + 1).gone

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert not here.gone
    assert not later.gone


def test_a_lease_that_fails_at_its_start_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise PermissionError(13, "denied", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(leases, "remove_unfinished", fail)
        with pytest.raises(PermissionError):
            Lease.take(tmp_path)
    assert holder_of(tmp_path) is None
    (tmp_path / "lease").mkdir(exist_ok=True)
    (tmp_path / "lease" / "nobody").symlink_to("nowhere")
    with Lease.hold(tmp_path, wait=False):
        assert holder_of(tmp_path) is not None


class _Signal:
    """A signal that comes just before the n-th line that this process takes in the file of leases."""

    def __init__(self, number: int) -> None:
        self.left, self.came = number, False

    def __call__(self, frame: FrameType, event: str, argument: object) -> "_Signal | None":
        if frame.f_code.co_filename != leases.__file__:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.came = True
                raise SystemExit(143)
        return self

    def comes_during(self, call: Callable[[], object]) -> bool:
        """Whether it came before the call was over; it was raised then."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except SystemExit:
            assert self.came
        else:
            sys.settrace(before)
            assert not self.came, "a signal was swallowed"
        finally:
            sys.settrace(before)
        return self.came


@pytest.mark.parametrize("what", ["take", "release"])
def test_a_signal_at_any_instant_is_raised_and_leaves_no_lease(folder: Path, what: str) -> None:
    """A worker that is told to stop would otherwise go on, or leave a lease behind."""
    for number in range(1, 1000):
        held = Lease.take(folder) if what == "release" else None
        if not _Signal(number).comes_during(held.release if held else lambda: Lease.take(folder)):
            break
        if what == "release" and number == 1:
            # Before its first line nothing can be done: the lease is given up when its process ends.
            assert held is not None
            held.release()
        assert [path.name for path in folder.iterdir()] == ["evaluation"]
    assert number > 3
