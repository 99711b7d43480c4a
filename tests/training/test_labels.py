"""Labels of runs: what differs among them, nothing twice, never two alike."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from training.small_runs import SMALL_MODEL, small_run

from sparsity_lab.generators import Mixture, Planted, Recent, SparseParity, Uniform
from sparsity_lab.kernels import LSSAR, Softmax
from sparsity_lab.models import LoRA
from sparsity_lab.studies import load_study
from sparsity_lab.training import RunConfig, run_labels

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def labels(*runs: RunConfig) -> list[str]:
    return list(run_labels(runs).values())


def seeded(run: RunConfig, seeds: Sequence[int] = (0, 1)) -> list[RunConfig]:
    return [run.replace(data_seed=seed, model_seed=seed) for seed in seeds]


def trained(run: RunConfig, steps: int) -> RunConfig:
    return run.replace(training=run.training.replace(steps=steps))


def test_one_run_needs_no_name() -> None:
    assert labels(small_run()) == [""]


def test_settings_are_one_level_deep_and_the_seed_comes_last() -> None:
    tasks = (Planted(k=2, locality=Recent(width=4)), Planted(k=2, locality=Uniform()))
    assert labels(*(run for task in tasks for run in seeded(small_run(task=task)))) == [
        "locality=Recent(width=4) seed=0",
        "locality=Recent(width=4) seed=1",
        "locality=Uniform seed=0",
        "locality=Uniform seed=1",
    ]


def test_seeds_that_go_apart_are_named_apart() -> None:
    runs = [small_run(data_seed=data, model_seed=model) for data, model in itertools.product((0, 1), repeat=2)]
    assert labels(*runs)[1] == "data_seed=0 model_seed=1"


def test_what_follows_from_what_is_shown_is_left_out() -> None:
    """Steps that go with k, conditions that go with it, and a position seed that goes with the run's."""
    runs = []
    for k, seed in itertools.product((1, 2), (0, 1)):
        run = small_run(task=Planted(k=k, position_seed=seed), data_seed=seed, model_seed=seed)
        evaluation = run.evaluation.replace(conditions={f"k={k}": run.task}, seed=seed)
        runs.append(trained(run, 10 * k).replace(evaluation=evaluation))
    assert labels(*runs) == ["k=1 seed=0", "k=1 seed=1", "k=2 seed=0", "k=2 seed=1"]


def test_that_all_seeds_differ_is_no_reason_to_leave_out_a_setting() -> None:
    runs = [small_run(task=Planted(k=k), data_seed=seed) for seed, k in enumerate((1, 1, 2))]
    assert labels(*runs) == ["k=1 data_seed=0", "k=1 data_seed=1", "k=2 data_seed=2"]


def test_kinds_are_named_and_each_shows_what_differs_within_it() -> None:
    tasks = (Mixture(tasks=(Planted(k=1), Planted(k=2))), Planted(k=1), Planted(k=2), SparseParity())
    assert labels(*(small_run(task=task) for task in tasks)) == [
        "task=Mixture",
        "task=Planted k=1",
        "task=Planted k=2",
        "task=SparseParity",
    ]


def test_settings_of_one_name_are_told_apart_by_their_paths() -> None:
    models = (SMALL_MODEL, SMALL_MODEL.replace(vocab_size=16), SMALL_MODEL.replace(d_model=8))
    runs = [small_run(model=model) for model in models] + [small_run(task=Planted(k=1, vocab_size=8))]
    assert labels(*runs)[:2] == [
        "task.vocab_size=16 model.vocab_size=None d_model=16",
        "task.vocab_size=16 model.vocab_size=16 d_model=16",
    ]


def test_children_show_what_differs_among_parents() -> None:
    parents = [
        small_run(model=SMALL_MODEL.replace(kernel=kernel), data_seed=seed, model_seed=seed)
        for kernel, seed in itertools.product((Softmax(), LSSAR()), (0, 1))
    ]
    children = [
        trained(small_run(parent=one, data_seed=one.data_seed, model_seed=one.model_seed), 5) for one in parents
    ]
    assert labels(*children) == [
        "parent.kernel=Softmax seed=0",
        "parent.kernel=Softmax seed=1",
        "parent.kernel=LSSAR seed=0",
        "parent.kernel=LSSAR seed=1",
    ]


def test_a_parent_beside_its_children_is_the_one_without() -> None:
    """The one parent of all by the start of its id, where nothing shorter tells; a kind by its name."""
    base = small_run()
    assert labels(base, base.replace(parent=base)) == ["parent=None", f"parent={base.id[:8]}"]
    children = [base.replace(parent=base, adapter=LoRA(rank=rank)) for rank in (1, 2)]
    assert labels(base, *children) == ["adapter=None", "adapter=LoRA rank=1", "adapter=LoRA rank=2"]


@pytest.mark.parametrize("name", sorted(study.parent.name for study in EXPERIMENTS.glob("*/study.py")))
def test_runs_of_studies_have_short_names_that_differ(name: str) -> None:
    found = labels(*load_study(EXPERIMENTS / name).sweep("small").runs)
    assert len(set(found)) == len(found)
    assert max(map(len, found)) <= 200


def test_every_mixture_of_settings_has_names_that_differ() -> None:
    tasks = (Planted(k=1), Planted(k=2), Mixture(tasks=(Planted(k=1), Planted(k=2))))
    settings = [
        small_run(task=task, data_seed=seed, parent=parent)
        for task, seed, parent in itertools.product(tasks, (0, 1), (None, small_run()))
    ]
    for runs in itertools.combinations(settings, 3):
        assert len(set(labels(*runs))) == 3
