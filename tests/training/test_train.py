"""``train``: what is in the folder afterwards, and what a second call makes of what is there."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from training.small_runs import SMALL_MODEL, opened, small_run

from sparsity_lab.generators import Planted, Stream
from sparsity_lab.kernels import Softmax
from sparsity_lab.models import RandomOffset
from sparsity_lab.settings import SettingError, canonical_json
from sparsity_lab.training import Diverged, Run, RunConfig, Status, status, train
from sparsity_lab.training.files import DamagedFile, Writer
from sparsity_lab.training.folder import RunFolder

FILES = {
    "config.json",
    "environment.json",
    "finished.json",
    "metrics.parquet",
    "model.safetensors",
    "timing.parquet",
    "timing.sha256",
}


def contents(folder: Path) -> dict[str, bytes]:
    """All files that the config decides, with their bytes."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
        and file.name not in ("environment.json", "timing.parquet", "timing.sha256", "verified.json")
    }


def diverging(**changes: object) -> RunConfig:
    training = small_run().training.replace(learning_rate=1e30, warmup=0.0, clip=1e30)
    return small_run(training=training, **changes)


class Interrupted(Exception):
    pass


def interrupt_at(step: int):
    def progress(done: int, steps: int, loss: float, accuracy: float) -> None:
        if done == step:
            raise Interrupted

    return progress


def checkpointed(**changes: object) -> RunConfig:
    return small_run(training=small_run().training.replace(log_every=1, checkpoint_every=4), **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(checkpointed(), tmp_path_factory.mktemp("finished"))


def test_folder_holds_exactly_the_files_of_a_run(finished: Run) -> None:
    config = finished.config
    names = {str(file.relative_to(finished.folder)) for file in finished.folder.rglob("*") if file.is_file()}
    assert names == FILES | {f"evaluation/{config.evaluation_id}.parquet"}
    assert (finished.folder / "config.json").read_text() == canonical_json(config)
    assert finished.metrics["step"].to_list() == list(range(12))
    assert set(finished.metrics["length"]) <= set(range(4, 9))
    assert finished.evaluation["length"].to_list() == [4, 8, 16]
    timing = pl.read_parquet(finished.folder / "timing.parquet")
    assert timing["phase"].to_list() == ["training"] * 12 + ["evaluation"]
    tokens = [4 * (length + 2) for length in finished.metrics["length"]]
    assert timing["tokens"].to_list() == [*tokens, 16 * (6 + 10 + 18)]
    environment = json.loads((finished.folder / "environment.json").read_bytes())
    assert environment["packages"]["torch"] == torch.__version__


def test_metrics_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """The first steps, done by hand with torch alone."""
    config = small_run(training=small_run().training.replace(steps=3, log_every=1, warmup=0.0, clip=0.5))
    run = train(config, tmp_path)
    model = config.model.build(0, vocab_size=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for step, row in enumerate(run.metrics.iter_rows(named=True)):
        stream = Stream(seed=0, name="train")
        batch = config.task.sample(stream, 4 * step, 4, config.training.curriculum.at(stream, step, 3))
        loss = torch.nn.functional.cross_entropy(model(batch.tokens).logits.flatten(0, 1), batch.targets.flatten())
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        for parameter in model.parameters():
            parameter.grad *= min(1.0, 0.5 / float(norm))
        for group in optimizer.param_groups:
            group["lr"] = config.training.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_same_config_same_bytes(finished: Run, tmp_path: Path) -> None:
    assert contents(train(finished.config, tmp_path).folder) == contents(finished.folder)


@pytest.mark.parametrize("step", [1, 4, 5, 7, 12])
def test_resumed_run_is_bitwise_the_uninterrupted_one(finished: Run, tmp_path: Path, step: int) -> None:
    with pytest.raises(Interrupted):
        train(finished.config, tmp_path, progress=interrupt_at(step))
    assert status(finished.config, tmp_path) is Status.INTERRUPTED
    seen: list[int] = []
    run = train(finished.config, tmp_path, progress=lambda done, *_: seen.append(done))
    # Checkpoints come every four steps, so no more than three are done twice.
    assert seen[0] == (step - 1) // 4 * 4 + 1
    assert contents(run.folder) == contents(finished.folder)


def test_resume_with_random_offsets(tmp_path: Path) -> None:
    config = checkpointed(model=SMALL_MODEL.replace(index_sampling=RandomOffset(size=32)))
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "cut", progress=interrupt_at(6))
    assert contents(train(config, tmp_path / "cut").folder) == contents(whole.folder)


KILLED = """
import json, os, signal, sys
from sparsity_lab.settings import from_data
from sparsity_lab.training import RunConfig, train
config = from_data(RunConfig, json.loads(sys.argv[1]))
train(config, sys.argv[2], progress=lambda done, *_: done == 7 and os.kill(os.getpid(), signal.SIGKILL))
"""


def test_killed_process_is_resumed(finished: Run, tmp_path: Path) -> None:
    text = canonical_json(finished.config)
    assert subprocess.run([sys.executable, "-c", KILLED, text, str(tmp_path)], check=False).returncode == -9
    assert (tmp_path / finished.id / "checkpoint.safetensors").exists()
    assert contents(train(finished.config, tmp_path).folder) == contents(finished.folder)


def test_finished_run_is_only_loaded(finished: Run) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.folder.rglob("*")}
    train(finished.config, finished.folder.parent, progress=interrupt_at(1))
    assert {file: file.stat().st_mtime_ns for file in finished.folder.rglob("*")} == before


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def become_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "inside").write_text("x")


