"""sparsity_lab: a synthetic-task theory lab for length generalization."""

__version__ = "0.1.0"
