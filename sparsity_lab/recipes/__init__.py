"""Recipes: named experiments, each a plain function from a size to a ``Sweep``, in a module or a package of its own.

``smoke`` is for tests, ``small`` for two CPU cores, ``full`` for a larger machine. A new recipe is one module with
one function under ``@recipe``; it is then on the command line and in the smoke tests. A recipe that tests claims is a
``Study``, with the rules by which they are decided; where that is long, a package of arms, measures, claims and page.
"""

import importlib
import pkgutil

from sparsity_lab.studies.files import check_results as check_results
from sparsity_lab.studies.files import find_study as find_study
from sparsity_lab.studies.files import render_results as render_results
from sparsity_lab.studies.files import write_result as write_result
from sparsity_lab.studies.recipe import SIZES as SIZES
from sparsity_lab.studies.recipe import Recipe as Recipe
from sparsity_lab.studies.recipe import Size as Size
from sparsity_lab.studies.recipe import recipe as recipe

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