def flip_a_weight(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def become_another_runs(file: Path) -> None:
    """Intact, and of a run that differs in its seed."""
    other = checkpointed(data_seed=1)
    with pytest.raises(Interrupted):
        train(other, file.parents[1], progress=interrupt_at(7))
    (file.parents[1] / other.id / file.name).replace(file)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_weight, "was changed after it was written: the checksum differs"),
        (cut, "was cut or changed after it was written"),
        (become_folder, "cannot be read: Is a directory"),
        (become_another_runs, "belongs to another run"),
    ],
)
def test_damaged_checkpoint_is_named_and_worth_none(
    finished: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage, words: str
) -> None:
    with pytest.raises(Interrupted):
        train(finished.config, tmp_path, progress=interrupt_at(7))
    file = tmp_path / finished.id / "checkpoint.safetensors"
    assert RunFolder(file.parent, finished.config).inspect().damage is None
    damage(file)
    assert f"{finished.id}/checkpoint.safetensors {words}" in str(RunFolder(file.parent, finished.config).inspect())
    seen: list[int] = []
    run = train(finished.config, tmp_path, progress=lambda done, *_: seen.append(done))
    assert seen[0] == 1
    (told,) = caplog.messages
    assert f"{file} {words}" in told
    assert told.endswith("; training starts at the beginning")
    assert contents(run.folder) == contents(finished.folder)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, become_folder])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.safetensors", Status.BROKEN),
        ("metrics.parquet", Status.BROKEN),
        ("evaluation", Status.UNEVALUATED),
        ("config.json", Status.UNEVALUATED),
    ],
)
def test_damage_is_seen_and_repaired(tmp_path: Path, damage, name: str, expected: Status) -> None:
    config = small_run()
    run = train(config, tmp_path)
    before = contents(run.folder)
    damage(run.folder / (f"evaluation/{config.evaluation_id}.parquet" if name == "evaluation" else name))
    assert status(config, tmp_path) is expected
    seen: list[int] = []
    train(config, tmp_path, progress=lambda done, *_: seen.append(done))
    assert bool(seen) == (expected is Status.BROKEN)
    assert status(config, tmp_path) is Status.FINISHED
    assert contents(run.folder) == before


def test_damaged_marker_repeats_the_run(tmp_path: Path) -> None:
    config = small_run()
    folder = train(config, tmp_path).folder
    before = contents(folder)
    cut(folder / "finished.json")
    assert status(config, tmp_path) is Status.BROKEN
    train(config, tmp_path)
    assert contents(folder) == before


