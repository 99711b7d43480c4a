"""What every rule must do."""

import itertools
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators import Rule
from sparsity_lab.settings import SettingError
from sparsity_lab.testing.failing import made, require, without_global_randomness
from sparsity_lab.testing.setting import check_setting

_MOST_TUPLES = 5000
_RANDOM_TUPLES = 2000
_PURE = "Work out each label from its own values, on a copy."


def check_rule(
    rule: Rule,
    *,
    ks: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 12, 16),
    planted_vocabs: tuple[int, ...] = (2, 3, 4),
) -> None:
    """Check a rule of planted values at every k and size q of the planted alphabet that it allows.

    ``apply`` and ``define`` give the same labels, alone and in a batch, and draw nothing from global generators. This
    is checked on all q^k tuples, or on 2000 random ones if there are more than 5000. Labels are 0 .. m - 1, and for
    each q every one occurs. The joint laws are those of uniform values. Where all tuples are looked at, no proper
    subset of the values tells anything if ``label_free_subsets`` says so.

    Raises:
        AssertionError: something does not hold; the message says what, and what to do.

    Example:
        >>> from sparsity_lab.generators import SumMod
        >>> check_rule(SumMod(m=3))
    """
    check_setting(rule)
    allowed = {q: [k for k in ks if _allows(rule, k, q)] for q in planted_vocabs}
    require(
        any(allowed.values()),
        rule,
        f"it allows none of k in {ks} with planted_vocab in {planted_vocabs}",
        "Let `check_use` allow more, or pass the sizes that it allows.",
    )
    for q, sizes in allowed.items():
        seen = {label for k in sizes for label in _labels_at(rule, k, q)}
        never = sorted(set(range(rule.num_labels(q))) - seen) if sizes else []
        found = f"with planted_vocab={q}, num_labels says {rule.num_labels(q)}, and k in {sizes} never give {never}"
        require(not never, rule, found, "Declare the labels that occur; or pass values of k that give them all.")


def _allows(rule: Rule, k: int, q: int) -> bool:
    try:
        rule.check_use(k, q)
    except SettingError:
        return False
    except Exception as error:
        what = f"{rule}: `check_use` of k={k}, planted_vocab={q} raises {type(error).__name__} ({error})"
        raise AssertionError(f"{what}. Refuse with SettingError.") from error
    return True


def _labels_at(rule: Rule, k: int, q: int) -> set[int]:
    """The labels that occur, all checks passed."""
    subject = f"{rule} at k={k}, planted_vocab={q}"
    whole = q**k <= _MOST_TUPLES
    if whole:
        values = np.array(list(itertools.product(range(q), repeat=k)), dtype=np.int64)
    else:
        values = np.random.default_rng(0).integers(q, size=(_RANDOM_TUPLES, k))
    given = values.copy()
    labels = np.asarray(without_global_randomness(partial(rule.apply, values, q), subject, "`apply`"))
    require(np.array_equal(values, given), subject, "`apply` changes the values it is given", _PURE)
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
    tuples = [tuple(row) for row in values.tolist()]
    defined = without_global_randomness(lambda: tuple(rule.define(row, q) for row in tuples), subject, "`define`")
    odd = [(row, one) for row, one in zip(tuples, defined, strict=True) if type(one) is not int]
    found = f"of {odd[0][0]}, `define` gives {odd[0][1]!r}" if odd else ""
    require(not odd, subject, found, "Give the label as an int.")
    if wrong := np.flatnonzero(labels != np.array(defined)).tolist():
        found = f"of {tuples[wrong[0]]}, `apply` says {labels[wrong[0]]} and `define` {defined[wrong[0]]}"
        require(False, subject, found, "One of the two is not the rule.")
    for rows in (slice(None, None, -1), slice(0, 1), slice(1, 2), slice(0, 0)):
        what = f"`apply` fails for {len(values[rows])} rows"
        some = np.asarray(made(partial(rule.apply, values[rows], q), subject, what, _PURE))
        same = np.array_equal(some, labels[rows]) and some.dtype == np.int64
        require(same, subject, "a label depends on the other rows", _PURE)
    # Six standard errors of a frequency, at most.
    _check_joint(rule, values, labels, q, subject, 1e-9 if whole else 3 / len(values) ** 0.5)
    if whole and k > 1 and rule.label_free_subsets(k, q):
        _check_subsets(values, labels, m, subject)
    return set(labels.tolist())


def _check_joint(
    rule: Rule, values: NDArray[np.int64], labels: NDArray[np.int64], q: int, subject: str, tolerance: float
) -> None:
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
    found = f"`joint`[{worst}] is {joint[worst]:.6g}, and {len(values)} tuples give {counted[worst]:.6g}"
    require(bool(off.max() <= tolerance), subject, found, remedy)


def _check_subsets(values: NDArray[np.int64], labels: NDArray[np.int64], m: int, subject: str) -> None:
    """All values but one tell nothing; so fewer tell nothing either."""
    k = values.shape[1]
    balance = np.bincount(labels, minlength=m) / len(labels)
    for subset in itertools.combinations(range(k), k - 1):
        _, group = np.unique(values[:, subset], axis=0, return_inverse=True)
        table = np.zeros((group.max() + 1, m))
        np.add.at(table, (group.reshape(-1), labels), 1)
        told = bool(np.abs(table / table.sum(axis=1, keepdims=True) - balance).max() > 1e-9)
        found = f"values {subset} tell something of the label, and `label_free_subsets` says that none do"
        require(not told, subject, found, "Return True only where every proper subset is independent of the label.")
