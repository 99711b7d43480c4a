"""Each public name has a docstring and an example, and all examples run.

Examples find the public names imported, and small objects that are made once: ``task``, ``model``, ``run``,
``results`` (a finished sweep), ``rows`` (of its runs, by arm), ``llama`` (a model of transformers, new each time)
and a study in the folder ``tiny_study``. They run in an empty folder.
"""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sparsity_lab
from sparsity_lab.generators import Planted
from sparsity_lab.models import Decoder
from sparsity_lab.studies import load_study, write_result
from sparsity_lab.sweeps import Serial, Sweep, grid, run_sweep
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength, train

PACKAGES = sorted(found.name for found in pkgutil.iter_modules(sparsity_lab.__path__) if found.ispkg)
PACKAGES.remove("cli")  # commands, which are not called from Python
OPTIONS = doctest.NORMALIZE_WHITESPACE

STUDY = """
from sparsity_lab.generators import Planted
from sparsity_lab.models import Decoder
from sparsity_lab.studies import Arm, Study, difference_claim, panels, seeded
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

BASE = RunConfig(
    task=Planted(k=1),
    model=Decoder(num_layers=1, num_heads=2, d_model=16),
    training=Training(steps=2, batch_size=8, curriculum=UniformLength(low=4, high=8)),
    evaluation=Evaluation(lengths=(8, 16), sequences=16),
)
STUDY = Study(
    name="tiny",
    title="Tiny",
    question="Is one planted token easier than two?",
    arms=lambda size: {str(k): Arm(seeded(BASE.replace(task=Planted(k=k))), seeds=1) for k in (1, 2)},
    claims=(difference_claim("easier", "One is easier than two.", "1", "2", lengths=(8, 16), source="this lab"),),
    primary=("easier",),
    figure=lambda evidence: panels(1)[0],
)
"""


def public(package: str) -> dict[str, Any]:
    """The public classes and functions of a package, those that are imported flat from it."""
    module = importlib.import_module(f"sparsity_lab.{package}")
    names = getattr(module, "__all__", None) or [name for name in dir(module) if not name.startswith("_")]
    found = {name: getattr(module, name) for name in names}
    return {name: value for name, value in found.items() if not isinstance(value, ModuleType)}


def documented(package: str) -> dict[str, Any]:
    """Of these, the classes and functions of the lab: type aliases and constants have no docstrings."""
    kinds = (type, type(public))
    found = {name: value for name, value in public(package).items() if isinstance(value, kinds)}
    return {name: value for name, value in found.items() if value.__module__.startswith("sparsity_lab.")}


def has_example(value: Any) -> bool:
    """Whether the docstring has one, or that of a method."""
    own = [value, *vars(value).values()] if inspect.isclass(value) else [value]
    return any(">>> " in (getattr(one, "__doc__", None) or "") for one in own)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_public_name_has_a_docstring_and_an_example(package: str) -> None:
    names = documented(package)
    assert names
    assert [name for name, value in names.items() if not value.__doc__] == []
    assert [name for name, value in names.items() if not has_example(value)] == []


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What examples find, and the empty folder in which they run."""
    folder = tmp_path_factory.mktemp("examples")
    config = RunConfig(
        task=Planted(k=1),
        model=Decoder(num_layers=1, num_heads=2, d_model=16),
        training=Training(steps=40, batch_size=16, learning_rate=5e-3, curriculum=UniformLength(low=4, high=8)),
        evaluation=Evaluation(lengths=(8, 16), sequences=16, threshold=1e-9),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        results = run_sweep(
            Sweep(name="example", runs=tuple(grid(config, {"task.k": [1, 2], "seed": [0, 1]}))), "results", Serial()
        )
        arms = {run.id: ({1: "one", 2: "two"}[run.task.k], run.data_seed) for run in results.runs}
        evaluation = results.frame("evaluation")
        rows = evaluation.with_columns(
            arm=pl.Series([arms[run][0] for run in evaluation["run"]]),
            seed=pl.Series([arms[run][1] for run in evaluation["run"]]),
            learned=pl.lit(True),
        )
        Path("tiny_study").mkdir()
        Path("tiny_study/study.py").write_text(STUDY)
        study = load_study("tiny_study")
        write_result(study, run_sweep(study.sweep("small"), "runs_of_tiny", Serial()), "small", Path("tiny_study"))
        task = Planted(k=2)
        known = {name: value for package in PACKAGES for name, value in public(package).items()}
        yield known | {
            "Path": Path,
            "np": np,
            "pl": pl,
            "torch": torch,
            "task": task,
            "model": Decoder(num_layers=1, num_heads=2, d_model=16, vocab_size=task.vocabulary.size).build(seed=0),
            "run": train(config, "results"),
            "results": results,
            "rows": rows,
            "__name__": "examples",
        }


def llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=8, max_position_embeddings=32, **sizes))


def modules(package: str) -> Iterator[ModuleType]:
    """A package and all of its modules, but for those that run when they are imported."""
    root = importlib.import_module(f"sparsity_lab.{package}")
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


@pytest.mark.parametrize("package", PACKAGES)
def test_examples_run(package: str, names: dict[str, Any]) -> None:
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(optionflags=OPTIONS)
    for module in modules(package):
        for example in finder.find(module, globs={}):
            own = {"llama": llama()} if "llama" in example.docstring else {}
            example.globs = {**vars(module), **names, **own}
            said: list[str] = []
            runner.run(example, out=said.append)
            assert not said, "".join(said)
    assert runner.tries > 0


def test_a_wrong_example_is_seen(names: dict[str, Any]) -> None:
    example = doctest.DocTestParser().get_doctest(">>> Planted(k=2).k\n3", dict(names), "wrong", None, 0)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=said.append)
    assert "Expected:\n    3\nGot:\n    2" in "".join(said)
