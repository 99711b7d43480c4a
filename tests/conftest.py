"""Shared set-up: shapes are checked at run time, hypothesis is deterministic."""

from hypothesis import settings
from jaxtyping import install_import_hook

settings.register_profile("lab", derandomize=True, deadline=None, database=None)
settings.load_profile("lab")

# Before any test imports the package.
install_import_hook("sparsity_lab", "shape_checker.check")
