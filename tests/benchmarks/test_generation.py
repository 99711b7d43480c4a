"""The benchmark of generation: its rows, and that they follow from one another; no times."""

import pytest

from sparsity_lab.benchmarks import generation as bench
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
