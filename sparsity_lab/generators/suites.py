"""``suite``: this lab's versions of another project's task set, under its published settings, and the missing tasks.

Tasks have the lab's layout, streams and truth. ``differs`` says where the other project samples differently. The
settings were read in the projects' repositories in late 2026, except those of ``rasp-l``, which leaves its alphabets
and lengths open. Lengths are counted as in this lab.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sparsity_lab.generators.addition import Addition
from sparsity_lab.generators.associative_recall import AssociativeRecall
from sparsity_lab.generators.bracketed_arithmetic import BracketedArithmetic
from sparsity_lab.generators.copying import Copy, OddsFirst, Reverse
from sparsity_lab.generators.missing_duplicate import MissingDuplicate
from sparsity_lab.generators.modular_arithmetic import ModularArithmetic
from sparsity_lab.generators.multiple_addition import MultipleAddition
from sparsity_lab.generators.multiplication import Multiplication
from sparsity_lab.generators.order_and_counting import MajorityOfAll, Mode, Sort
from sparsity_lab.generators.padded_mixture import PaddedMixture
from sparsity_lab.generators.parity_scratchpad import EvenPairs, ParityAnswer, ParityScratchpad
from sparsity_lab.generators.selective_copy import SelectiveCopy
from sparsity_lab.generators.stack_manipulation import StackManipulation
from sparsity_lab.generators.state_tracking import Generated, WordProblem
from sparsity_lab.generators.successive_law import SuccessivePower
from sparsity_lab.generators.task import Task
from sparsity_lab.settings import SettingError, Shown
from sparsity_lab.settings.markup import Markup, table


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """One task of another project.

    >>> next(one.name for one in suite("mad").tasks if one.task is not None)
    'selective-copying'

    Attributes:
        name: the other project's name for it.
        task: this lab's version; None if there is none.
        lengths: published lengths, the training lengths first; empty if none are published.
        differs: how this lab's version differs.
        reason: why this lab has no version.
    """

    name: str
    task: Task | None = None
    lengths: tuple[int, ...] = ()
    differs: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Suite:
    """Another project's set of tasks.

    >>> suite("chomsky").name
    'chomsky'

    Attributes:
        name: name of the suite.
        source: where it is described.
        tasks: all of its tasks.
    """

    name: str
    source: str
    tasks: tuple[SuiteTask, ...]

    @property
    def offered(self) -> dict[str, Task]:
        """This lab's tasks by the names in the suite."""
        return {one.name: one.task for one in self.tasks if one.task is not None}

    @property
    def missing(self) -> dict[str, str]:
        """The tasks of which this lab has no version, each with the reason."""
        return {one.name: one.reason for one in self.tasks if one.task is None}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """One row for each task: name, this lab's version, lengths, and the difference or the reason why there is
        none."""
        return [
            (
                one.name,
                "not offered" if one.task is None else str(one.task),
                _listed(one.lengths),
                one.differs + one.reason,
            )
            for one in self.tasks
        ]

    def __repr__(self) -> str:
        lines = (f"  {name}: {task}" + (f" ({note})" if note else "") for name, task, _, note in self.rows())
        return "\n".join(
            [f"Suite({self.name}, {len(self.offered)} of {len(self.tasks)} tasks, {self.source})", *lines]
        )

    def _repr_html_(self) -> Markup:
        return table(["task", "here", "lengths", ""], self.rows())


def _listed(lengths: Sequence[int]) -> str:
    if len(lengths) > 4:
        return f"{lengths[0]} to {lengths[-1]}"
    return ", ".join(map(str, lengths))


def suite(name: str) -> Suite:
    """This lab's versions of another project's set of tasks.

    Args:
        name: ``"chomsky"``, ``"mad"``, ``"zoology"``, ``"rasp-l"`` or ``"position-coupling"``.

    Raises:
        SettingError: the suite does not exist.

    >>> from sparsity_lab.generators import suite
    >>> print(suite("chomsky").offered["bucket_sort"])
    Sort(num_values=5)
    >>> suite("mad").missing["compression"]
    'an auto-encoder reads it: no next token is scored'
    """
    if name not in _SUITES:
        raise SettingError(
            "suite", "a peer's set of tasks", name if isinstance(name, str) else Shown(repr(name)), tuple(_SUITES)
        )
    source, tasks = _SUITES[name]
    return Suite(name, source, tasks)


