"""Shared set-up: shapes are checked at run time, hypothesis is deterministic."""

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

settings.register_profile("lab", derandomize=True, deadline=None, database=None)
settings.load_profile("lab")

# Before any test imports the package. Compilers cannot trace all of the checks: see test_compile.
if "SHAPES_UNCHECKED" not in os.environ:
    studies = [file.parent.name for file in (Path(__file__).parents[1] / "experiments").glob("*/study.py")]
    install_import_hook(["sparsity_lab", *studies], "shape_checker.check")


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """No run-time checks of shapes: ``torch.compile`` cannot trace through them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
