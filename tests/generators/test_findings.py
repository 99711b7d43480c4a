"""What a test says that it sees, it sees: effects of the stated size in 99 of 100 cases, at a third hardly ever."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from sparsity_lab.generators.certify.findings import Finding, certain, chi_square, largest, proportion

THRESHOLD = 1e-9
N = 20_000
CASES = 300

Test = Callable[[np.random.Generator, float], Finding]


def one(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def noise(rng: np.random.Generator, more: float) -> Finding:
    return proportion("rule", "noise", int(rng.binomial(N, 0.1 + more)), N, 0.1, "label noise")


def share(rng: np.random.Generator, more: float) -> Finding:
    """One of twelve tokens is rarer by so much."""
    law = np.full(12, 1 / 12)
    law[3] *= 1 - more
    counts = rng.multinomial(N, law / law.sum())
    return one(chi_square("token_marginals", "tokens", counts, np.full(12, N / 12)))


def rare(rng: np.random.Generator, more: float) -> Finding:
    """Of three labels that are declared rare the commonest is too common."""
    declared = np.array([0.5, 0.497, 0.0018, 0.0009, 0.0003])
    law = declared + np.array([-more, 0, more, 0, 0])
    (_, alone) = chi_square("label_balance", "labels", rng.multinomial(N, law), N * declared)
    return alone


def correlation(rng: np.random.Generator, more: float) -> Finding:
    """Of a thousand products of signs one has this mean."""
    means = np.zeros(1000)
    means[7] = more
    sums = 2 * rng.binomial(N, (1 + means) / 2) - N
    return one(largest("products", "", sums / np.sqrt(N), np.ones(1000), np.full(1000, float(N)), "correlation"))


def violations(rng: np.random.Generator, more: float) -> Finding:
    wrong = int(rng.binomial(N, more))
    return certain("second_answer", "", wrong == 0, wrong, N)


@pytest.mark.parametrize("test", [noise, share, rare, correlation, violations], ids=lambda test: test.__name__)
def test_stated_effects_are_seen(test: Test) -> None:
    rng = np.random.default_rng(1)
    effect = test(rng, 0.0).effect(THRESHOLD)

    def seen(size: float) -> float:
        return float(np.mean([test(rng, size).p_value < THRESHOLD for _ in range(CASES)]))

    assert seen(0.0) == 0
    assert seen(3 * effect) == 1
    assert 0.96 <= seen(effect) <= 1
    # An effect that is stated too large would be seen at a third as well; a single violation is enough to be certain.
    assert seen(effect / 3) < (0.9 if test is violations else 0.1)


def test_the_bound_holds_far_out() -> None:
    """Products of rare signs are far from normal: their p-values are still no smaller than their rate."""
    rng = np.random.default_rng(2)
    rare, n = 0.02, 400
    size = np.sqrt(rare * (1 - rare))
    product = (rng.binomial(1, rare, (20_000, n)) - rare) / size
    z = product.sum(axis=1) / np.sqrt(n)
    bound, cases = np.array([(1 - rare) / size]), np.array([float(n)])
    p_values = np.array([one(largest("", "", np.array([one_z]), bound, cases, "")).p_value for one_z in z])
    for level in (1e-1, 1e-2, 1e-3):
        assert (p_values < level).mean() <= level


@pytest.mark.parametrize("share", [1e-6, 1e-4, 4e-3])
def test_a_rare_cell_has_its_rate(share: float) -> None:
    """The p-value of a cell that is tested alone is no smaller than its rate, however little the cell expects."""
    rng, declared = np.random.default_rng(3), np.array([0.6 - share, 0.4, share])
    counts = rng.multinomial(N, declared, 3000)
    p_values = np.array([list(chi_square("", "", one, N * declared))[1].p_value for one in counts])
    for level in (1e-1, 1e-2, 1e-3):
        assert (p_values < level).mean() <= level + 4 * (level / len(p_values)) ** 0.5


def test_a_rare_cell_is_seen_beside_a_common_one() -> None:
    """Pooled with the commonest, a label that comes 15 times as often as declared is within the noise."""
    declared = np.array([5000.0, 4982.0, 18.0])
    pooled, alone = chi_square("label_balance", "labels", np.array([4874, 4856, 270]), declared)
    assert pooled.p_value > 1e-4
    assert alone.p_value < 1e-100
    (one,) = chi_square("components", "shares", np.array([9750, 250]), np.array([9950.0, 50.0]))
    assert one.p_value < 1e-50
