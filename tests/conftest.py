"""Shared set-up: shapes are checked at run time, hypothesis is deterministic."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import shape_checker
import torch
from browser import chromium
from hypothesis import settings

settings.register_profile("lab", derandomize=True, deadline=None, database=None)
settings.load_profile("lab")

# Before any test imports the package. Compilers cannot trace all of the checks: see test_compile.
if "SHAPES_UNCHECKED" not in os.environ:
    studies = [file.parent.name for file in (Path(__file__).parents[1] / "experiments").glob("*/study.py")]
    shape_checker.install(["sparsity_lab", *studies])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU are skipped where there is none."""
    here = torch.cuda.is_available()
    for item in items:
        if not here and item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _shapes_are_checked_again() -> None:
    """In the first calls of each test."""
    shape_checker.forget_calls()


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """No run-time checks of shapes: ``torch.compile`` cannot trace through them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser, where there is one."""
    with chromium() as found:
        yield found
