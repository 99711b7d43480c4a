"""Every registered recipe runs at its smoke size, and committed results are what their frames give."""

from pathlib import Path
from typing import Any

import pytest

from sparsity_lab.recipes import SIZES, recipe
from sparsity_lab.settings import to_data
from sparsity_lab.studies import Study, check_results, write_result
from sparsity_lab.sweeps import Results, Serial, run_sweep

RESULTS = Path(__file__).parents[2] / "docs" / "results"

NAMES = list(recipe.all())
STUDIES = [name for name, found in recipe.all().items() if isinstance(found, Study)]


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_smoke_size_runs(name: str, tmp_path: Path) -> None:
    """Through the sweep and, if claims are decided, to the result files and back."""
    made = recipe.find(name)
    sweep = made("smoke")
    results = run_sweep(sweep, tmp_path / "runs", Serial())
    assert results.failures == ()
    assert results.frame("evaluation")["run"].n_unique() == len(sweep.runs)
    if isinstance(made, Study):
        out = tmp_path / "results"
        write_result(made, Results(tmp_path / "runs", sweep), "smoke", out)
        assert check_results(out) == []


@pytest.mark.parametrize("name", NAMES)
def test_sizes_grow(name: str) -> None:
    """Every size is a valid sweep, and none has fewer runs or steps than the one before it."""
    sweeps = [recipe.find(name)(size) for size in SIZES]
    costs = [sum(run.training.steps for run in sweep.runs) for sweep in sweeps]
    assert costs == sorted(costs)
    assert {sweep.name for sweep in sweeps} == {name}


@pytest.mark.parametrize("name", STUDIES)
def test_runs_of_an_arm_differ_in_their_seeds_alone(name: str) -> None:
    made = recipe.find(name)
    assert isinstance(made, Study)
    for size in SIZES[:2]:
        for arm, runs in made.arms(size).items():
            unseeded = [_unseeded(to_data(run)) for run in runs]
            assert all(one == unseeded[0] for one in unseeded), f"{arm} in size {size}"


def _unseeded(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: 0 if name.endswith("seed") else _unseeded(value) for name, value in data.items()}
    return [_unseeded(value) for value in data] if isinstance(data, list) else data


@pytest.mark.committed
def test_committed_results_are_what_their_frames_give() -> None:
    assert not RESULTS.is_dir() or check_results(RESULTS) == []
