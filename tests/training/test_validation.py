"""Validation while training, a training that ends when the task is learned, and weight decay by name."""

from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor, nn
from training.small_runs import SMALL_MODEL, Alternating, small_run
from training.test_train import Interrupted, contents, interrupt_at

from sparsity_lab.generators import First, Planted, Stream
from sparsity_lab.models import Decoder, ModelOutput, NoPE
from sparsity_lab.settings import SettingError
from sparsity_lab.training import CSVLogger, Evaluation, FixedLength, Logger, RunConfig, Training, evaluate, train
from sparsity_lab.training import run as run_module
from sparsity_lab.training.evaluate import validate
from sparsity_lab.training.optimize import Records, optimize, parameter_groups

LEARNABLE = RunConfig(
    task=Planted(k=1, rule=First()),
    model=Decoder(num_layers=1, num_heads=1, d_model=32, position=NoPE()),
    training=Training(
        steps=400,
        batch_size=32,
        curriculum=FixedLength(length=4),
        learning_rate=3e-3,
        log_every=100,
        validate_every=20,
        checkpoint_every=30,
        stop_when="learned",
    ),
    evaluation=Evaluation(lengths=(4,), sequences=64),
)


class Heard(Logger):
    def __init__(self) -> None:
        self.validations: dict[int, pl.DataFrame] = {}
        self.evaluations = 0

    def on_evaluation(self, config: RunConfig, evaluation: pl.DataFrame, step: int | None) -> None:
        if step is None:
            self.evaluations += 1
        else:
            self.validations[step] = evaluation


def validated(**changes: object) -> RunConfig:
    return small_run(training=small_run().training.replace(validate_every=4, **changes))


def test_validation_changes_nothing_of_the_training(tmp_path: Path) -> None:
    heard, config = Heard(), validated()
    plain = train(small_run(), tmp_path / "plain")
    run = train(config, tmp_path / "heard", loggers=[heard])
    assert run.id != plain.id
    assert list(heard.validations) == [4, 8, 12]
    assert heard.evaluations == 1
    for name in ("metrics.parquet", "model.safetensors"):
        assert (run.folder / name).read_bytes() == (plain.folder / name).read_bytes()
    # At the trained lengths alone: 4 .. 8.
    assert heard.validations[12]["length"].to_list() == [4, 6, 8]
    assert heard.validations[12]["sequences"].to_list() == [256] * 3
    assert heard.validations[12].equals(validate(run.model(), config))


def test_validation_sees_neither_trained_nor_evaluated_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    config, seen = validated(), []
    own = Stream.words

    def words(self: Stream, *arguments: object, **options: object) -> object:
        seen.append((self.seed, self.name))
        return own(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Stream, "words", words)
    validate(config.model.build(0, 16), config.replace(data_seed=5))
    assert set(seen) == {(5, "validation")}
    seen.clear()
    evaluate(config.model.build(0, 16), config)
    assert set(seen) == {(0, "evaluation")}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Heard]:
    heard = Heard()
    return train(LEARNABLE, tmp_path_factory.mktemp("stopped"), loggers=[heard]).folder, heard


def test_a_training_ends_when_the_task_is_learned(stopped: tuple[Path, Heard]) -> None:
    folder, heard = stopped
    *before, last = heard.validations
    steps = run_module.Run.load(folder).metrics["step"].to_list()
    assert 20 <= last < 400
    assert steps[-1] == last - 1  # the last step always has a row
    assert steps[:-1] == list(range(0, last - 1, 100))
    accuracies = {step: frame["normalized_accuracy"].min() for step, frame in heard.validations.items()}
    assert accuracies[last] >= 0.9
    assert all(accuracies[step] < 0.9 for step in before)
    assert not (folder / "checkpoint.safetensors").exists()


