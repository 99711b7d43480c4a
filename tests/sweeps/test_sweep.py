import json

import pytest
from training.small_runs import small_run

from sparsity_lab.generators import Recent, Uniform
from sparsity_lab.settings import SettingError, canonical_json, from_data
from sparsity_lab.sweeps import Sweep, grid


def test_grid_is_the_product_in_the_order_given() -> None:
    runs = grid(small_run(), {"task.k": [1, 2], "task.locality": ["Recent(width=4)", Uniform()], "seed": [0, 7]})
    found = [(run.task.k, run.task.locality, run.data_seed, run.model_seed) for run in runs]
    assert found == [
        (1, Recent(width=4), 0, 0),
        (1, Recent(width=4), 7, 7),
        (1, Uniform(), 0, 0),
        (1, Uniform(), 7, 7),
        (2, Recent(width=4), 0, 0),
        (2, Recent(width=4), 7, 7),
        (2, Uniform(), 0, 0),
        (2, Uniform(), 7, 7),
    ]


def test_grid_without_axes_is_the_base() -> None:
    assert grid(small_run(), {}) == [small_run()]


@pytest.mark.parametrize(
    ("axes", "path"),
    [
        ({"task.kay": [1]}, "task.kay"),
        ({"task.k": ["many"]}, "task.k"),
        ({"task.k": []}, "task.k"),
        ({"task.k": "12"}, "task.k"),
        ({"seeds": [1]}, "seeds"),
        ({"task.locality": ["Resent(width=4)"]}, "task.locality.kind"),
        ({"training.steps": [-1]}, "training.steps"),
        ({"task.k": [5]}, "training.curriculum"),
    ],
)
def test_axes_that_cannot_be_are_refused_at_their_path(axes, path) -> None:
    with pytest.raises(SettingError) as error:
        grid(small_run(), axes)
    assert error.value.path == path


def test_sweep_refuses_a_run_that_is_there_twice() -> None:
    run = small_run()
    other = run.replace(evaluation=run.evaluation.replace(lengths=(8,)))
    for twice in (run, other):
        with pytest.raises(SettingError, match=r"runs\[2\]: the same run as runs\[0\]"):
            Sweep(name="twice", runs=[run, small_run(data_seed=1), twice])
    with pytest.raises(SettingError) as error:
        Sweep(name="none", runs=[])
    assert error.value.path == "runs"


def test_sweep_comes_back_from_its_json() -> None:
    sweep = Sweep(name="both", runs=grid(small_run(), {"seed": [0, 1]}))
    assert from_data(Sweep, json.loads(canonical_json(sweep))) == sweep


def test_labels_say_what_differs() -> None:
    sweep = Sweep(
        name="s", runs=grid(small_run(), {"task.locality": ["Recent(width=4)", Uniform()], "data_seed": [0, 1]})
    )
    assert list(sweep.labels().values()) == [
        "locality=Recent(width=4) data_seed=0",
        "locality=Recent(width=4) data_seed=1",
        "locality=Uniform data_seed=0",
        "locality=Uniform data_seed=1",
    ]
    assert list(Sweep(name="alone", runs=[small_run()]).labels().values()) == ["alone"]
