import math

import numpy as np
import polars as pl
import pytest
import torch
from training.small_runs import Alternating, Constant, small_run

from sparsity_lab.models import DecoderModel, ModelOutput
from sparsity_lab.training import Evaluation, evaluate, summarize


def test_values_and_standard_errors_by_hand() -> None:
    """Logits (ln 3, 0): probability 3/4 for token 0. One of the two targets of each sequence is 0."""
    config = small_run(task=Alternating(), evaluation=Evaluation(lengths=(4,), sequences=6, batch_tokens=9))
    (row,) = evaluate(Constant(math.log(3), 0.0), config).iter_rows(named=True)
    loss = -(math.log(0.75) + math.log(0.25)) / 2
    assert row["condition"] == "trained"
    assert row["task"] == "Alternating()"
    assert (row["length"], row["trained"], row["sequences"]) == (4, True, 6)
    assert (row["accuracy"], row["accuracy_se"]) == (0.5, 0.0)
    assert (row["exact_match"], row["exact_match_se"]) == (0.0, 0.0)
    assert row["loss"] == pytest.approx(loss, rel=1e-6)
    assert row["loss_se"] == pytest.approx(0.0, abs=1e-12)
    assert (row["chance_accuracy"], row["bayes_accuracy"]) == (0.5, 0.9)
    assert (row["chance_loss"], row["bayes_loss"]) == (0.7, 0.1)
    assert (row["normalized_accuracy"], row["normalized_accuracy_se"]) == (0.0, 0.0)
    assert row["excess_loss"] == pytest.approx(loss + math.log(0.8), rel=1e-6)
    assert row["excess_loss_se"] == pytest.approx(0.0, abs=1e-12)


def test_standard_errors_are_over_sequences() -> None:
    """Six sequences; a model that is right twice on some, once on others."""

    class Model(torch.nn.Module):
        def forward(self, tokens, position_ids=None, *, scored):
            # Sequences 0 and 2 twice right, 1, 3, 4 and 5 once: targets are 01 10 01 10 01 10.
            sure = torch.tensor([0, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0])
            return ModelOutput(torch.nn.functional.one_hot(sure, 2).float() * math.log(3), {})

    config = small_run(task=Alternating(), evaluation=Evaluation(lengths=(4,), sequences=6))
    (row,) = evaluate(Model(), config).iter_rows(named=True)
    right = np.array([1, 0.5, 1, 0.5, 0.5, 0.5])
    losses = np.where(right == 1, -math.log(0.75), -(math.log(0.75) + math.log(0.25)) / 2)
    error = right.std(ddof=1) / math.sqrt(6)
    assert row["accuracy"] == pytest.approx(right.mean())
    assert row["accuracy_se"] == pytest.approx(error)
    assert row["exact_match"] == pytest.approx(2 / 6)
    assert row["exact_match_se"] == pytest.approx(np.array([1, 0, 1, 0, 0, 0]).std(ddof=1) / math.sqrt(6))
    assert row["normalized_accuracy"] == pytest.approx((right.mean() - 0.5) / 0.4)
    assert row["normalized_accuracy_se"] == pytest.approx(error / 0.4)
    assert row["loss_se"] == pytest.approx(losses.std(ddof=1) / math.sqrt(6), rel=1e-6)
    assert row["excess_loss"] == pytest.approx(losses.mean() + math.log(0.8), rel=1e-6)


def test_what_the_task_does_not_declare_is_null() -> None:
    config = small_run(task=Alternating(optimum_known=False), evaluation=Evaluation(lengths=(4,), sequences=4))
    (row,) = evaluate(Constant(1.0, 0.0), config).iter_rows(named=True)
    nulls = {name for name, value in row.items() if value is None}
    assert nulls == {
        "attention",
        "bayes_accuracy",
        "chance_loss",
        "bayes_loss",
        "normalized_accuracy",
        "normalized_accuracy_se",
        "excess_loss",
        "excess_loss_se",
        "id_accuracy",
        "id_accuracy_se",
        "offset_agreement",
        "offset_agreement_se",
    }


def test_all_arms_see_the_same_sequences_and_the_batch_size_changes_none() -> None:
    config = small_run()
    model = config.model.build(0, vocab_size=config.task.vocabulary.size)
    assert isinstance(model, DecoderModel)
    frame = evaluate(model, config)
    other = config.replace(data_seed=9, evaluation=config.evaluation.replace(batch_tokens=40))
    again = evaluate(model, other)
    assert frame["accuracy"].to_list() == again["accuracy"].to_list()
    np.testing.assert_allclose(frame["loss"], again["loss"], rtol=1e-5)
    fresh = config.replace(evaluation=config.evaluation.replace(seed=1))
    assert evaluate(model, fresh)["loss"].to_list() != frame["loss"].to_list()


def test_evaluation_leaves_mode_and_threads_as_they_were() -> None:
    config = small_run()
    model = config.model.build(0, vocab_size=16).train()
    threads = torch.get_num_threads()
    evaluate(model, config.replace(training=config.training.replace(threads=threads + 1)))
    assert model.training
    assert torch.get_num_threads() == threads


def frame(*values: float | None, trained: tuple[int, ...] = (8, 16), run: str | None = None) -> pl.DataFrame:
    lengths = [4 * 2**i for i in range(len(values))]
    columns = {
        "condition": ["trained"] * len(values),
        "length": lengths,
        "trained": [length in trained for length in lengths],
        "normalized_accuracy": pl.Series(values, dtype=pl.Float64),
    }
    return pl.DataFrame({"run": [run] * len(values), **columns} if run else columns)


@pytest.mark.parametrize(
    ("values", "learned", "reach", "censored"),
    [
        ((1.0, 1.0, 0.95, 0.9, 0.4), True, 32, False),
        ((1.0, 1.0, 1.0, 0.99, 0.91), True, 64, True),
        ((1.0, 1.0, 1.0, 0.5, 1.0), True, 16, False),
        ((1.0, 0.8, 1.0, 1.0, 1.0), False, None, False),
        ((1.0, 1.0, 0.89, 1.0, 1.0), False, None, False),
        # Untrained short lengths say nothing about reach.
        ((0.1, 1.0, 1.0, 1.0, 0.2), True, 32, False),
        ((1.0, 1.0, None, 1.0, 1.0), None, None, None),
    ],
)
def test_learned_reach_and_censored(values, learned, reach, censored) -> None:
    (row,) = summarize(frame(*values)).iter_rows(named=True)
    assert (row["learned"], row["reach"], row["censored"]) == (learned, reach, censored)


def test_order_of_rows_does_not_matter() -> None:
    shuffled = frame(1.0, 1.0, 0.95, 0.9, 0.4).sample(fraction=1.0, shuffle=True, seed=3)
    assert summarize(shuffled)["reach"].to_list() == [32]


def test_runs_and_conditions_are_summarized_apart_in_their_order() -> None:
    both = pl.concat([frame(1.0, 1.0, 1.0, run="z"), frame(1.0, 0.2, 1.0, run="a")])
    summary = summarize(both, threshold=0.95)
    assert summary.columns == ["run", "condition", "learned", "reach", "censored"]
    assert summary.rows() == [("z", "trained", True, 16, True), ("a", "trained", False, None, False)]
