"""The benchmark of ``swap_report``."""

import pytest

from sparsity_lab.benchmarks.swap import swap

pytest.importorskip("transformers")


@pytest.mark.slow
def test_every_arm_and_the_whole_time_are_there() -> None:
    rows = swap(lengths=[8, 16]).rows(named=True)
    assert [row["case"] for row in rows] == ["as it is", "LSSA()", "LSSAR()", "LogNSoftmax()", "re-weighted"]
    assert rows[0]["over as it is"] == 1
    assert {row["T"] for row in rows} == {16}
    assert 9e6 < rows[0]["parameters"] < 11e6
    assert rows[0]["seconds in all"] > 0
