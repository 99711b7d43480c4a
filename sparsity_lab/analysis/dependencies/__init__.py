"""Dependency sparsity: how many far tokens a model's predictions need, and where they are."""
