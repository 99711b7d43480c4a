"""One run per GPU or several: which GPU each worker sees, with numbers that stand in for GPUs."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from sweeps.curricula import Seeing
from training.small_runs import small_run

from sparsity_lab.settings import SettingError, from_text
from sparsity_lab.sweeps import Engine, Processes, Sweep, grid, run_sweep
from sparsity_lab.sweeps.engines import _in_turn
from sparsity_lab.training import RunConfig


def seeing(folder: Path) -> list[RunConfig]:
    base = small_run()
    length = base.training.curriculum.range()[1]
    training = base.training.replace(curriculum=Seeing(length=length, tally=str(folder)))
    return grid(base.replace(training=training), {"seed": [0, 1, 2, 3]})


@pytest.mark.slow
def test_each_worker_sees_its_own_gpu(tmp_path: Path) -> None:
    """Runs on the processor do not mind that there is none."""
    (tmp_path / "tally").mkdir()
    sweep = Sweep(name="devices", runs=seeing(tmp_path / "tally"))
    results = run_sweep(sweep, tmp_path / "out", Processes(devices=(3, 5), per_device=1))
    assert results.failures == ()
    assert sorted(file.read_text() for file in (tmp_path / "tally").iterdir()) == ["3", "5"]


def test_slots() -> None:
    assert Processes(workers=3).slots == [None] * 3
    assert Processes(devices=(0, 2), per_device=2).slots == [0, 0, 2, 2]
    assert from_text(Engine, "Processes(devices=(1,), per_device=3)").slots == [1, 1, 1]  # type: ignore[attr-defined]


def test_few_runs_are_spread_over_all_devices() -> None:
    slots = Processes(devices=(0, 1, 2), per_device=2).slots
    assert _in_turn(Counter(slots), slots) == [0, 1, 2, 0, 1, 2]
    assert _in_turn(Counter(slots) - Counter([0, 0, 1]), slots) == [1, 2, 2]
    assert _in_turn(Counter([None] * 2), [None] * 2) == [None, None]


@pytest.mark.parametrize(
    ("seen", "count", "devices"),
    [
        (None, 3, [0, 1, 2]),
        ("4,6", 2, [4, 6]),
        (" 4, 6 ", 2, [4, 6]),
        ("4,-1,6", 1, [4]),
        ("GPU-8f6c2a1e-0000", 1, ["GPU-8f6c2a1e-0000"]),
        ("GPU-8f,GPU-41", 2, ["GPU-8f", "GPU-41"]),
        ("MIG-41b36a0e-0000", 1, ["MIG-41b36a0e-0000"]),
        ("MIG-GPU-8f6c/1/0", 1, ["MIG-GPU-8f6c/1/0"]),
        ("", 0, None),
        ("-1", 0, None),
        ("GPU-gone", 0, None),
    ],
)
def test_auto_is_every_gpu_that_this_process_sees(
    seen: str | None, count: int, devices: list[int | str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name that it sees it under, so that no worker is shown another one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    if devices is None:
        with pytest.raises(SettingError, match="devices: 'auto' needs a GPU, but this machine has none"):
            _ = Processes(devices="auto").slots
    else:
        assert Processes(devices="auto").slots == devices
        assert Processes(devices=devices).slots == devices  # type: ignore[arg-type]
        assert from_text(Engine, str(Processes(devices=devices))).slots == devices  # type: ignore[attr-defined, arg-type]


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(SettingError, match="devices: 'auto' needs a GPU, but this machine has none"):
        _ = Processes(devices="auto").slots
    for wrong in (2, -1, "3", "cuda:1", "", "GPU-a,GPU-b"):
        with pytest.raises(SettingError, match=r"devices\[1\]: expected the number of a GPU, from 0, or its name"):
            Processes(devices=(2, wrong))
    with pytest.raises(SettingError, match="per_device: expected at least 1, got 0"):
        Processes(devices=(0,), per_device=0)
    run = small_run()
    named = run.replace(training=run.training.replace(device="cuda:1"))
    with pytest.raises(SettingError, match="training.device: expected cuda or cpu, since the engine assigns the GPU"):
        run_sweep(Sweep(name="named", runs=[named]), tmp_path / "out", Processes(devices=(0, 1)))
    assert not (tmp_path / "out").exists()