def _missing(name: str, reason: str) -> SuiteTask:
    return SuiteTask(name=name, reason=reason)


_TRAINED_TO_40 = tuple(range(1, 41))

# Steps of 0, 1 and -1 on a circle of five places.
_STEPS = Generated(generators=((1, 2, 3, 4, 5), (2, 3, 4, 5, 1), (5, 1, 2, 3, 4)))

_CHOMSKY = (
    SuiteTask(name="even_pairs", task=EvenPairs(), lengths=_TRAINED_TO_40[1:]),
    SuiteTask(
        name="modular_arithmetic",
        task=ModularArithmetic(),
        lengths=tuple(range(1, 21)),
        differs="a length counts numbers, not tokens",
    ),
    SuiteTask(name="parity_check", task=ParityAnswer(), lengths=_TRAINED_TO_40),
    SuiteTask(
        name="cycle_navigation",
        task=WordProblem(group=_STEPS, letters="generators", scratchpad=False),
        lengths=_TRAINED_TO_40,
    ),
    SuiteTask(name="modular_arithmetic_brackets", task=BracketedArithmetic(), lengths=_TRAINED_TO_40),
    SuiteTask(name="reverse_string", task=Reverse(alphabet_size=2), lengths=_TRAINED_TO_40),
    _missing("solve_equation", "the unknown is the digit next to a random token; its law is not worked out"),
    SuiteTask(
        name="stack_manipulation",
        task=StackManipulation(),
        lengths=_TRAINED_TO_40[1:],
        differs="what lies behind the end of the stack is scored",
    ),
    _missing("binary_addition", "two numbers share a fixed number of digits; in Addition each has its own"),
    _missing("binary_multiplication", "two numbers share a fixed number of digits, and sources grow with both"),
    _missing("compute_sqrt", "a digit depends on all before it in no way of a few tokens; not made yet"),
    SuiteTask(name="duplicate_string", task=Copy(alphabet_size=2, copies=2), lengths=_TRAINED_TO_40),
    SuiteTask(
        name="missing_duplicate_string",
        task=MissingDuplicate(),
        lengths=_TRAINED_TO_40[:20],
        differs="a length counts the symbols of one copy",
    ),
    SuiteTask(
        name="odds_first",
        task=OddsFirst(),
        lengths=_TRAINED_TO_40,
        differs="as described; the published code writes even places first",
    ),
    SuiteTask(name="bucket_sort", task=Sort(num_values=5), lengths=_TRAINED_TO_40),
)

_MAD = (
    _missing("compression", "an auto-encoder reads it: no next token is scored"),
    _missing("memorization", "one table of keys for all sequences is learned in the weights, not in context"),
    _missing("in-context-recall", "keys come back any number of times; AssociativeRecall asks for each once"),
    _missing("noisy-in-context-recall", "as in-context-recall, with noise tokens between"),
    _missing("fuzzy-in-context-recall", "keys and values of one to three tokens; not made yet"),
    SuiteTask(
        name="selective-copying",
        task=SelectiveCopy(num_tokens=16, data_vocab=14),
        lengths=(239,),
        differs="places are a uniform set; there the last one ends the prompt, and answers are not read",
    ),
)

_RECALL = AssociativeRecall(
    vocab_size=8192, gaps=SuccessivePower(power_a=0.01), answers="hidden", filler="blank", tokens_per_pair=16
)
_DIFFERS = "which key is asked where is uniform, and values may be equal"

