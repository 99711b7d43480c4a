"""Speed of the generators."""

import numpy as np
import polars as pl

from sparsity_lab.benchmarks.measure import alternate
from sparsity_lab.generators import (
    Addition,
    AssociativeRecall,
    BracketedArithmetic,
    CompareNumbers,
    Copy,
    CountSymbol,
    Dyck,
    EvenPairs,
    FlipFlop,
    FormalLanguage,
    InContextMarkov,
    InductionHeads,
    MajorityOfAll,
    Membership,
    MissingDuplicate,
    Mixture,
    Mode,
    ModularArithmetic,
    MultipleAddition,
    Multiplication,
    Needles,
    OddsFirst,
    PaddedMixture,
    ParityAnswer,
    ParityScratchpad,
    Passkey,
    Planted,
    RandomAutomaton,
    Reverse,
    SelectiveCopy,
    Sort,
    SparseMarkov,
    SparseParity,
    SparseParityScratchpad,
    StackManipulation,
    Stream,
    Task,
    TextBytes,
    Uniform,
    VariableAssignment,
    Window,
    WordProblem,
)
from sparsity_lab.generators.certify.streams import has_length

_POSITIONS = 256


def generators() -> pl.DataFrame:
    """Tokens per second of the generators on one core, compared with the same number of raw random words.

    Every task at about T = 256 in batches of 64, as a training step draws them, and of 512; position IDs are made
    where there are some. Then one task at other lengths.
    """
    tasks: list[tuple[str, Task]] = [
        ("Planted, token marking", Planted(k=4, vocab_size=64)),
        ("Planted, window", Planted(k=4, vocab_size=64, locality=Window(width=8))),
        ("Planted, position marking", Planted(k=4, marking="position", locality=Uniform())),
        ("Planted, cue marking", Planted(k=4, marking="cue")),
        ("SparseParity", SparseParity()),
        ("ParityScratchpad", ParityScratchpad()),
        ("ParityAnswer", ParityAnswer()),
        ("EvenPairs", EvenPairs()),
        ("SparseParityScratchpad", SparseParityScratchpad()),
        ("VariableAssignment", VariableAssignment(num_names=200)),
        ("Addition", Addition()),
        ("MultipleAddition", MultipleAddition()),
        ("PaddedMixture", PaddedMixture(tasks=(Addition(operand_digits="published"),), power=2.0)),
        ("Copy", Copy()),
        ("Reverse", Reverse()),
        ("OddsFirst", OddsFirst()),
        ("MissingDuplicate", MissingDuplicate()),
        ("Multiplication", Multiplication()),
        ("Sort", Sort()),
        ("Mode", Mode()),
        ("MajorityOfAll", MajorityOfAll()),
        ("CountSymbol", CountSymbol(largest_count=256)),
        ("ModularArithmetic", ModularArithmetic()),
        ("BracketedArithmetic", BracketedArithmetic()),
        ("CompareNumbers", CompareNumbers()),
        ("WordProblem, S5", WordProblem()),
        ("RandomAutomaton", RandomAutomaton()),
        ("Membership, Tomita 4", Membership()),
        ("Membership, Dyck", Membership(language=Dyck(kinds=2, depth=4))),
        ("FormalLanguage, Dyck", FormalLanguage()),
        ("FlipFlop", FlipFlop()),
        ("StackManipulation", StackManipulation()),
        ("AssociativeRecall, 16 pairs, V = 8192", AssociativeRecall(num_pairs=16, vocab_size=8192)),
        ("Passkey, 3 distractors", Passkey(distractors=3)),
        ("Needles", Needles()),
        ("InductionHeads", InductionHeads(trigger="any")),
        ("SelectiveCopy", SelectiveCopy(num_tokens=16, data_vocab=16)),
        ("SparseMarkov", SparseMarkov()),
        ("InContextMarkov", InContextMarkov()),
        ("InContextMarkov, 8 states", InContextMarkov(num_states=8)),
        ("TextBytes", TextBytes()),
        ("Mixture of two", Mixture(tasks=(Planted(k=2), Planted(k=4)))),
    ]
    cases = [(name, task, _length(task), count) for name, task in tasks for count in (64, 512)]
    planted = Planted(k=4, vocab_size=64)
    cases += [("Planted, short sequences", planted, 62, 512), ("Planted, long sequences", planted, 1022, 32)]
    return pl.DataFrame([_row(*case) for case in cases])


def _length(task: Task) -> int:
    """The largest length of at most ``_POSITIONS`` positions."""
    fitting = [length for length in range(1, _POSITIONS + 1) if task.sequence_length(length) <= _POSITIONS]
    return next(length for length in reversed(fitting) if has_length(task, length))


def _row(name: str, task: Task, length: int, count: int) -> dict[str, object]:
    T = task.sequence_length(length)
    repeats = max(1, 4096 * 64 // (count * T))
    position = 0

    def draw() -> None:
        nonlocal position
        for _ in range(repeats):
            task.sample(Stream(), position, count, length)
            position += count

    tokens = repeats * count * T
    draw()  # tables are made once
    raw, own, ratio = alternate(lambda: _raw_words(tokens), draw, rounds=7)
    return {
        "case": name,
        "T": T,
        "sequences a call": count,
        "million tokens/s": tokens / own / 1e6,
        "million raw words/s": tokens / raw / 1e6,
        "time over raw words": ratio,
    }


def _raw_words(count: int) -> None:
    """Random 32-bit words and their multiply-shift to tokens, in chunks that fit the cache: the floor."""
    chunk = 1 << 15
    philox = np.random.Philox(0)
    out = np.empty(count, dtype=np.int64)
    for start in range(0, count, chunk):
        size = min(chunk, count - start)
        words = philox.random_raw((size + 1) // 2).view(np.uint32)[:size]
        out[start : start + size] = (words.astype(np.uint64) * np.uint64(64)) >> np.uint64(32)