def test_changed_evaluation_does_not_retrain(tmp_path: Path) -> None:
    config = small_run()
    folder = train(config, tmp_path).folder
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    longer = config.replace(evaluation=config.evaluation.replace(lengths=(8, 32)))
    assert status(longer, tmp_path) is Status.UNEVALUATED
    assert status(config, tmp_path) is Status.FINISHED
    run = train(longer, tmp_path, progress=interrupt_at(1))
    assert run.evaluation["length"].to_list() == [8, 32]
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
    # Both frames are there now, and both runs are finished: none of them is touched again.
    assert status(config, tmp_path) is status(longer, tmp_path) is Status.FINISHED
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert train(config, tmp_path).evaluation["length"].to_list() == [4, 8, 16]
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    # Each frame has its own checksum.
    flip(folder / "evaluation" / f"{config.evaluation_id}.parquet")
    assert status(config, tmp_path) is Status.UNEVALUATED
    assert status(longer, tmp_path) is Status.FINISHED
    assert train(config, tmp_path).evaluation["length"].to_list() == [4, 8, 16]
    assert status(longer, tmp_path) is Status.FINISHED


def test_interrupted_evaluation_does_not_retrain(finished: Run, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("sparsity_lab.training.run.evaluate", fail)
        with pytest.raises(Interrupted):
            train(finished.config, tmp_path)
    assert status(finished.config, tmp_path) is Status.UNEVALUATED
    run = train(finished.config, tmp_path, progress=interrupt_at(1))
    assert contents(run.folder) == contents(finished.folder)


def test_leftovers_of_a_finished_run_go(finished: Run, tmp_path: Path) -> None:
    folder = train(finished.config, tmp_path).folder
    for name in ("trained.json", "checkpoint.safetensors"):
        (folder / name).write_bytes(b"left by a process that was killed just before it removed this")
    train(finished.config, tmp_path, progress=interrupt_at(1))
    assert contents(folder) == contents(finished.folder)


def test_divergence_is_a_result(tmp_path: Path) -> None:
    config = diverging()
    with pytest.raises(Diverged) as first:
        train(config, tmp_path)
    folder = tmp_path / config.id
    record = json.loads((folder / "finished.json").read_bytes())
    assert record["status"] == "diverged"
    assert record["step"] == first.value.step
    assert 1 <= first.value.step < 12
    assert record["reason"].split()[0] in ("loss", "gradient")
    assert status(config, tmp_path) is Status.DIVERGED
    assert {file.name for file in folder.iterdir()} == FILES - {"model.safetensors"}
    logged = pl.read_parquet(folder / "metrics.parquet")["step"].to_list()
    assert logged == [step for step in (0, 3, 6, 9) if step < first.value.step]
    before = (folder / "finished.json").stat().st_mtime_ns
    with pytest.raises(Diverged) as second:
        train(config, tmp_path, progress=interrupt_at(1))
    assert (second.value.step, str(second.value.loss)) == (first.value.step, str(first.value.loss))
    assert (folder / "finished.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("log_every", [1, 5, 12])
def test_divergence_names_the_first_bad_step(tmp_path: Path, monkeypatch, log_every: int) -> None:
    """The loss of the call for step 7 becomes NaN; whenever that is looked at, 7 is what is said."""
    calls = iter(range(100))
    real = torch.nn.functional.cross_entropy

    def poisoned(*arguments: torch.Tensor) -> torch.Tensor:
        return real(*arguments) * (float("nan") if next(calls) == 7 else 1.0)

    monkeypatch.setattr("sparsity_lab.training.optimize.cross_entropy", poisoned)
    config = small_run(training=small_run().training.replace(log_every=log_every))
    with pytest.raises(Diverged) as error:
        train(config, tmp_path)
    assert error.value.step == 7
    assert "loss nan" in str(error.value)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, become_folder])
