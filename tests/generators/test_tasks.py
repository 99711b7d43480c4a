"""Every registered task passes its certificate, and every check of the certificate catches its mutants.

What else every task must do is in ``testing.test_registered``.
"""

import tracemalloc
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from generators.mutants import EXAMPLES, TASKS, applies, catches, mutants_of

from sparsity_lab.generators import Task, certify
from sparsity_lab.generators.certify import CHECKS
from sparsity_lab.settings import SettingError

FALSE_ALARMS = Path(__file__).parents[2] / "benchmarks" / "false_alarms.csv"
FURTHER_SEED = 200  # beyond those of the committed file


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_the_size_of_a_sequence_is_known_without_making_one(task: Task) -> None:
    """A list of two million numbers would take 16 MB, and one of two billion all memory."""
    tracemalloc.start()
    with suppress(SettingError):
        task.check_length(2_000_000)
        assert task.sequence_length(2_000_000) > 1
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20


@pytest.mark.slow
@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_every_example_passes(task: Task) -> None:
    certificate = certify(task, sequences=6000)
    assert certificate.passed, certificate.frame().filter(~certificate.frame()["passed"])


@pytest.mark.slow
@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_every_check_catches_its_mutants_of_every_task(check: str) -> None:
    """Of each task, the first example to which the check applies; and there is such a task."""
    tested = [next((e for e in cls.examples() if applies(check, e)), None) for cls in TASKS.values()]
    assert any(tested)
    for task in filter(None, tested):
        broken = mutants_of(check, task)
        assert broken
        assert [catches(check, one) for one in broken] == [True] * len(broken), f"{check} of {task}"


def test_no_committed_certificate_is_a_false_alarm() -> None:
    """Of the first example of each task that there was, at as many seeds as there was time for."""
    rows = pl.read_csv(FALSE_ALARMS)
    assert rows["passed"].all()
    assert set(rows["effort"]) == {"quick"}
    assert rows.select("task", "seed").is_unique().all()
    assert rows["seed"].max() < FURTHER_SEED  # type: ignore[operator]
    assert rows["task"].n_unique() > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_no_false_alarm_at_a_further_seed(name: str) -> None:
    certificate = certify(TASKS[name].examples()[0], seed=FURTHER_SEED, effort="quick")
    assert certificate.passed, certificate.frame().filter(~certificate.frame()["passed"])
