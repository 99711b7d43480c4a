"""Public objects can be pickled and copied, so that they go to worker processes and into other people's files.

Settings of every registered class are in ``testing.test_registered``, batches in ``generators.test_loading``.
"""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsity_lab.generators import Planted, certify
from sparsity_lab.kernels import LSSAR, AdaptiveSparse
from sparsity_lab.models import Decoder, Predicted, RoPE
from sparsity_lab.settings import FrozenMapping
from sparsity_lab.sweeps import Serial, Sweep, run_sweep
from sparsity_lab.training import Evaluation, FixedLength, Run, RunConfig, Training


def copies(value: Any) -> tuple[Any, Any]:
    return pickle.loads(pickle.dumps(value)), copy.deepcopy(value)


def test_what_a_setting_works_out_stays_behind() -> None:
    task = Planted(vocab_size=5000)
    fresh = len(pickle.dumps(task))
    assert task.vocabulary.size == 5000
    assert len(pickle.dumps(task)) == fresh
    assert copies(task)[0].vocabulary == task.vocabulary


def test_frozen_mappings_travel() -> None:
    mapping = FrozenMapping({"b": 1, "a": (2, 3)})
    for other in copies(mapping):
        assert other == mapping
        assert list(other) == ["a", "b"]
        assert hash(other) == hash(mapping)


def logits(model: Any, tokens: Tensor) -> Tensor:
    ids = (1 + torch.arange(tokens.shape[1]) % 8).expand(len(tokens), 1, -1)
    with torch.no_grad():
        output = model(tokens, ids)
    return getattr(output, "logits", output)


def test_a_decoder_travels_with_its_weights() -> None:
    decoder = Decoder(
        num_layers=2,
        num_heads=2,
        d_model=16,
        kernel=(AdaptiveSparse(), LSSAR(p=3)),
        position=RoPE(),
        coupling=Predicted(max_id=8),
    )
    model = decoder.build(seed=3, vocab_size=12)
    tokens = torch.arange(24).reshape(2, 12) % 12
    for other in copies(model):
        assert torch.equal(logits(other, tokens), logits(model, tokens))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = RunConfig(
        task=Planted(k=1),
        model=Decoder(num_layers=1, num_heads=1, d_model=8),
        training=Training(steps=2, batch_size=4, curriculum=FixedLength(length=6)),
        evaluation=Evaluation(lengths=(6, 12), sequences=8),
    )
    return run_sweep(Sweep(name="small", runs=(run,)), tmp_path_factory.mktemp("runs"), Serial())


def test_results_and_runs_travel(results: Any) -> None:
    run = Run.load(Path(results.folder) / results.runs[0].id)
    for other in copies(results):
        assert other.frame("evaluation").equals(results.frame("evaluation"))
    for other in copies(run):
        assert other.config == run.config
        assert other.evaluation.equals(run.evaluation)


def test_certificates_travel() -> None:
    certificate = certify(Planted(k=1), sequences=1000, lengths=(6,))
    for other in copies(certificate):
        assert other == certificate
        assert other.passed == certificate.passed
