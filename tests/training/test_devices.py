"""A run that goes on, or is compared, across kinds of device says so. The records are edited: one kind will do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training.small_runs import small_run
from training.test_train import contents

from sparsity_lab import cli
from sparsity_lab.sweeps import Results, Serial, Sweep, grid, run_sweep
from sparsity_lab.training import Evaluation, RunConfig, Training, train

HERE = f"cpu {torch.backends.cpu.get_cpu_capability()} with 1 thread"
CHECKPOINTED = small_run(training=small_run().training.replace(checkpoint_every=3))


def interrupted(config: RunConfig, out: Path) -> Path:
    """The folder of a run that was stopped after its ninth step."""

    def stop(done: int, *_: object) -> None:
        if done >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, out, progress=stop)
    return out / config.id


def move(folder: Path, *devices: str) -> None:
    """Have the record say that the run was made elsewhere."""
    file = folder / "environment.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"devices": devices, "evaluated_on": {}}))


def recorded(folder: Path, name: str = "devices") -> object:
    return json.loads((folder / "environment.json").read_text())[name]


def test_training_that_goes_on_elsewhere_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = interrupted(CHECKPOINTED, tmp_path / "out")
    assert recorded(folder) == [HERE]
    move(folder, "cuda")
    run = train(CHECKPOINTED, tmp_path / "out")
    words = (
        f"run {run.id} was made on cuda, and its training goes on on {HERE}: numbers may differ in their last digits"
    )
    assert caplog.messages == [words]
    assert recorded(folder) == ["cuda", HERE]
    assert recorded(folder, "evaluated_on") == {run.config.evaluation_id: HERE}
    train(CHECKPOINTED, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("checkpoint", [False, True], ids=["none", "damaged"])
def test_training_that_begins_anew_has_one_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, checkpoint: bool
) -> None:
    folder = interrupted(CHECKPOINTED if checkpoint else small_run(), tmp_path)
    if checkpoint:
        (folder / "checkpoint.safetensors").write_bytes(b"damaged")
    move(folder, "cuda")
    train(CHECKPOINTED if checkpoint else small_run(), tmp_path)
    assert recorded(folder) == [HERE]
    assert not any("was made on" in message for message in caplog.messages)


@pytest.mark.parametrize("record", ["", "[]", '{"devices": 3, "evaluated_on": []}', '{"devices": [{}], "device": 1}'])
def test_damaged_records_stop_nobody(tmp_path: Path, record: str) -> None:
    folder = interrupted(CHECKPOINTED, tmp_path)
    (folder / "environment.json").write_text(record)
    train(CHECKPOINTED, tmp_path)
    assert recorded(folder) == [HERE]
    (folder / "environment.json").write_text(record)
    again = CHECKPOINTED.replace(evaluation=Evaluation(lengths=(4, 8), sequences=4))
    run_sweep(Sweep(name="one", runs=[again]), tmp_path, Serial())
    assert Results(tmp_path).devices in ({HERE: 1}, {})


def test_an_evaluation_elsewhere_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train(small_run(), tmp_path)
    assert recorded(run.folder, "evaluated_on") == {run.config.evaluation_id: HERE}
    move(run.folder, "cuda")
    other = small_run(evaluation=Evaluation(lengths=(4, 8), sequences=4))
    train(other, tmp_path)
    assert [message.split(":")[0] for message in caplog.messages] == [
        f"run {run.id} was made on cuda, and it is evaluated on {HERE}"
    ]
    assert recorded(run.folder, "evaluated_on") == {other.evaluation_id: HERE}
    sweep = Sweep(name="one", runs=[other])
    assert run_sweep(sweep, tmp_path, Serial()).devices == {f"cuda, {HERE}": 1}


def test_a_sweep_goes_on_with_another_device_and_threads(tmp_path: Path) -> None:
    """Finished runs are finished, whatever device is asked for now."""
    runs = grid(small_run(), {"seed": [0, 1]})
    run_sweep(Sweep(name="begun", runs=runs[:1]), tmp_path, Serial())
    before = contents(tmp_path / runs[0].id)
    elsewhere = Training.replace(small_run().training, threads=2)
    sweep = Sweep(name="goes on", runs=[run.replace(training=elsewhere) for run in runs])
    assert [run.id for run in sweep.runs] == [run.id for run in runs]
    assert run_sweep(sweep, tmp_path, Serial()).failures == ()
    assert contents(tmp_path / runs[0].id) == before
    assert recorded(tmp_path / runs[1].id, "threads") == 2
    two = HERE.replace("1 thread", "2 threads")
    assert Results(tmp_path, sweep).devices == {HERE: 1, two: 1}


def test_comparisons_across_kinds_of_device_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = grid(small_run(), {"seed": [0, 1, 2]})
    results = run_sweep(Sweep(name="three", runs=runs), tmp_path, Serial())
    assert results.devices == {HERE: 3}
    note = "different kinds of device"
    assert note not in repr(results)
    move(tmp_path / runs[0].id, "cuda")
    move(tmp_path / runs[1].id, HERE, "cuda")
    assert results.devices == {HERE: 1, f"{HERE}, cuda": 1, "cuda": 1}
    words = f"runs were made on different kinds of device (1 on {HERE}, 1 on {HERE} and cuda, 1 on cuda), so"
    assert words in repr(results)
    assert cli.run(["report", str(tmp_path)]) == 0
    assert words in capsys.readouterr().out
    assert words[1:] in (tmp_path / "report.html").read_text()


def test_another_capability_of_the_processor_is_another_kind(tmp_path: Path) -> None:
    """As on another machine, in a process of its own: torch reads it once."""
    script = (
        "import sys; from pathlib import Path; from training.small_runs import small_run; "
        "from sparsity_lab.training import train; train(small_run(data_seed=int(sys.argv[2])), Path(sys.argv[1]))"
    )
    runs = grid(small_run(), {"data_seed": [0, 1]})
    for run, capability in zip(runs, ("default", "avx2"), strict=True):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", script, str(tmp_path), str(run.data_seed)]
        subprocess.run(command, env=environment, check=True)
    sweep = Sweep(name="two processors", runs=runs)
    results = Results(tmp_path, sweep)
    default, other = (recorded(tmp_path / run.id, "cpu_capability") for run in runs)
    assert default in ("DEFAULT", "NO AVX")
    assert results.devices == {f"cpu {default} with 1 thread": 1, f"cpu {other} with 1 thread": 1} or default == other
    assert recorded(tmp_path / runs[0].id, "blas")
