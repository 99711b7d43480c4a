"""The benchmark of training: its rows; no times."""

import pytest

from sparsity_lab.benchmarks import training as bench


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position scored and the last alone, beside bare loops with and without the lab's trick."""
    monkeypatch.setattr(bench, "_STEPS", 2)
    monkeypatch.setattr(bench, "_ROUNDS", 1)
    monkeypatch.setattr(bench, "_CASES", tuple(case for case in bench._CASES if not case.compiled))
    frame = bench.training()
    assert frame.select("position", "scored", "bare loop").rows() == [
        ("NoPE", "every position", "plain"),
        ("RoPE", "every position", "plain"),
        ("NoPE", "last position", "its last layer on the last row"),
        ("NoPE", "last position", "its last layer on all rows"),
        ("RoPE", "last position", "its last layer on all rows"),
    ]
    assert (frame["lab over bare loop"] > 0).all()