@pytest.mark.parametrize("name", ["config.json", "metrics.parquet", "finished.json"])
def test_damaged_divergence_is_seen_and_repeated(tmp_path: Path, damage, name: str) -> None:
    config = diverging()
    with pytest.raises(Diverged) as first:
        train(config, tmp_path)
    before = contents(tmp_path)
    damage(tmp_path / config.id / name)
    assert status(config, tmp_path) is not Status.DIVERGED
    with pytest.raises(Diverged) as second:
        train(config, tmp_path)
    assert str(second.value) == str(first.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("config", [small_run(), diverging()])
def test_no_changed_byte_of_a_marker_is_believed(tmp_path: Path, config: RunConfig) -> None:
    with contextlib.suppress(Diverged):
        train(config, tmp_path)
    file = tmp_path / config.id / "finished.json"
    content = file.read_bytes()
    for i in range(len(content)):
        for bit in (1, 64):
            file.write_bytes(content[:i] + bytes([content[i] ^ bit]) + content[i + 1 :])
            assert status(config, tmp_path) is Status.BROKEN


def test_changed_clocks_are_gone_and_never_parsed(tmp_path: Path, monkeypatch) -> None:
    """Polars ends the process on some of these bytes, so none of them may reach it."""
    config = small_run()
    folder = train(config, tmp_path).folder
    assert RunFolder(folder, config).timing.height == 6
    content = (folder / "timing.parquet").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pl, "read_parquet", lambda *_, **__: pytest.fail("parsed"))
        for i in range(len(content)):
            (folder / "timing.parquet").write_bytes(content[:i] + bytes([content[i] ^ 0x41]) + content[i + 1 :])
            assert RunFolder(folder, config).timing.is_empty()
    # A changed evaluation writes clocks of its own.
    train(config.replace(evaluation=config.evaluation.replace(lengths=(8,))), tmp_path)
    assert RunFolder(folder, config).timing["phase"].to_list() == ["evaluation"]


def test_changed_frames_are_never_parsed(tmp_path: Path, monkeypatch) -> None:
    run = train(small_run(), tmp_path)
    monkeypatch.setattr(pl, "read_parquet", lambda *_, **__: pytest.fail("parsed"))
    flip(run.folder / "metrics.parquet")
    flip(run.folder / "evaluation" / f"{run.config.evaluation_id}.parquet")
    for read in (lambda: run.metrics, lambda: run.evaluation):
        with pytest.raises(DamagedFile, match="changed after it was written"):
            read()