_ZOOLOGY = (
    SuiteTask(name="multiquery_ar", task=_RECALL, lengths=(64, 128, 256), differs=_DIFFERS),
    SuiteTask(
        name="multiquery_ar, 64 pairs",
        task=_RECALL.replace(num_pairs=64, tokens_per_pair=None),
        lengths=(512,),
        differs=_DIFFERS,
    ),
    SuiteTask(name="parity", task=ParityAnswer()),
    SuiteTask(name="majority", task=MajorityOfAll()),
    _missing(
        "vocab_majority", "the commonest of many symbols with the vocabulary of a whole model; Mode has up to 32"
    ),
    _missing(
        "ar_extrapolate", "recall read at other lengths than trained: evaluate multiquery_ar at several lengths"
    ),
    _missing("forgetting_mqar", "a key's value is overwritten; AssociativeRecall gives each key one value"),
    _missing("compositional_mqar", "keys of several tokens; not made yet"),
    _missing("stacked_mqar", "values of one table are keys of the next; not made yet"),
)

_OWN = "the alphabet is this lab's"

_RASP_L = (
    _missing("count", "all numbers between two are written; CountSymbol counts how often a symbol stands"),
    SuiteTask(name="mode", task=Mode(), differs=f"{_OWN}, and ties go to the lowest"),
    SuiteTask(name="copy with unique tokens", task=Copy(alphabet_size=128, distinct=True), differs=_OWN),
    SuiteTask(name="copy with repeat tokens", task=Copy(alphabet_size=2), differs=_OWN),
    SuiteTask(name="sort", task=Sort(num_values=128, distinct=True), differs=_OWN),
    SuiteTask(name="addition", task=Addition(), differs="the sum is reversed, and places are not hinted at"),
    SuiteTask(name="parity", task=ParityAnswer()),
    SuiteTask(
        name="parity with scratchpad", task=ParityScratchpad(), differs="the scratchpad is all prefix parities"
    ),
)


def _several(scratchpad: bool) -> PaddedMixture:
    """From two to five operands, and lengths from 1 on."""
    return PaddedMixture(tasks=tuple(MultipleAddition(num_operands=n, scratchpad=scratchpad) for n in range(2, 6)))


_WIDTHS = "lengths are uniform; there a half is the longest of all numbers"

_POSITION_COUPLING = (
    SuiteTask(
        name="addition",
        task=PaddedMixture(tasks=(Addition(operand_digits="published"),), power=2.0),
        lengths=(30, 200),
    ),
    SuiteTask(name="copy", task=Copy(), lengths=(*_TRAINED_TO_40, 100)),
    SuiteTask(name="reverse", task=Reverse(), lengths=(*_TRAINED_TO_40, 100)),
    SuiteTask(name="parity", task=ParityAnswer()),
    SuiteTask(name="parity_scratchpad", task=ParityScratchpad(), lengths=(*range(1, 21), 50, 100)),
    SuiteTask(name="parity_scratchpad, reversed", task=ParityScratchpad(reverse=True)),
    SuiteTask(
        name="NxMmultiplication",
        task=Multiplication(),
        lengths=(*_TRAINED_TO_40, 100),
        differs="the first digit may be 0",
    ),
    SuiteTask(
        name="multiple_addition",
        task=_several(False),
        lengths=(10,),
        differs=_WIDTHS,
    ),
    SuiteTask(name="multiple_addition_scratchpad", task=_several(True), lengths=(10,), differs=_WIDTHS),
    _missing("addition_index_hint", "hints are tokens between the digits; not made yet"),
    _missing("multiplication", "both numbers grow, and so do the sources of a digit"),
    _missing("multiplication_scratchpad", "partial products and their running sums; not made yet"),
    _missing("minesweeper_generator", "a grid with two axes of IDs; not made yet"),
)

_SUITES: dict[str, tuple[str, tuple[SuiteTask, ...]]] = {
    "chomsky": ("Deletang et al., arXiv 2207.02098", _CHOMSKY),
    "mad": ("Poli et al., arXiv 2403.17844", _MAD),
    "zoology": ("Arora et al., arXiv 2312.04927", _ZOOLOGY),
    "rasp-l": ("Zhou et al., arXiv 2310.16028", _RASP_L),
    "position-coupling": ("Cho et al., arXiv 2405.20671 and 2410.15787", _POSITION_COUPLING),
}
