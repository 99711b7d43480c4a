"""Arms: one configuration, run with several seeds."""

from collections.abc import Callable
from dataclasses import dataclass

from sparsity_lab.generators import Task
from sparsity_lab.settings import SettingError, check_least, replace_at, settings_in
from sparsity_lab.training import RunConfig


@dataclass(frozen=True)
class Arm:
    """One configuration, run with several seeds.

    Attributes:
        run: a function from a seed to the config of its run; the seed is its ``data_seed``.
        seeds: the number of seeds in a sweep; ``decide`` adds more if claims need them.
        first: the first seed.
    """

    run: Callable[[int], RunConfig]
    seeds: int
    first: int = 0

    def __post_init__(self) -> None:
        check_least(1, seeds=self.seeds)

    @property
    def runs(self) -> list[RunConfig]:
        """The runs of a sweep.

        Raises:
            SettingError: a text has no hash. A study states the hashes of its texts, because its claims are about
                them.
        """
        runs = [self.run(seed) for seed in range(self.first, self.first + self.seeds)]
        for setting in settings_in(runs[0]):
            if isinstance(setting, Task) and setting.reads_files and not setting.is_planned:
                raise SettingError("task", f"a corpus with its hash, {setting.planned()}", setting)
        return runs


def seeded(base: RunConfig, *also: str) -> Callable[[int], RunConfig]:
    """A function from a seed to a run. The seed sets the data, the initial weights, the evaluated sequences and the
    fields in ``also``, in the run and in its parents.

    The evaluated sequences differ too, so intervals over seeds also cover their randomness.

    >>> config = seeded(run.config)(3)
    >>> config.data_seed, config.model_seed
    (3, 3)
    """

    def run(seed: int) -> RunConfig:
        evaluation = base.evaluation.replace(seed=seed)
        parent = None if base.parent is None else seeded(base.parent, *also)(seed)
        found = base.replace(data_seed=seed, model_seed=seed, evaluation=evaluation, parent=parent)
        for path in also:
            found = replace_at(found, path, seed)
        return found

    return run
