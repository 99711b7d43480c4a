"""Every registered class keeps the contract of its family: a new class is tested by its registration alone."""

import doctest
from collections.abc import Callable
from typing import Any

import pytest

import sparsity_lab.models
import sparsity_lab.sweeps
import sparsity_lab.training  # noqa: F401  (each registers its settings)
from sparsity_lab import testing
from sparsity_lab.settings import Setting, families, kinds

CHECKS: dict[str, Callable[[Any], None]] = {
    name.removeprefix("check_"): check for name, check in vars(testing).items() if name.startswith("check_")
}
EXAMPLES = [
    example
    for family in families()
    for cls in kinds(family).values()
    if cls.__module__.startswith("sparsity_lab.")  # other tests register classes of their own
    for example in cls.examples()
]


def test_the_families_with_a_contract_have_members() -> None:
    assert set(CHECKS) - {"setting"} <= {example.family for example in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.family}-{example}"[:100])
def test_contract(example: Setting) -> None:
    CHECKS.get(example.family, testing.check_setting)(example)


@pytest.mark.parametrize("name", CHECKS)
def test_the_example_in_the_docstring_runs(name: str) -> None:
    (example,) = doctest.DocTestFinder().find(CHECKS[name], f"check_{name}", globs={f"check_{name}": CHECKS[name]})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
