"""What every rule must do."""

import itertools

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators import Rule
from sparsity_lab.settings import SettingError
from sparsity_lab.testing.failing import require
from sparsity_lab.testing.setting import check_setting

__all__ = ["check_rule"]

_MOST_TUPLES = 5000


def check_rule(
    rule: Rule, *, ks: tuple[int, ...] = (1, 2, 3, 4), planted_vocabs: tuple[int, ...] = (2, 3, 4)
) -> None:
    """Check a rule of planted values by enumeration, at every k and size q of the planted alphabet that it allows.

    ``apply`` and ``define`` give the same labels on all q^k tuples, labels are 0 .. m - 1, the joint laws are those
    of uniform values, and where ``label_free_subsets`` says so, no proper subset of the values tells anything.

    Raises:
        AssertionError: something does not hold; the message says what, and what to do.

    Example:
        >>> from sparsity_lab.generators import SumMod
        >>> check_rule(SumMod(m=3))
    """
    check_setting(rule)
    sizes = [(k, q) for k in ks for q in planted_vocabs if q**k <= _MOST_TUPLES and _allows(rule, k, q)]
    require(
        bool(sizes),
        rule,
        f"it allows none of k in {ks} with planted_vocab in {planted_vocabs}",
        "Let `check_use` allow more, or pass the sizes that it allows.",
    )
    for k, q in sizes:
        _check_at(rule, k, q)


def _allows(rule: Rule, k: int, q: int) -> bool:
    try:
        rule.check_use(k, q)
    except SettingError:
        return False
    return True


def _check_at(rule: Rule, k: int, q: int) -> None:
    subject = f"{rule} at k={k}, planted_vocab={q}"
    values = np.array(list(itertools.product(range(q), repeat=k)), dtype=np.int64)
    given = values.copy()
    labels = np.asarray(rule.apply(values, q))
    require(np.array_equal(values, given), subject, "`apply` changes the values it is given", "Work on a copy.")
    require(
        labels.shape == (len(values),) and labels.dtype == np.int64,
        subject,
        f"`apply` gives shape {labels.shape} and {labels.dtype} for {len(values)} tuples",
        "Return one int64 label for each row.",
    )
    m = rule.num_labels(q)
    require(
        labels.min() >= 0 and labels.max() < m,
        subject,
        f"labels run from {labels.min()} to {labels.max()}, and num_labels says {m}",
        "Labels are 0 .. num_labels - 1.",
    )
    defined = np.array([rule.define(tuple(row), q) for row in values.tolist()])
    if wrong := np.flatnonzero(labels != defined).tolist():
        row = values[wrong[0]].tolist()
        found = f"of {row}, `apply` says {labels[wrong[0]]} and `define` {defined[wrong[0]]}"
        require(False, subject, found, "One of the two is not the rule.")
    backwards = np.asarray(rule.apply(values[::-1], q))[::-1]
    require(
        np.array_equal(backwards, labels), subject, "a label depends on the other rows", "Label each row by itself."
    )
    _check_joint(rule, values, labels, q, subject)
    if rule.label_free_subsets(k, q):
        _check_subsets(values, labels, m, subject)


def _check_joint(rule: Rule, values: NDArray[np.int64], labels: NDArray[np.int64], q: int, subject: str) -> None:
    k, m = values.shape[1], rule.num_labels(q)
    counted = np.zeros((k, q, m))
    for j in range(k):
        np.add.at(counted[j], (values[:, j], labels), 1 / len(values))
    joint = np.asarray(rule.joint(k, q))
    remedy = (
        "`joint` is P(value j = z and label = y) of independent uniform values, shape (k, planted_vocab, labels)."
    )
    require(joint.shape == counted.shape, subject, f"`joint` has shape {joint.shape}, not {counted.shape}", remedy)
    off = np.abs(joint - counted)
    worst = tuple(int(i) for i in np.unravel_index(off.argmax(), off.shape))
    found = f"`joint`[{worst}] is {joint[worst]:.6g}, and enumeration gives {counted[worst]:.6g}"
    require(bool(off.max() < 1e-9), subject, found, remedy)


def _check_subsets(values: NDArray[np.int64], labels: NDArray[np.int64], m: int, subject: str) -> None:
    k = values.shape[1]
    balance = np.bincount(labels, minlength=m) / len(labels)
    for size in range(1, k):
        for subset in itertools.combinations(range(k), size):
            _, group = np.unique(values[:, subset], axis=0, return_inverse=True)
            table = np.zeros((group.max() + 1, m))
            np.add.at(table, (group.reshape(-1), labels), 1)
            told = bool(np.abs(table / table.sum(axis=1, keepdims=True) - balance).max() > 1e-9)
            found = f"values {subset} tell something of the label, and `label_free_subsets` says that none do"
            require(
                not told, subject, found, "Return True only where every proper subset is independent of the label."
            )
