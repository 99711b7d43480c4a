import itertools
import json
import os
from pathlib import Path

import pytest
from training.small_runs import SMALL_MODEL, small_run

from sparsity_lab.generators import Majority, Planted, Recent
from sparsity_lab.models import Decoder, Learned, Oracle, RandomOffset
from sparsity_lab.settings import SettingError, canonical_json, from_data
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training, UniformLength, train


def evaluation(**changes: object) -> Evaluation:
    return small_run().evaluation.replace(**changes)


COUPLED = Planted(k=1, coupled=True)

REFUSED = {
    "task too short in training": (lambda: small_run(task=Planted(k=5)), "training.curriculum"),
    "lengths that no machine holds": (
        lambda: small_run(training=Training(curriculum=UniformLength(low=4, high=2**30))),
        "training.curriculum",
    ),
    "task too short in evaluation": (
        lambda: small_run(task=Planted(k=3), evaluation=evaluation(lengths=(2, 8))),
        "evaluation.lengths[0]",
    ),
    "condition too short": (
        lambda: small_run(evaluation=evaluation(conditions={"more": Planted(k=6)})),
        "evaluation.lengths[0]",
    ),
    "positions too few": (
        lambda: small_run(model=SMALL_MODEL.replace(position=Learned(size=17))),
        "model.position",
    ),
    "index sampling too small": (
        lambda: small_run(model=SMALL_MODEL.replace(index_sampling=RandomOffset(size=9))),
        "model.index_sampling.size",
    ),
    "other vocabulary": (
        lambda: small_run(evaluation=evaluation(conditions={"large": Planted(k=1, vocab_size=17)})),
        "evaluation.conditions.large",
    ),
    "model of another vocabulary": (
        lambda: small_run(model=SMALL_MODEL.replace(vocab_size=20)),
        "model.vocab_size",
    ),
    "trained is another task": (
        lambda: small_run(evaluation=evaluation(conditions={"trained": Planted(k=2)})),
        "evaluation.conditions.trained",
    ),
    "no trained length": (lambda: small_run(evaluation=evaluation(lengths=(9, 16))), "evaluation.lengths"),
    "IDs without coupling": (lambda: small_run(task=COUPLED), "model.coupling"),
    "coupling without IDs": (
        lambda: small_run(model=SMALL_MODEL.replace(coupling=Oracle(max_id=9))),
        "model.coupling",
    ),
    "too few IDs": (
        lambda: small_run(task=COUPLED, model=SMALL_MODEL.replace(coupling=Oracle(max_id=1))),
        "model.coupling.max_id",
    ),
    "parent of another vocabulary": (
        lambda: small_run(parent=small_run(task=Planted(k=1, vocab_size=20))),
        "parent.task",
    ),
    "steps": (lambda: Training(steps=-1), "steps"),
    "batch_size": (lambda: Training(batch_size=-1), "batch_size"),
    "learning_rate": (lambda: Training(learning_rate=0.0), "learning_rate"),
    "warmup": (lambda: Training(warmup=1.0), "warmup"),
    "final_fraction": (lambda: Training(final_fraction=1.5), "final_fraction"),
    "betas": (lambda: Training(betas=(0.9, 1.0)), "betas[1]"),
    "clip": (lambda: Training(clip=0.0), "clip"),
    "checkpoint_every": (lambda: Training(checkpoint_every=-1), "checkpoint_every"),
    "threads": (lambda: Training(threads=0), "threads"),
    "device": (lambda: Training(device="gpu"), "device"),
    "sequences": (lambda: Evaluation(sequences=1), "sequences"),
    "no lengths": (lambda: Evaluation(lengths=()), "lengths"),
    "repeated length": (lambda: Evaluation(lengths=(8, 8)), "lengths[1]"),
    "threshold": (lambda: Evaluation(threshold=0.0), "threshold"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_at_its_field(case: str) -> None:
    make, path = REFUSED[case]
    with pytest.raises(SettingError) as error:
        make()
    assert error.value.path == path


def test_a_run_that_no_memory_holds_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the model's own estimate, and what the machine says of itself; one that is finished is only read."""
    small = train(small_run(), tmp_path / "small").config
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**8}.__getitem__)
    assert train(small, tmp_path / "small").config == small
    for config in (small.replace(data_seed=1), small.replace(training=small.training.replace(batch_size=2**20))):
        with pytest.raises(SettingError, match=r"model: .* fits in .*, 0\.00098 GiB, got about"):
            train(config, tmp_path / "large")
    assert not list((tmp_path / "large").glob("*/config.json"))


