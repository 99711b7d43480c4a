"""What all tasks with the layout ``BOS prompt = response EOS`` have in common."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from generators.mutants import EXAMPLES, mutant
from generators.written import written

from sparsity_lab.generators import (
    IGNORE,
    Addition,
    Batch,
    BracketedArithmetic,
    CompareNumbers,
    Copy,
    CountSymbol,
    EvenPairs,
    MajorityOfAll,
    Membership,
    MissingDuplicate,
    Mode,
    ModularArithmetic,
    MultipleAddition,
    Multiplication,
    OddsFirst,
    ParityAnswer,
    ParityScratchpad,
    RandomAutomaton,
    ResponseTask,
    Reverse,
    Sort,
    SparseParityScratchpad,
    StackManipulation,
    Stream,
    Symmetric,
    Tomita,
    VariableAssignment,
    WordProblem,
)
from sparsity_lab.generators.response_layout import FixedFormat
from sparsity_lab.settings import SettingError

TASKS = [task for task in EXAMPLES if isinstance(task, ResponseTask)]
FIXED = [task for task in TASKS if isinstance(task, FixedFormat)]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_layout_and_largest_id(task: ResponseTask) -> None:
    shortest = task.certified_lengths[0]
    for length in range(shortest, shortest + 12, 3):
        if isinstance(task, Membership):
            length = next(n for n in range(length, length + 4) if task.has_length(n))  # noqa: PLW2901
        batch = task.sample(Stream(), 0, 50, length)
        P, T = task.prompt_length(length), task.sequence_length(length)
        ends = torch.tensor([task.end, task.equals, task.end])
        assert (batch.tokens[:, [0, P + 1, T - 1]] == ends).all()
        assert ((batch.tokens == task.equals).sum(dim=1) == 1).all()
        assert (batch.targets[:, : P + 1] == IGNORE).all()
        assert (batch.targets[:, -1] == IGNORE).all()
        assert torch.equal(batch.targets[:, P + 1 : -1], batch.tokens[:, P + 2 :])
        assert batch.position_ids is not None
        assert (batch.position_ids[:, :, -1] == 0).all()
        # The ID above the highest place, where the task gives its ends one.
        assert (batch.position_ids[:, 0, 0] == (length + 2 if getattr(task, "end_ids", False) else 0)).all()
        assert (batch.position_ids[:, 1:, 0] == 0).all()
        assert int(batch.position_ids.min()) == 0
        assert (
            int(batch.position_ids.max())
            == task.largest_position_id(length)
            == task.truth(length).largest_position_id
        )


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_predictor_is_sure_and_reads_no_other_tokens(task: ResponseTask) -> None:
    length = task.certified_lengths[0]
    batch = task.sample(Stream(), 0, 40, length)
    log_posterior = task.log_posterior(batch)
    assert torch.equal(log_posterior.argmax(dim=1), batch.targets[batch.scored])
    assert log_posterior.exp().sum() == len(log_posterior)
    for position in [0, *range(task.prompt_length(length) + 1, batch.tokens.shape[1])]:
        broken = task.sample(Stream(), 0, 40, length)
        broken.tokens[3, position] = (broken.tokens[3, position] + task.vocabulary.size // 2) % task.vocabulary.size
        with pytest.raises(ValueError, match="not sequences of"):
            task.log_posterior(broken)
    short = task.sample(Stream(), 0, 40, length)
    short.tokens = short.tokens[:, :-1]
    with pytest.raises(ValueError, match="not sequences of"):
        task.log_posterior(short)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_predictor_of_no_sequences(task: ResponseTask) -> None:
    batch = task.sample(Stream(), 0, 0, task.certified_lengths[0])
    assert task.log_posterior(batch).shape == (0, task.vocabulary.size)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_predictor_reads_no_sequences_of_length_0(task: ResponseTask) -> None:
    tokens = torch.zeros((1, task.sequence_length(0)), dtype=torch.int64)
    tokens[0, [0, -1]] = task.end
    tokens[0, task.prompt_length(0) + 1] = task.equals
    with pytest.raises(ValueError, match="not sequences of"):
        task.log_posterior(Batch(tokens, torch.full_like(tokens, IGNORE)))


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_lengths_of_other_kinds(task: ResponseTask) -> None:
    """A whole number of numpy's is the same length; what is no whole number is refused."""
    length = task.certified_lengths[0]
    same = task.sample(Stream(), 5, 3, np.int64(length))  # type: ignore[arg-type]
    assert torch.equal(same.tokens, task.sample(Stream(), 5, 3, length).tokens)
    assert task.truth(np.int64(length)).k == task.truth(length).k  # type: ignore[arg-type]
    for wrong in (True, float(length), None, str(length)):
        for make in (task.truth, lambda wrong: task.sample(Stream(), 0, 1, wrong)):
            with pytest.raises(SettingError, match="length: expected a whole number, got"):
                make(wrong)