@pytest.mark.parametrize("checkpoint_every", [0, 12, 6])
def test_weights_that_the_last_step_spoils_are_a_divergence(
    tmp_path: Path, monkeypatch, checkpoint_every: int
) -> None:
    """The last update before the end, or before a checkpoint, leaves an infinite weight behind a finite loss."""
    steps = checkpoint_every or 12
    real, calls = torch.optim.AdamW.step, iter(range(100))

    def spoiling(self: torch.optim.AdamW, *arguments: object) -> None:
        real(self, *arguments)
        if next(calls) == steps - 1:
            with torch.no_grad():
                self.param_groups[0]["params"][-1].view(-1)[0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    config = small_run(training=small_run().training.replace(checkpoint_every=checkpoint_every))
    with pytest.raises(Diverged) as error:
        train(config, tmp_path)
    assert error.value.step == steps
    assert error.value.reason == f"weights not finite after {steps} steps"
    assert status(config, tmp_path) is Status.DIVERGED
    assert not (tmp_path / config.id / "checkpoint.safetensors").exists()
    with pytest.raises(Diverged) as again:
        train(config, tmp_path)
    assert str(again.value) == str(error.value)


def test_parent_is_made_first_and_its_weights_are_the_start(tmp_path: Path) -> None:
    parent = small_run()
    still = small_run().training.replace(steps=1, learning_rate=1e-30)
    child = train(small_run(parent=parent, training=still), tmp_path)
    assert status(parent, tmp_path) is Status.FINISHED
    trained = Run.load(tmp_path / parent.id).model().state_dict()
    for name, weights in child.model().state_dict().items():
        assert torch.equal(weights, trained[name])


def test_parent_of_another_shape_is_refused(tmp_path: Path) -> None:
    parent = small_run(model=SMALL_MODEL.replace(d_model=32))
    with pytest.raises(SettingError) as error:
        train(small_run(parent=parent), tmp_path)
    assert error.value.path == "parent.model"
    assert list(tmp_path.iterdir()) == []


def test_loaded_run_is_the_run(finished: Run) -> None:
    run = Run.load(finished.folder)
    assert run == finished
    assert run.config == finished.config
    assert not run.model().training
    assert "learned" in repr(run)
    assert finished.id in repr(run)
    assert run.summary.columns == ["condition", "learned", "reach", "censored"]


def test_other_kernel_on_the_same_weights(finished: Run) -> None:
    variant = finished.with_kernel(Softmax())
    frame = variant.evaluate()
    assert frame.equals(finished.evaluation)
    shorter = finished.config.evaluation.replace(lengths=(8,))
    assert variant.evaluate(shorter).equals(finished.evaluation.filter(pl.col("length") == 8))
    assert "Softmax" in repr(variant)


def test_folders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    for out in (file, file / "below", "/proc/nowhere"):
        with pytest.raises(SettingError) as error:
            train(small_run(), out)
        assert error.value.path == "out"
    assert file.read_text() == "kept"
    for folder in (tmp_path / "none", file, tmp_path):
        with pytest.raises(SettingError):
            Run.load(folder)


def test_missing_device_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = small_run(training=small_run().training.replace(device="cuda:99"))
    with pytest.raises(SettingError) as error:
        train(config, tmp_path / "out")
    assert error.value.path == "training.device"
    assert not (tmp_path / "out").exists()


def test_unfinished_run_does_not_load(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(finished.config, tmp_path, progress=interrupt_at(7))
    with pytest.raises(SettingError, match="interrupted"):
        Run.load(tmp_path / finished.id)


def test_seeds_are_separate(tmp_path: Path) -> None:
    base = small_run(task=Planted(k=2))
    runs = [train(base.replace(**seeds), tmp_path) for seeds in ({}, {"data_seed": 1}, {"model_seed": 1})]
    lengths = [run.metrics["length"].to_list() for run in runs]
    assert lengths[0] == lengths[2] != lengths[1]
    first = [run.metrics["loss"][0] for run in runs]
    assert len(set(first)) == 3


def test_folder_in_place_of_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    config = checkpointed()
    (tmp_path / config.id / "checkpoint.safetensors").mkdir(parents=True)
    train(config, tmp_path)
    assert status(config, tmp_path) is Status.FINISHED
    assert not (tmp_path / config.id / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("name", ["finished.json", "config.json", "metrics.parquet", "model.safetensors"])
def test_file_that_cannot_be_read_is_not_intact(tmp_path: Path, monkeypatch, name: str) -> None:
    config = small_run()
    train(config, tmp_path)
    real = os.open

    def refusing(path: object, *arguments: int) -> int:
        if Path(os.fspath(path)).name == name:  # type: ignore[call-overload]
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing)
        expected = Status.UNEVALUATED if name == "config.json" else Status.BROKEN
        assert status(config, tmp_path) is expected
        if name == "config.json":
            with pytest.raises(SettingError, match="Permission denied"):
                Run.load(tmp_path / config.id)
    assert status(config, tmp_path) is Status.FINISHED


def test_run_folder_that_cannot_be_is_refused(tmp_path: Path, monkeypatch) -> None:
    config = small_run()
    folder = tmp_path / config.id
    folder.write_text("kept")
    assert status(config, tmp_path) is Status.BROKEN
    with pytest.raises(SettingError, match=f"cannot make the folder .*{config.id}"):
        train(config, tmp_path)
    assert folder.read_text() == "kept"
    folder.unlink()
    train(config, tmp_path)
    cut(folder / "model.safetensors")
    monkeypatch.setattr(os, "access", lambda path, _: path != folder)
    with pytest.raises(SettingError, match=f"cannot write to .*{config.id}"):
        train(config, tmp_path)
    with pytest.raises(SettingError, match=f"cannot write to .*{config.id}"):
        train(config.replace(evaluation=config.evaluation.replace(lengths=(8,))), tmp_path)


def test_what_dead_writers_left_goes(finished: Run, tmp_path: Path) -> None:
    """A finished run's folder loses what the dead left, and one that is made again all that is unfinished in it."""
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = Writer.numbered(dead.pid)
    assert left is not None
    dead.communicate()
    assert Writer.numbered(dead.pid) is None
    elsewhere = Writer(place="0" * 12, process=dead.pid, started=left.started)
    again = Writer(place=left.place, process=os.getppid(), started=1)  # its number belongs to another process now
    folder = train(finished.config, tmp_path).folder
    gone = [
        folder / f".config.json.{left.mark()}.tmp",
        folder / f"evaluation/.x.parquet.{left.mark()}.tmp",
        folder / f".model.safetensors.{again.mark()}.tmp",
    ]
    alive = [folder / f".config.json.{writer.mark()}.tmp" for writer in (Writer.here(), elsewhere)]
    old = folder / f".metrics.parquet.{elsewhere.mark()}.tmp"
    notes = folder / ".notes.tmp"
    for repeat in (False, True):
        for file in (*gone, *alive, old, notes):
            file.write_text("part")
        os.utime(old, (time.time() - 100_000,) * 2)
        if repeat:
            (folder / "finished.json").write_text("damaged")
        train(finished.config, tmp_path)
        assert not any(file.exists() for file in (*gone, old))
        assert [file.exists() for file in alive] == [not repeat] * 2
        assert notes.exists()


KILLED_WRITING = """
import json, os, signal, sys
from pathlib import Path
from sparsity_lab.settings import from_data
from sparsity_lab.training import RunConfig, train
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
train(from_data(RunConfig, json.loads(sys.argv[1])), sys.argv[2])
"""


def test_writer_killed_before_the_rename_leaves_nothing_for_long(finished: Run, tmp_path: Path) -> None:
    text = canonical_json(finished.config)
    assert subprocess.run([sys.executable, "-c", KILLED_WRITING, text, str(tmp_path)], check=False).returncode == -9
    assert len(list(tmp_path.rglob(".*.tmp"))) == 1
    assert contents(train(finished.config, tmp_path).folder) == contents(finished.folder)


def test_finished_run_loses_an_old_failure(tmp_path: Path) -> None:
    config = small_run()
    (tmp_path / config.id).mkdir()
    (tmp_path / config.id / "failed.json").write_text('{"reason": "old"}')
    folder = train(config, tmp_path).folder
    assert not (folder / "failed.json").exists()


def test_environment_is_read_or_none(finished: Run, tmp_path: Path) -> None:
    record = RunFolder(finished.folder).environment
    assert record is not None
    assert record["packages"]["torch"] == torch.__version__
    assert RunFolder(tmp_path).environment is None
    for damaged in (b"", b'{"pack', b"[1]", b"\xff"):
        (tmp_path / "environment.json").write_bytes(damaged)
        assert RunFolder(tmp_path).environment is None
    (tmp_path / "environment.json").unlink()
    (tmp_path / "environment.json").mkdir()
    assert RunFolder(tmp_path).environment is None


def test_each_file_of_a_run_is_opened_once(tmp_path: Path) -> None:
    """By the call that makes it, what it has written itself not at all; by the one that finds it; and by who asks a
    run many things."""
    config = small_run()
    with opened(tmp_path) as files:
        run = train(config, tmp_path)
    names = {name.split("/", 1)[1]: count for name, count in files.items() if "/lease/" not in name}
    assert not {"environment.json", "metrics.parquet", "timing.parquet", "timing.sha256"} & set(names)
    assert (names["model.safetensors"], names["config.json"]) == (1, 1)
    # It looks for the others before it holds the lease and then; training looks for its checkpoint once more.
    assert {name for name, count in names.items() if count > 2} == {"checkpoint.safetensors"}
    evaluation = f"evaluation/{config.evaluation_id}.parquet"
    whole = {"finished.json", "config.json", "metrics.parquet", "model.safetensors", evaluation}
    with opened(tmp_path) as files:
        train(config, tmp_path)
    assert files == {f"{config.id}/{name}": 1 for name in whole}
    with opened(tmp_path) as files:
        for _ in range(3):
            run._repr_html_(), run.summary, run.metrics, run.timing
    asked = {"finished.json", "metrics.parquet", evaluation, "timing.parquet", "timing.sha256"}
    assert files == {f"{config.id}/{name}": 1 for name in asked}
    with opened(tmp_path) as files:
        Run.load(run.folder)._repr_html_()
    assert files == {f"{config.id}/{name}": 1 for name in whole}