def test_the_estimate_of_memory_counts_the_weights() -> None:
    model = Decoder(num_layers=3, num_heads=4, num_kv_heads=2, d_model=32, d_ff=48, output_gate=True, vocab_size=20)
    counted = sum(parameter.numel() for parameter in model.build(0).parameters())
    assert model.num_parameters(20) == counted
    assert model.num_bytes(0, 20, training=True) == 16 * counted


def test_refusal_names_the_condition() -> None:
    with pytest.raises(SettingError, match=r"\(condition more\), got 4"):
        small_run(evaluation=evaluation(conditions={"more": Planted(k=6)}))


def test_coupled_task_with_room_for_its_ids_is_taken() -> None:
    run = small_run(task=COUPLED, model=SMALL_MODEL.replace(coupling=Oracle(max_id=2)))
    assert run.task.largest_position_id(8) == 2


def test_id_ignores_the_evaluation_and_the_device_everywhere_and_nothing_else() -> None:
    base = small_run(parent=small_run(data_seed=3))
    other = evaluation(lengths=(8, 32))
    elsewhere = base.training.replace(device="cuda:1", threads=7)
    assert base.replace(training=elsewhere).id == base.id
    assert base.replace(parent=small_run(data_seed=3, training=elsewhere)).id == base.id
    assert base.replace(evaluation=other).id == base.id
    assert base.replace(evaluation=other).evaluation_id != base.evaluation_id
    assert base.replace(parent=small_run(data_seed=3, evaluation=other)).id == base.id
    changed = [
        base.replace(data_seed=1),
        base.replace(model_seed=1),
        base.replace(parent=None),
        base.replace(training=base.training.replace(clip=2.0)),
        base.replace(task=Planted(k=1, rule=Majority())),
        base.replace(task=Planted(k=1, locality=Recent(width=3))),
    ]
    assert len({config.id for config in [base, *changed]}) == 1 + len(changed)


def test_config_comes_back_from_its_json() -> None:
    config = small_run(parent=small_run(), evaluation=evaluation(conditions={"two": Planted(k=2)}))
    assert from_data(RunConfig, json.loads(canonical_json(config))) == config


def test_conditions_do_not_depend_on_the_order_they_were_written_in() -> None:
    tasks = {"two": Planted(k=2), "one": Planted(k=1)}
    one = small_run(evaluation=evaluation(conditions=tasks))
    other = small_run(evaluation=evaluation(conditions=dict(reversed(tasks.items()))))
    assert list(one.conditions) == list(other.conditions) == ["one", "two"]


def test_learning_rate_rises_to_its_peak_and_falls_to_its_final_share() -> None:
    training = Training(steps=100, warmup=0.1, learning_rate=2.0, final_fraction=0.25)
    rates = [training.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[10 + 89] == pytest.approx(0.5)
    middle = 0.5 + 1.5 * 0.5 * (1 + 2**-0.5)  # a quarter of the half cosine: 22.25 of 89 steps
    assert (3 * rates[32] + rates[33]) / 4 == pytest.approx(middle, abs=1e-3)
    assert all(before > after for before, after in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100])
def test_learning_rate_ends_at_its_final_share_whatever_the_warmup(steps: int, warmup: float) -> None:
    training = Training(steps=steps, warmup=warmup, learning_rate=2.0, final_fraction=0.25)
    rates = [training.rate(step) for step in range(steps)]
    assert max(rates) == 2.0
    assert rates[-1] == pytest.approx(2.0 if steps == 1 else 0.5)


def test_no_warmup_starts_at_the_peak() -> None:
    assert Training(steps=5, warmup=0.0, learning_rate=3.0).rate(0) == 3.0


def test_curriculum_of_one_length_is_a_range() -> None:
    config = small_run(training=Training(curriculum=FixedLength(length=8)))
    assert config.training.curriculum.range() == (8, 8)
    with pytest.raises(SettingError):
        small_run(training=Training(curriculum=UniformLength(low=5, high=7)))