def undetermined(task: ResponseTask, length: int, sequences: int) -> int:
    """Number of targets that differ from another one of the same slot with the same source tokens."""
    batch = task.sample(Stream(seed=9), 0, sequences, length)
    assert batch.sources is not None
    slots = task.response_length(length) + 1
    sources = batch.sources[batch.scored].view(sequences, slots, -1)
    found = batch.tokens.gather(1, sources.clamp(min=0).flatten(1)).view_as(sources)
    found = torch.where(sources >= 0, found, -1).tolist()
    targets = batch.targets[batch.scored].view(sequences, slots).tolist()
    known: dict[tuple[int, ...], int] = {}
    return sum(
        known.setdefault((slot, *values), target) != target
        for row, answers in zip(found, targets, strict=True)
        for slot, (values, target) in enumerate(zip(row, answers, strict=True))
    )


@pytest.mark.parametrize(
    ("task", "length"),
    [
        (Copy(), 5),
        (Reverse(), 5),
        (Copy(alphabet_size=3, copies=2), 4),
        (OddsFirst(), 5),
        (EvenPairs(), 6),
        (MissingDuplicate(), 4),
        (StackManipulation(), 4),
        (ParityScratchpad(), 9),
        (ParityScratchpad(reverse=True), 9),
        (ParityAnswer(), 6),
        (SparseParityScratchpad(), 20),
        (VariableAssignment(num_names=8, num_constants=3), 7),
        (Addition(base=4), 5),
        (Addition(base=3, num_operands=3), 4),
        (Addition(base=3, num_operands=3, scratchpad=False), 4),
        (Addition(base=2, num_operands=4), 4),
        (MultipleAddition(base=3), 3),
        (MultipleAddition(base=4, scratchpad=False), 3),
        (MultipleAddition(base=3, num_operands=4, start_with_zeros=False), 2),
        (Multiplication(base=3, multiplier_digits=2), 5),
        (Sort(num_values=4), 4),
        (Mode(alphabet_size=3), 6),
        (MajorityOfAll(), 7),
        (CountSymbol(alphabet_size=3), 5),
        (ModularArithmetic(modulus=3), 3),
        (BracketedArithmetic(modulus=2), 7),
        (CompareNumbers(base=3), 3),
        (WordProblem(group=Symmetric(n=3)), 6),
        (WordProblem(group=Symmetric(n=3), scratchpad=False), 3),
        (RandomAutomaton(), 6),
        (Membership(language=Tomita(number=3)), 7),
    ],
    ids=str,
)
def test_the_sources_determine_the_target(task: ResponseTask, length: int) -> None:
    assert undetermined(task, length, 6000) == 0


def test_fewer_sources_would_not() -> None:
    task = Addition(base=3)
    own_digit_missing = mutant(
        task,
        slot_sources=lambda self, length: [
            s[: 4 if len(s) == 5 else 2] for s in map(sorted, task.slot_sources(length))
        ],
    )
    assert isinstance(own_digit_missing, Addition)
    assert undetermined(own_digit_missing, 4, 3000) > 100


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_sources_are_built_on_first_use_only(task: ResponseTask) -> None:
    batch = task.sample(Stream(), 0, 4, task.certified_lengths[0])
    assert "sources" not in batch.__dict__
    assert batch.sources is batch.sources


@pytest.mark.parametrize("task", FIXED, ids=str)
def test_another_start_moves_all_ids_but_none(task: FixedFormat) -> None:
    """IDs of the published rules at start s are those at start 1 and s - 1, but for 0; so are offsets in training."""
    ids = task.coupled_ids(4)
    assert task.coupled_ids(4, start=7).tolist() == [[i + 6 if i else 0 for i in kind] for kind in ids.tolist()]
    assert task.largest_position_id(4) == ids.max()


