"""The benchmark of generation: its rows, and that they follow from one another; no times."""

import json
from pathlib import Path

import pytest

from sparsity_lab.benchmarks import generation as bench
from sparsity_lab.benchmarks.kernels import chosen
from sparsity_lab.settings import SettingError


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "GENERATED", 16)
    monkeypatch.setattr(bench, "BATCH_SIZES", (3, 1))
    frame = bench.generation(only=["Softmax", "LSSAR(p=3)"])
    assert frame.select("kernel", "batch").rows() == [
        ("Softmax()", 3),
        ("Softmax()", 1),
        ("LSSAR(p=3.0)", 3),
        ("LSSAR(p=3.0)", 1),
    ]
    for row in frame.iter_rows(named=True):
        speeds = row["cached, thousand tokens/s"] / row["prefix again, thousand tokens/s"]
        assert row["prefix again over cached"] == pytest.approx(speeds)
    with pytest.raises(SettingError, match="--only"):
        bench.generation(only=["Sotfmax"])


@pytest.mark.committed
def test_committed_generation_is_twenty_times_faster_in_batches() -> None:
    """Of every kernel that the benchmark has; a slower run is not committed unseen."""
    file = Path(__file__).parents[2] / "benchmarks" / "generation.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    ratios = {row["kernel"]: row["prefix again over cached"] for row in rows if row["batch"] == 64}
    # Other tests in this process register kernels of their own.
    ours = [kernel for kernel in chosen(()) if type(kernel).__module__.startswith("sparsity_lab.")]
    assert set(ratios) == {str(kernel) for kernel in ours}
    assert {kernel: ratio for kernel, ratio in ratios.items() if ratio < 20} == {}
