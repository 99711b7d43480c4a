"""Certificates: everything a task declares, tested on its sequences.

Each check gives p-values: of chi-square tests, exact binomial tests and normal sums, or 0 and 1 where nothing is left
to chance. A certificate passes if every p-value is at least ``FALSE_ALARM_RATE`` divided by their number, so that a
correct task fails nominally with probability at most ``FALSE_ALARM_RATE`` (Bonferroni). The chi-square tail is an
approximation, and tests leave out cells and sums too small for it: with the smallest cells allowed, null tables
exceeded the nominal tail 1.2 times as often at 1e-4, and about 1.5 times at 1e-5 and 1e-6 (four million tables);
further out it has not been measured. Checks that found nothing to test are named.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from sparsity_lab.generators.certify import checks, levels
from sparsity_lab.generators.certify import independence as independent
from sparsity_lab.generators.certify.findings import Finding
from sparsity_lab.generators.certify.sequences import DrawnSequences
from sparsity_lab.generators.mixture import Mixture
from sparsity_lab.generators.task import Task
from sparsity_lab.settings import SettingError
from sparsity_lab.settings.markup import Markup, element, join, table

__all__ = ["FALSE_ALARM_RATE", "Certificate", "certify"]

FALSE_ALARM_RATE = 1e-6
"""Nominal probability that a correct task fails its certificate: exact but for the approximate tests' tails."""

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
    checks.position_ids,
    checks.components,
    independent.source_values,
    independent.background,
    independent.bystanders,
    independent.noise,
    independent.slices,
    independent.independence,
)

_WHOLE = 50  # longer sequences are drawn in smaller number
_MOST_NUMBERS = 10**9


@dataclass(frozen=True)
class Certificate:
    """The outcome of all checks of one task.

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
        """Names of the checks that found nothing to test, for want of a declaration or of sequences."""
        seen = {finding.check for _, finding in self.findings}
        return tuple(check.__name__ for check in CHECKS if check.__name__ not in seen)

    def frame(self) -> pl.DataFrame:
        """One row a test: length, check, subject, statistic, p_value, passed."""
        rows = [
            {
                "length": length,
                "check": finding.check,
                "subject": finding.subject,
                "statistic": finding.statistic,
                "p_value": finding.p_value,
                "passed": finding.p_value >= self.threshold,
            }
            for length, finding in self.findings
        ]
        return pl.DataFrame(rows)

    def summary(self) -> pl.DataFrame:
        """One row a check: tests, smallest p-value, passed."""
        return (
            self.frame()
            .group_by("check", maintain_order=True)
            .agg(pl.len().alias("tests"), pl.col("p_value").min(), pl.col("passed").all())
        )

    def __repr__(self) -> str:
        lines = (
            f"  {row['check']}: {row['tests']} tests, smallest p {row['p_value']:.3g}, {_verdict(row['passed'])}"
            for row in self.summary().iter_rows(named=True)
        )
        return "\n".join([self._head(), *lines])

    def _repr_html_(self) -> Markup:
        rows = [
            (row["check"], row["tests"], f"{row['p_value']:.3g}", _verdict(row["passed"]))
            for row in self.summary().iter_rows(named=True)
        ]
        return join([element("p", self._head()), table(["check", "tests", "smallest p", ""], rows)])

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


def certify(
    task: Task, seed: int = 0, sequences: int = 100_000, lengths: tuple[int, ...] | None = None
) -> Certificate:
    """Test everything the task declares on freshly drawn sequences.

    Args:
        lengths: at which lengths; the task's ``certified_lengths`` if None.

    Raises:
        SettingError: fewer than 1000 sequences, with which little could be seen, or more tokens than can be held.
    """
    if sequences < 1000:
        raise SettingError("sequences", "a whole number of at least 1000", sequences)
    for length in lengths or task.certified_lengths:
        task.check_length(length)
        count, T, V = _count(task, sequences, length), task.sequence_length(length), task.vocabulary.size
        for what, numbers in (("tokens", count * T), ("probabilities of tokens", min(count, 1000) * V)):
            if numbers > _MOST_NUMBERS:
                raise SettingError("sequences", f"at most {_MOST_NUMBERS} {what} at each length", numbers)
    findings = [
        (length, finding)
        for length in lengths or task.certified_lengths
        for finding in _findings(task, seed, sequences, length)
    ]
    if not all(np.isfinite(finding.p_value) for _, finding in findings):
        raise FloatingPointError(f"a check of {task} gave no p-value")
    return Certificate(task=task, seed=seed, sequences=sequences, findings=tuple(findings))


def _count(task: Task, sequences: int, length: int) -> int:
    """So many sequences that the number of tokens stops growing with the length."""
    return min(sequences, max(1000, sequences * _WHOLE // task.sequence_length(length)))


def _findings(task: Task, seed: int, sequences: int, length: int) -> Iterator[Finding]:
    """Of the task, and if it is a mixture, of each component."""
    sample = DrawnSequences.draw(task, seed, _count(task, sequences, length), length)
    for check in CHECKS:
        yield from check(sample)
    for i, part in enumerate(task.tasks if isinstance(task, Mixture) else ()):
        for finding in _findings(part, seed, sequences, length):
            yield replace(finding, subject=f"component {i + 1}: {finding.subject}")