PINNED = {
    Copy(): "081589=081589",
    Reverse(): "081589=985180",
    ParityScratchpad(): "010111=011010",
    ParityAnswer(): "010111=0",
    SparseParityScratchpad(k=3): "0io00i=000",
    VariableAssignment(num_names=9): "v4v5v5v3v37v6v1v1v4v7v3v4=v5v37",
    Addition(): "288280+283803=3802750",
    Addition(operand_digits="uniform", num_operands=3): "811508+009314+663147=0000000>8051180>2280280>9693841",
    Multiplication(): "402217*66=22364562",
    Copy(distinct=True): "603478=603478",
    Sort(num_values=10): "081589=015889",
    Mode(): "030233=3",
    MajorityOfAll(): "010111=1",
    CountSymbol(): "s1s0s0s0s0s2s2=1",
    ModularArithmetic(): "0-4-0+2+4+4=1",
    CompareNumbers(): "288280<283803=no",
    WordProblem(group=Symmetric(n=3)): "213312213321312312=213132231213132321",
    RandomAutomaton(): "p0r0p0p1r0r0=q1q0q1q2q0q0",
    Membership(): "111100=yes",
}


@pytest.mark.committed
@pytest.mark.parametrize("task", PINNED, ids=str)
def test_pinned_sequences_never_change(task: ResponseTask) -> None:
    """Data of published runs must stay what they were."""
    assert written(task, task.sample(Stream(), 5, 1, 6)) == [PINNED[task]]


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: Copy().sample(Stream(), 0, 1, 0), r"length: expected at least 1 for Copy\(\), got 0"),
    (lambda: Copy().truth(0), "length: expected at least 1"),
    (lambda: Copy().sample(Stream(), -1, 1, 3), "start: expected a whole number of at least 0, got -1"),
    (lambda: Copy().sample(Stream(), -1, 0, 3), "start: expected a whole number of at least 0, got -1"),
    (lambda: Copy().sample(Stream(), 0, 2.0, 3), "count: expected a whole number of at least 0, got 2.0"),  # type: ignore[arg-type]
    (lambda: Copy().coupled_ids(3, start=0), "start: expected a whole number of at least 1, got 0"),
    (lambda: Copy(alphabet_size=1), "alphabet_size: expected a whole number of at least 2, got 1"),
    (lambda: Reverse(alphabet_size=0), "alphabet_size: expected a whole number of at least 2, got 0"),
    (lambda: ParityScratchpad().sample(Stream(), 0, 1, 0), "length: expected at least 1"),
    (lambda: ParityAnswer().check_length(-3), "length: expected at least 1"),
    (lambda: SparseParityScratchpad(density=0.0), "density: expected a number above 0 and at most 1, got 0.0"),
    (lambda: SparseParityScratchpad(density=1.5), "density: expected a number above 0 and at most 1, got 1.5"),
    (lambda: SparseParityScratchpad(k=0), "k: expected a whole number of at least 1, or None, got 0"),
    (lambda: SparseParityScratchpad(k=9).check_length(8), r"length: expected at least k=9 for .*, got 8"),
    (lambda: SparseParityScratchpad(k=9).largest_position_id(8), r"length: expected at least k=9 for .*, got 8"),
    (
        lambda: VariableAssignment(num_names=9).largest_position_id(10),
        "length: expected at most num_names = 9 statements, got 10",
    ),
    (lambda: VariableAssignment(hops=-1), "hops: expected a whole number of at least 0, got -1"),
    (lambda: VariableAssignment(hops=5, num_names=5), r"num_names: expected at least hops \+ 1 = 6 names, got 5"),
    (lambda: VariableAssignment(num_constants=0), "num_constants: expected a whole number of at least 1, got 0"),
    (
        lambda: VariableAssignment(hops=4).check_length(4),
        r"length: expected at least hops \+ 1 = 5 statements, got 4",
    ),
    (
        lambda: VariableAssignment(num_names=9).check_length(10),
        "length: expected at most num_names = 9 statements, got 10",
    ),
    (lambda: Addition(num_operands=1), "num_operands: expected a whole number of at least 2, got 1"),
    (
        lambda: Addition(num_operands=4, scratchpad=False, base=3),
        "num_operands: expected at most base=3 without running",
    ),
    (lambda: Addition(base=1), "base: expected a whole number of at least 2, got 1"),
    (lambda: Addition(operand_digits="any"), "operand_digits: expected 'fixed', 'uniform' or"),  # type: ignore[arg-type]
    (lambda: Multiplication(multiplier_digits=0), "multiplier_digits: expected from 1 to base=10, got 0"),
    (lambda: Multiplication(multiplier_digits=3, base=2), "multiplier_digits: expected from 1 to base=2, got 3"),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS, ids=[message[:40] for _, message in REFUSALS])
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