def test_interrupted_it_ends_at_the_same_step(
    stopped: tuple[Path, Heard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the interruption comes just after the validation that ends it."""
    last, calls = max(stopped[1].validations), []

    def interrupted(model: nn.Module, config: RunConfig) -> pl.DataFrame:
        calls.append(1)
        if 20 * len(calls) == last:
            raise Interrupted
        return validate(model, config)

    monkeypatch.setattr(run_module, "validate", interrupted)
    with pytest.raises(Interrupted):
        train(LEARNABLE, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / LEARNABLE.id / "checkpoint.safetensors").exists() == (last > 30)
    assert contents(train(LEARNABLE, tmp_path).folder) == contents(stopped[0])


def test_what_stops_is_part_of_the_id_and_defaults_are_not() -> None:
    base = LEARNABLE.replace(training=LEARNABLE.training.replace(stop_when=None))
    assert base.id != LEARNABLE.id
    training = Training()
    given = training.replace(validate_every=0, stop_when=None, weight_decay_by={})
    assert small_run(training=given).id == small_run(training=training).id
    assert (
        small_run(model=SMALL_MODEL.replace(dropout=0.0)).id
        == small_run().id
        != small_run(model=SMALL_MODEL.replace(dropout=0.1)).id
    )


def test_files_of_csv_hold_each_validation_once_after_an_interruption(tmp_path: Path) -> None:
    config = validated(checkpoint_every=3, log_every=1)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "out", loggers=[CSVLogger(tmp_path / "csv")], progress=interrupt_at(8))
    train(config, tmp_path / "out", loggers=[CSVLogger(tmp_path / "csv")])
    found = pl.read_csv(tmp_path / "csv" / config.id / "validation.csv")
    assert found["step"].to_list() == [4, 4, 4, 8, 8, 8, 12, 12, 12]
    assert found["length"].to_list() == [4, 6, 8] * 3


def test_dropout_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = small_run(
        model=SMALL_MODEL.replace(dropout=0.2),
        training=small_run().training.replace(log_every=1, checkpoint_every=4),
    )
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "cut", progress=interrupt_at(6))
    assert contents(train(config, tmp_path / "cut").folder) == contents(whole.folder)


class Unmoved(nn.Module):
    """No gradient but zero: what is left of the weights is what decay leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.table, self.map = (nn.Parameter(torch.ones(3)) for _ in range(3))

    def forward(self, tokens: Tensor, position_ids: Tensor | None, *, scored: Tensor, **_: object) -> ModelOutput:
        nothing = (self.norm + self.table + self.map).sum() * 0.0
        return ModelOutput(torch.zeros(int(scored.sum()), 16) + nothing, {})


def test_decay_by_name(tmp_path: Path) -> None:
    """AdamW leaves the product of 1 - rate x decay; the longest pattern that matches counts."""
    training = small_run().training.replace(
        learning_rate=0.1, weight_decay=0.5, weight_decay_by={"*norm*": 0.0, "ta*": 0.25, "t*": 9.0}
    )
    model = Unmoved()
    optimize(small_run(training=training), model, Records(), tmp_path / "none")
    for name, decay in (("norm", 0.0), ("table", 0.25), ("map", 0.5)):
        left = torch.tensor([1 - training.rate(step) * decay for step in range(12)]).prod()
        torch.testing.assert_close(getattr(model, name).data, left.expand(3))


def test_groups_hold_each_trained_parameter_once() -> None:
    model = SMALL_MODEL.build(0, 16)
    groups = parameter_groups(model, Training(weight_decay=0.1, weight_decay_by={"*norm*": 0.0}))
    assert {group["weight_decay"]: len(group["params"]) for group in groups} == {0.1: 6, 0.0: 3}
    assert [len(group["params"]) for group in parameter_groups(model, Training())] == [9]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="^validate_every: expected at least 1 with stop_when = 'learned', got 0"):
        Training(stop_when="learned")
    with pytest.raises(SettingError, match=r"^weight_decay_by\.\*: expected at least 0, got -1"):
        Training(weight_decay_by={"*": -1.0})
    with pytest.raises(SettingError, match="^stop_when: expected"):
        Training(validate_every=1, stop_when="never")  # type: ignore[arg-type]
    stops = LEARNABLE.training.replace(curriculum=FixedLength(length=4))
    with pytest.raises(SettingError, match=r"^training.stop_when: expected None for a task that does not declare"):
        small_run(task=Alternating(optimum_known=False), training=stops, evaluation=Evaluation(lengths=(4,)))
    decay = small_run().training.replace(weight_decay_by={"token_embeding.weight": 0.0})
    with pytest.raises(SettingError, match="expected a pattern that some parameter's name matches .*token_embedding"):
        train(small_run(training=decay), tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())
