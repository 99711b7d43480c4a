"""Every registered task passes its certificate, and every check of the certificate catches its mutants.

What else every task must do is in ``testing.test_registered``.
"""

import pytest
from generators.mutants import EXAMPLES, TASKS, applies, catches, mutants_of

from sparsity_lab.generators import Task, certify
from sparsity_lab.generators.certify import CHECKS


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
