"""Dependency sparsity: how many far tokens a model's predictions need, and where they are."""

from sparsity_lab.analysis.dependencies.search import Predictor as Predictor
from sparsity_lab.analysis.dependencies.sparsity import DependencySparsity as DependencySparsity
from sparsity_lab.analysis.dependencies.sparsity import dependency_sparsity as dependency_sparsity
