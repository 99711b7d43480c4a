"""Arms: one setting, run from several seeds."""

from collections.abc import Sequence

from sparsity_lab.settings import replace_at
from sparsity_lab.training import RunConfig

__all__ = ["over_seeds"]


def over_seeds(base: RunConfig, seeds: Sequence[int], *also: str) -> list[RunConfig]:
    """The run from each seed: data, initial weights, the evaluated sequences, and the fields ``also`` names.

    The evaluated sequences differ too, so that intervals over seeds cover their chance as well.
    """
    runs = []
    for seed in seeds:
        evaluation = base.evaluation.replace(seed=seed)
        run = base.replace(data_seed=seed, model_seed=seed, evaluation=evaluation)
        for path in also:
            run = replace_at(run, path, seed)
        runs.append(run)
    return runs
