"""Certificates: everything a task declares, tested on its sequences.

Each check gives p-values: of chi-square tests, exact binomial tests and normal sums, or 0 and 1 for tests without
chance. A certificate passes if every p-value is at least ``FALSE_ALARM_RATE`` divided by their number, so that a
correct task fails nominally with probability at most ``FALSE_ALARM_RATE`` (Bonferroni). The chi-square tail is an
approximation, so rare cells are pooled, and each of them also has an exact test. With the smallest cells allowed,
null tables exceeded the nominal tail 1.2 times as often at 1e-4, and about 1.5 times at 1e-5 and 1e-6 (four million
tables). Smaller tails have not been measured. A certificate names the checks that had nothing to test.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from sparsity_lab.generators.certify import checks, dependence, learned, levels, likelihood, streams
from sparsity_lab.generators.certify.findings import Finding
from sparsity_lab.generators.certify.sequences import CERTIFICATE, DrawnSequences
from sparsity_lab.generators.mixture import Mixture
from sparsity_lab.generators.stream import Stream, whole
from sparsity_lab.generators.task import Task
from sparsity_lab.settings import SettingError
from sparsity_lab.settings.markup import Markup, element, join, table

FALSE_ALARM_RATE = 1e-6
"""Nominal probability that a correct task fails its certificate. It is exact except for the tails of approximate
tests."""

CHECKS: tuple[Callable[[DrawnSequences], Iterator[Finding]], ...] = (
    checks.token_marginals,
    checks.target_counts,
    checks.target_places,
    checks.next_token,
    checks.label_balance,
    checks.source_counts,
    checks.source_places,
    checks.source_sets,
    checks.rule,
    checks.determined,
    checks.position_shortcut,
    checks.subset_shortcut,
    checks.second_answer,
    levels.bayes,
    levels.declared_levels,
    likelihood.likelihood,
    checks.position_ids,
    checks.components,
    dependence.drawn_law,
    dependence.products,
    dependence.values,
    dependence.targets,
    dependence.bystanders,
    dependence.near_sources,
    dependence.noise,
    dependence.redrawn,
    learned.learned,
    streams.slices,
    streams.streams,
    streams.periods,
    streams.repeats,
)


@dataclass(frozen=True)
class Effort:
    """The computation that a certificate may use.

    Attributes:
        sequences: at each length.
        operations: floating-point operations that a check may spend on products of choices.
        steps: training steps of the learned attacker, at the first length; 0 for no attacker.
        everywhere: whether the learned attacker is trained at all lengths.
    """

    sequences: int
    operations: float
    steps: int = 0
    everywhere: bool = False


EFFORTS = {
    "quick": Effort(10_000, 2e10),
    "default": Effort(100_000, 4e10, steps=200),
    "thorough": Effort(400_000, 2e13, steps=3000, everywhere=True),
}
"""By name."""

TRAINING = "train"
"""Name of the stream that runs are trained on."""

_WHOLE = 50  # tokens; fewer sequences are drawn if they are longer
_MOST_NUMBERS = 10**9
_FEWEST = 100  # sequences of a component


@dataclass(frozen=True)
class Certificate:
    """The outcome of all checks of one task.

    >>> certificate = certify(Planted(k=1), sequences=1000, lengths=(8,), effort="quick")
    >>> certificate.passed, certificate.failed_checks
    (True, ())

    Attributes:
        task: the task.
        seed: seed of the sequences.
        sequences: sequences drawn at each length; where they have T > 50 positions, 50 / T of that number.
        findings: (length, finding) of every test.
    """

    task: Task
    seed: int
    sequences: int
    findings: tuple[tuple[int, Finding], ...]

    @property
    def threshold(self) -> float:
        """The smallest p-value that passes."""
        return FALSE_ALARM_RATE / max(1, len(self.findings))

    @property
    def passed(self) -> bool:
        """True if no test rejects."""
        return all(finding.p_value >= self.threshold for _, finding in self.findings)

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """Names of the checks with a rejecting test."""
        return tuple(sorted({f.check for _, f in self.findings if f.p_value < self.threshold}))

    @property
    def not_applicable(self) -> tuple[str, ...]:
        """Names of the checks that had nothing to test, because a declaration or enough sequences were missing."""
        seen = {finding.check for _, finding in self.findings}
        return tuple(check.__name__ for check in CHECKS if check.__name__ not in seen)

    @property
    def searched(self) -> tuple[str, ...]:
        """For each length, the products of choices that were computed: their orders, places and number."""
        found = []
        for length in dict.fromkeys(length for length, _ in self.findings):
            here = [finding for one, finding in self.findings if one == length]
            own = {f.subject: f for f in here if f.check in {"products", "targets"}}
            kinds = ("two of", "three of")
            told = [f"{f.subject} ({f.terms:,})" for f in own.values() if f.subject.startswith(kinds)]
            orders = "one, two and three" if any("three of" in subject for subject in own) else "one and two"
            trained = sum(f.check == "learned" for f in here)
            network = "a trained network" if trained else "no network was trained"
            found.append(f"length {length}: {'; '.join(told)}; targets with {orders} choices; {network}")
        return tuple(found)

    def frame(self) -> pl.DataFrame:
        """One row for each test: length, check, subject, statistic, p_value, passed, and the smallest ``effect`` that
        it detects with 99 % probability, in the unit ``of``."""
        rows = [
            {
                "length": length,
                "check": finding.check,
                "subject": finding.subject,
                "statistic": finding.statistic,
                "p_value": finding.p_value,
                "passed": finding.p_value >= self.threshold,
                "effect": finding.effect(self.threshold),
                "of": finding.of,
            }
            for length, finding in self.findings
        ]
        return pl.DataFrame(rows)

    def summary(self) -> pl.DataFrame:
        """One row for each check: tests, smallest p-value, passed."""
        return (
            self.frame()
            .group_by("check", maintain_order=True)
            .agg(pl.len().alias("tests"), pl.col("p_value").min(), pl.col("passed").all())
        )

    def power(self) -> pl.DataFrame:
        """One row for each property: the smallest effect that is detected with 99 % probability, in the most and in
        the least sensitive test. Smaller effects may be missed."""
        return (
            self.frame()
            .filter(pl.col("effect").is_finite() & (pl.col("of") != ""))
            .group_by("check", "of", maintain_order=True)
            .agg(pl.col("effect").min().alias("best"), pl.col("effect").max().alias("worst"))
        )

    def __repr__(self) -> str:
        lines = (
            f"  {row['check']}: {row['tests']} tests, smallest p {row['p_value']:.3g}, {_verdict(row['passed'])}"
            for row in self.summary().iter_rows(named=True)
        )
        power = (f"  {row['check']}: {row['of']}: {effects(row)}" for row in self.power().iter_rows(named=True))
        return "\n".join([self._head(), *lines, "Seen with 99 % probability:", *power, "Searched:", *self.searched])

    def _repr_html_(self) -> Markup:
        rows = [
            (row["check"], row["tests"], f"{row['p_value']:.3g}", _verdict(row["passed"]))
            for row in self.summary().iter_rows(named=True)
        ]
        power = [(row["check"], row["of"], effects(row)) for row in self.power().iter_rows(named=True)]
        return join(
            [
                element("p", self._head()),
                table(["check", "tests", "smallest p", ""], rows),
                element("p", "Seen with 99 % probability:"),
                table(["check", "of", ""], power),
                element("p", "Searched: " + "; ".join(self.searched)),
            ]
        )

    def _head(self) -> str:
        verdict = "passed" if self.passed else f"FAILED {', '.join(self.failed_checks)}"
        smallest = min((f.p_value for _, f in self.findings), default=1.0)
        return (
            f"Certificate({self.task}: {verdict}; {len(self.findings)} tests on {self.sequences} sequences a length, "
            f"smallest p {smallest:.3g}, threshold {self.threshold:.3g}; "
            f"not applicable: {', '.join(self.not_applicable) or 'none'})"
        )


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def effects(row: dict[str, float]) -> str:
    """The effects in a row of ``power`` as text, from the best to the worst."""
    best, worst = f"{row['best']:.2g}", f"{row['worst']:.2g}"
    return best if best == worst else f"{best} to {worst}"


def certify(
    task: Task,
    seed: int = 0,
    sequences: int | None = None,
    lengths: tuple[int, ...] | None = None,
    effort: str = "default",
) -> Certificate:
    """Test everything the task declares on freshly drawn sequences.

    >>> certify(Planted(k=2), sequences=1000, lengths=(8,), effort="quick").passed
    True

    Args:
        seed: of the streams, as a run's ``data_seed``; any whole number.
        sequences: number at each length; the effort decides if None. All checks use all of them, except the plain
            observer, which reads at most 10 tokens for each.
        lengths: the lengths to test; the task's ``certified_lengths`` if None.
        effort: ``"quick"`` (10,000 sequences, seconds), ``"default"`` (100,000) or ``"thorough"`` (400,000, minutes).
            It also sets the budget for products of three choices. A network is trained to find dependence that these
            products miss: not at ``"quick"``, and at ``"default"`` only at the first length.

    Raises:
        SettingError: fewer than 1000 sequences, which would detect little; more tokens than fit in memory; an unknown
            effort.
    """
    if effort not in EFFORTS:
        raise SettingError("effort", "an effort", effort, tuple(EFFORTS))
    spent = EFFORTS[effort]
    sequences = spent.sequences if sequences is None else whole("sequences", sequences, 1000)
    seed = whole("seed", seed, None)
    for length in lengths or task.certified_lengths:
        task.check_length(length)
        count, T, V = _count(task, sequences, length), task.sequence_length(length), task.vocabulary.size
        for what, numbers in (("tokens", count * T), ("probabilities of tokens", min(count, 1000) * V)):
            if numbers > _MOST_NUMBERS:
                raise SettingError("sequences", f"at most {_MOST_NUMBERS} {what} at each length", numbers)
    findings = [
        (length, finding)
        for length in lengths or task.certified_lengths
        for finding in _findings(task, seed, sequences, length, spent)
    ]
    if not all(np.isfinite(finding.p_value) for _, finding in findings):
        raise FloatingPointError(f"a check of {task} gave no p-value")
    return Certificate(task=task, seed=seed, sequences=sequences, findings=tuple(findings))


def _count(task: Task, sequences: int, length: int) -> int:
    """The number of sequences at a length. The number of tokens does not grow further above ``_WHOLE`` tokens."""
    return min(sequences, max(1000, sequences * _WHOLE // task.sequence_length(length)))


def _findings(task: Task, seed: int, sequences: int, length: int, effort: Effort) -> Iterator[Finding]:
    """Findings on the stream for evaluation, and on fewer sequences of the stream for training."""
    count = _count(task, sequences, length)
    first, budget = length == task.certified_lengths[0], effort.operations
    steps = effort.steps if first or effort.everywhere else 0
    sample = DrawnSequences.draw(task, seed, count, length, asked_for=sequences, budget=budget, steps=steps)
    yield from _of_sample(sample, Stream(seed=seed, name=CERTIFICATE))
    if first and not any(draw.law is not None for draw in (sample.draws or {}).values()):
        few = max(1000, count // 4)
        sample = DrawnSequences.draw(task, seed, few, length, asked_for=few, budget=budget / 4, name=TRAINING)
        for finding in _of_sample(replace(sample, whole=False), Stream(seed=seed, name=TRAINING)):
            yield replace(finding, subject=f"in training: {finding.subject}")


def _of_sample(sample: DrawnSequences, stream: Stream) -> Iterator[Finding]:
    """Findings on the sample and, for a mixture, on the sequences of each component."""
    for check in CHECKS:
        yield from check(sample)
    if isinstance(task := sample.task, Mixture):
        which = task.component(stream, 0, int(sample.index[-1]) + 1, sample.length)[sample.index]
        for c, part in enumerate(task.tasks):
            rows = np.flatnonzero(which == c)
            if len(rows) >= _FEWEST:
                for finding in _of_sample(sample.only(rows, part), stream):
                    yield replace(finding, subject=f"component {c + 1}: {finding.subject}")
