"""Where recipes are entered, and their sizes."""

from collections.abc import Callable
from typing import Literal

from sparsity_lab.named_functions import NamedFunctions
from sparsity_lab.sweeps import Sweep

__all__ = ["SIZES", "Recipe", "Size", "recipe"]

Size = Literal["smoke", "small", "full"]
SIZES: tuple[Size, ...] = ("smoke", "small", "full")

Recipe = Callable[[Size], Sweep]
recipe = NamedFunctions[Recipe]("recipe")
"""Decorator of recipes, and where they are found: ``recipe.find("demo")``."""
