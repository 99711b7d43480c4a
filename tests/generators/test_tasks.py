"""What every registered task must do. A new task is covered by its registration alone."""

import numpy as np
import pytest
import torch
from generators.mutants import EXAMPLES, TASKS, applies, catches, mutants_of

from sparsity_lab.generators import Mixture, NotComputable, Stream, Task, certify
from sparsity_lab.generators.certify.certificate import CHECKS
from sparsity_lab.settings import SettingError, from_data, from_text, identifier, to_data


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_every_example_passes_when_short(task: Task) -> None:
    certificate = certify(task, sequences=2000, lengths=task.certified_lengths[:2])
    assert certificate.passed, certificate.frame().filter(~certificate.frame()["passed"])


@pytest.mark.slow
@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_every_example_passes(task: Task) -> None:
    certificate = certify(task, sequences=6000)
    assert certificate.passed, certificate.frame().filter(~certificate.frame()["passed"])


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_every_example_survives_its_texts(task: Task) -> None:
    assert from_text(Task, str(task)) == task
    assert from_data(Task, to_data(task)) == task
    assert identifier(from_text(Task, str(task))) == identifier(task)


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_a_sequence_does_not_depend_on_its_batch(task: Task) -> None:
    length = task.certified_lengths[0]
    whole = task.sample(Stream(seed=3), 0, 3000, length)
    for start, count in [(0, 1), (17, 5), (2900, 100), (2999, 0)]:
        part = task.sample(Stream(seed=3), start, count, length)
        rows = slice(start, start + count)
        assert torch.equal(part.tokens, whole.tokens[rows])
        assert torch.equal(part.targets, whole.targets[rows])
        if whole.position_ids is not None:
            assert torch.equal(part.position_ids, whole.position_ids[rows])
        if whole.sources is not None:
            assert torch.equal(part.sources, whole.sources[rows])


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_lengths_are_whole_numbers_of_any_kind(task: Task) -> None:
    length = task.certified_lengths[0]
    plain = task.sample(Stream(), 0, 3, length)
    for kind in (np.uint8, np.int64):
        assert torch.equal(task.sample(Stream(), 0, 3, kind(length)).tokens, plain.tokens)
        assert task.truth(kind(length)).num_targets is not None
    for wrong in (float(length), None, str(length)):
        for call in (lambda wrong=wrong: task.sample(Stream(), 0, 3, wrong), lambda wrong=wrong: task.truth(wrong)):
            with pytest.raises(SettingError, match="length: expected a whole number"):
                call()


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_shapes_and_roles(task: Task) -> None:
    for length in task.certified_lengths[:2]:
        batch = task.sample(Stream(), 0, 3, length)
        assert batch.tokens.shape == batch.targets.shape == (3, task.sequence_length(length))
        assert int(batch.tokens.max()) < task.vocabulary.size == len(task.vocabulary.roles)
        assert batch.vocabulary == task.vocabulary
        assert len(set(task.vocabulary.names)) == task.vocabulary.size


@pytest.mark.parametrize("task", EXAMPLES, ids=str)
def test_the_optimum_is_declared_where_it_can_be_computed(task: Task) -> None:
    """But for mixtures whose component the tokens do not tell, of which no closed form is known."""
    length = task.certified_lengths[0]
    truth = task.truth(length)
    try:
        task.log_posterior(task.sample(Stream(), 0, 2, length))
    except NotComputable:
        assert truth.bayes_accuracy is None
    else:
        assert (truth.bayes_accuracy is None) == (truth.bayes_loss is None)
        assert truth.bayes_accuracy is not None or isinstance(task, Mixture)


@pytest.mark.slow
@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_every_check_catches_its_mutants_of_every_task(check: str) -> None:
    """Of each task, the first example to which the check applies; and there is such a task."""
    tested = [next((e for e in cls.examples() if applies(check, e)), None) for cls in TASKS.values()]
    assert any(tested)
    for task in filter(None, tested):
        broken = mutants_of(check, task)
        assert broken
        assert [catches(check, one) for one in broken] == [True] * len(broken), f"{check} of {task}"
