"""``verified.json``, the cache of what has been verified: whatever is done to it, the runs are told as they are."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sweeps.curricula import Crashing
from training.small_runs import small_run
from training.test_train import cut, flip

from sparsity_lab.sweeps import Overview, Results, Serial, Sweep, SweepEvent, grid, overview, run_sweep, verified
from sparsity_lab.training import Evaluation, RunConfig, store

PARENT = small_run(data_seed=9)
CRASHING = small_run(training=small_run().training.replace(curriculum=Crashing(length=8)))
SWEEP = Sweep(name="verified", runs=[*grid(small_run(), {"seed": [0, 1]}), small_run(parent=PARENT), CRASHING])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    run_sweep(SWEEP, out, Serial())
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs. It takes no minute until they are entered."""
    monkeypatch.setattr(verified, "_SETTLED", -1.0)
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the runs whose files are read."""
    seen = []
    state = Results.state

    def counted(self, run, **options):
        seen.append(run.id)
        return state(self, run, **options)

    monkeypatch.setattr(Results, "state", counted)
    return seen


def seen(out: Path) -> Overview:
    return overview(Results(out, SWEEP))


def test_a_run_is_read_once_until_a_file_of_it_changes(out: Path, looks: list[str]) -> None:
    before = seen(out)
    assert before.counts == {"finished": 4, "failed": 1}
    assert sorted(looks) == sorted([PARENT.id, *(run.id for run in SWEEP.runs)])
    looks.clear()
    assert seen(out) == before
    assert looks == [CRASHING.id]
    assert run_sweep(SWEEP, out, Serial()).failures  # which verifies everything, and changes nothing
    looks.clear()
    assert seen(out) == before
    assert looks == [CRASHING.id]


def test_what_a_sweep_has_seen_is_not_read_again(tmp_path: Path, looks: list[str]) -> None:
    """As it finishes, and as a parent or a run of its own; in the middle of it as well."""
    known = []

    def progress(event: SweepEvent) -> None:
        looks.clear()
        seen(tmp_path)
        known.append(5 - len(looks))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verified, "_SECONDS_BETWEEN", -1.0)
        run_sweep(SWEEP, tmp_path, Serial(), progress)
    assert known == [1, 2, 3, 3, 4]
    looks.clear()
    child = Sweep(name="child", runs=[small_run(parent=SWEEP.runs[0], data_seed=4)])
    for sweep, read in ((SWEEP, 1), (Sweep(name="one", runs=SWEEP.runs[:1]), 0), (child, 2), (SWEEP, 1)):
        overview(Results(tmp_path, sweep))
        assert len(looks) == read
        looks.clear()


FILES = ("finished.json", "config.json", "metrics.parquet", "model.safetensors", "EVALUATION")


@pytest.mark.parametrize(("how", "keeps_times"), [(flip, True), (cut, False), (os.remove, False)])
@pytest.mark.parametrize("name", FILES)
def test_whatever_is_done_to_a_file_is_seen(out: Path, name: str, how, keeps_times: bool) -> None:
    run = SWEEP.runs[0]
    assert seen(out).counts == {"finished": 4, "failed": 1}
    file = out / run.id / (store.evaluation_file(run) if name == "EVALUATION" else name)
    before = file.stat()
    how(file)
    if keeps_times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with_cache = seen(out)
    assert with_cache.counts["finished"] == 3
    (out / "verified.json").unlink()
    assert seen(out) == with_cache


def test_another_evaluation_is_another_question(out: Path) -> None:
    assert seen(out).complete is False
    other = Evaluation(lengths=(8,), sequences=16)
    changed = Sweep(name="other", runs=[run.replace(evaluation=other) for run in SWEEP.runs[:2]])
    assert overview(Results(out, changed)).counts == {"unevaluated": 2}
    # Of a parent any evaluation will do.
    child = Sweep(name="child", runs=[small_run(parent=SWEEP.runs[0].replace(evaluation=other), data_seed=4)])
    for _ in range(2):
        assert overview(Results(out, child)).counts == {"finished": 1, "missing": 1}
    assert seen(out).counts == {"finished": 4, "failed": 1}


HOSTILE = {
    "nothing": b"",
    "no JSON": b"{",
    "nested": b"[" * 100_000,
    "a list": b"[1, 2]",
    "another record": b'{"a": 1}',
    "a number that is none": b'{"a": ["", NaN]}',
    "less than nothing": b'{"a": ["", -1.0]}',
    "a pickle": b"\x80\x04N.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_cache_counts_as_nothing(out: Path, content: bytes, looks: list[str]) -> None:
    (out / "verified.json").write_bytes(content)
    assert seen(out).counts == {"finished": 4, "failed": 1}
    assert len(looks) == 5
    assert seen(out).counts == {"finished": 4, "failed": 1}
    assert len(looks) == 6


def test_a_forged_cache_says_nothing_of_a_damaged_run(out: Path, tmp_path: Path) -> None:
    """It names all runs as whole; in a copy, which has other inodes, with the hashes of the original."""
    before = seen(out)
    record = json.loads((out / "verified.json").read_bytes())
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    run = SWEEP.runs[0]
    flip(copy / run.id / "model.safetensors")
    record[place_of(CRASHING)] = record[place_of(run)]
    for place in (copy, out):
        (place / "verified.json").write_text(json.dumps(record))
    assert seen(out) == before
    assert seen(copy).counts["finished"] == 3
    (copy / "verified.json").write_text(json.dumps({name: ["", 0.0] for name in record}))
    assert seen(copy).counts["finished"] == 3


def place_of(run: RunConfig) -> str:
    return f"{run.id}/{run.evaluation_id}"


@pytest.mark.parametrize("how", ["another user's", "writable by others"])
def test_the_cache_of_others_says_nothing(out: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """They can work out the hash of a damaged run, and put it there."""
    seen(out)
    file, run = out / "verified.json", SWEEP.runs[0]
    flip(out / run.id / "model.safetensors")
    look = verified.Verified(out).look(run)
    record = json.loads(file.read_bytes()) | {look.place: [look.found, 1.0]}
    for forged in (True, False):
        file.write_text(json.dumps(record))
        with monkeypatch.context() as patch:
            if forged and how == "another user's":
                patch.setattr(os, "geteuid", lambda: out.stat().st_uid + 1)
            file.chmod(0o666 if forged and how != "another user's" else 0o600)
            found = overview(Results(out, SWEEP, trusted=True))
        assert found.counts["finished"] == (3 if forged else 4)


def test_a_cache_of_gigabytes_or_a_link_is_not_read(out: Path, tmp_path: Path, looks: list[str]) -> None:
    before = seen(out)
    elsewhere = tmp_path / "elsewhere"
    (out / "verified.json").rename(elsewhere)
    kept = elsewhere.read_bytes()
    (out / "verified.json").symlink_to(elsewhere)
    looks.clear()
    assert seen(out) == before
    assert len(looks) == 5
    # The link has been replaced, and what it led to was left alone.
    assert elsewhere.read_bytes() == kept
    assert not (out / "verified.json").is_symlink()
    with (out / "verified.json").open("ab") as opened:
        opened.truncate(3 * 2**30)
    looks.clear()
    assert seen(out) == before
    assert len(looks) == 5


def test_of_two_that_write_at_once_one_is_kept_whole(out: Path) -> None:
    with ThreadPoolExecutor(2) as both:
        found = list(both.map(seen, [out] * 6))
    assert found == [found[0]] * 6
    kept = json.loads((out / "verified.json").read_bytes())
    assert set(kept) == {f"{PARENT.id}/", *(place_of(run) for run in SWEEP.runs[:3])}
    assert not list(out.glob(".*.tmp"))


def test_a_folder_that_cannot_be_written_or_is_not_ones_own_has_none(
    out: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = seen(out)
    looks.clear()
    assert overview(Results(out, SWEEP, trusted=False)) == before
    assert len(looks) == 5
    (out / "verified.json").unlink()
    monkeypatch.setattr(verified, "write_file", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert seen(out) == before
    assert not (out / "verified.json").exists()


def test_what_has_just_changed_is_not_entered(made: Path, tmp_path: Path, looks: list[str]) -> None:
    """Two changes at nearly the same time may leave the same time."""
    out = shutil.copytree(made, tmp_path / "out")
    for _ in range(2):
        assert seen(out).counts == {"finished": 4, "failed": 1}
    assert len(looks) == 10
    assert (out / "verified.json").read_bytes() == (made / "verified.json").read_bytes()
