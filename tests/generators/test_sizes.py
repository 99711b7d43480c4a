"""What a certificate says that it sees, it sees: faults of each field of ``Truth``, of each task, at three sizes.

Sizes are those of the certificate itself: ten times the effect that a test states, the effect, and a third of it. A
fault of a declared number is made in the declaration, since only the difference counts. One of what is certain, of
noise or of a dependence is made in the sequences, so many of them as the size says, drawn at random. A declaration
that is either right or wrong has a fault without a size.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from generators.mutants import TASKS, OtherLaw
from numpy.typing import NDArray

from sparsity_lab.generators import Truth
from sparsity_lab.generators.certify.certificate import CHECKS
from sparsity_lab.generators.certify.findings import SMALLEST_EXPECTED, Finding
from sparsity_lab.generators.certify.sequences import CERTIFICATE, DrawnSequences, Slot

SEQUENCES = 10_000
THRESHOLD = 1e-9
SIZES = {"large": 10.0, "stated": 1.0, "small": 1 / 3}
Floats = NDArray[np.float64]
Change = Callable[[Truth, float], dict[str, Any]]


class Fault(NamedTuple):
    """One field of one task: what its test states, and whether it sees a fault of some size."""

    field: str
    effect: float
    exact: bool
    seen: Callable[[float], bool]


def findings(check: str, sample: DrawnSequences, subject: str) -> list[Finding]:
    (function,) = [c for c in CHECKS if c.__name__ == check]
    return [finding for finding in function(sample) if subject in finding.subject]


def changed(sample: DrawnSequences, **fields: Any) -> DrawnSequences:
    """With other declarations, targets or tokens; what follows from the rest is not worked out again."""
    if "tokens" in fields:
        fields["draws"] = sample.task.draws(fields["tokens"], CERTIFICATE)
        kept = set()
    else:
        kept = {"asked", "solved"} | (set() if "targets" in fields else {"predictions", "answers"})
    other = dataclasses.replace(sample, **fields)
    other.__dict__.update({name: value for name, value in sample.__dict__.items() if name in kept})
    return other


Maker = Callable[[DrawnSequences], Iterator[Fault]]


def declared(field: str, check: str, subject: str, change: Change) -> Maker:
    """A fault of what is declared. Numbers that are certain are wrong by a millionth."""

    def faults(sample: DrawnSequences) -> Iterator[Fault]:
        for finding in findings(check, sample, subject)[:1]:
            effect = 1e-6 if finding.test == "certain" else finding.effect(THRESHOLD)
            if np.isfinite(effect):

                def seen(size: float) -> bool:
                    other = changed(sample, truth=dataclasses.replace(sample.truth, **change(sample.truth, size)))
                    return any(f.p_value < THRESHOLD for f in findings(check, other, subject))

                yield Fault(field, effect, finding.test == "certain", seen)

    return faults


def exact(field: str, check: str, edit: Callable[[DrawnSequences], dict[str, Any]]) -> Maker:
    """A fault that has no size: of what is right or wrong."""

    def faults(sample: DrawnSequences) -> Iterator[Fault]:
        def seen(size: float) -> bool:
            return any(f.p_value < THRESHOLD for f in findings(check, changed(sample, **edit(sample)), ""))

        yield Fault(field, 0.0, True, seen)

    return faults


def redeclared(field: str, check: str, change: Callable[[Any], Any]) -> Maker:
    def edit(sample: DrawnSequences) -> dict[str, Any]:
        other = change(getattr(sample.truth, field))
        return {"truth": dataclasses.replace(sample.truth, **{field: other})}

    return exact(field, check, edit)


Edit = Callable[[DrawnSequences, NDArray[np.int64], Slot], dict[str, Any]]


def drawn(field: str, check: str, subject: str, edit: Edit, each: str = "slot") -> Maker:
    """A fault of some targets of the slot that a test is of, or of some of all targets: of so many as its size
    says."""

    def faults(sample: DrawnSequences) -> Iterator[Fault]:
        for finding in findings(check, sample, subject)[:1]:
            effect = finding.effect(THRESHOLD)
            slot = next((slot for slot in sample.slots if finding.subject.startswith(slot.name)), sample.slots[0])
            if np.isfinite(effect):

                def seen(size: float, slot: Slot = slot) -> bool:
                    rng = np.random.default_rng([len(field), int(1e9 * size)])
                    chosen = rng.random(len(sample.targets)) < size
                    own = (sample.slot_of_target == slot.index) | (each == "target")
                    other = changed(sample, **edit(sample, np.flatnonzero(chosen & own), slot))
                    return any(f.p_value < THRESHOLD for f in findings(check, other, subject))

                yield Fault(field, effect, finding.test == "certain", seen)

    return faults


def rarer(law: Floats, more: float) -> Floats:
    """The rarest entry that is tested alone is declared rarer than it is; the others take the rest. What a test sees
    grows with the root of how much rarer it is declared."""
    more = more**2 / 2 + more * (more**2 / 4 + 1) ** 0.5  # so that it is ``more`` times that root
    flat = law.reshape(-1).copy()
    alone = np.flatnonzero(flat * SEQUENCES >= 2 * SMALLEST_EXPECTED)
    cell = alone[flat[alone].argmin()]
    rest = 1 - flat[cell]
    new = flat[cell] / (1 + more)
    flat *= (1 - new) / rest
    flat[cell] = new
    return flat.reshape(law.shape)


def at_first_position(truth: Truth, more: float) -> dict[str, Any]:
    marginals = truth.token_marginals
    assert marginals is not None
    t = first_position(truth)
    other = marginals.copy()
    other[t] = rarer(marginals[t], more)
    return {"build_marginals": lambda: other}


def first_position(truth: Truth) -> int:
    marginals = truth.token_marginals
    if marginals is None:
        return -1
    shares = np.where(np.isnan(marginals), 0, marginals)
    several = ((shares * SEQUENCES >= 2 * SMALLEST_EXPECTED).sum(axis=1) > 1).nonzero()[0]
    return int(several[0]) if len(several) else -1


def everywhere(truth: Truth, more: float) -> dict[str, Any]:
    """Of one token fewer at every position."""
    marginals = truth.token_marginals
    assert marginals is not None
    other, token = marginals.copy(), common_token(truth)
    other[:, token] *= 1 - min(more, 0.9)
    return {"build_marginals": lambda: other}


def common_token(truth: Truth) -> int:
    marginals = truth.token_marginals
    if marginals is None:
        return -1
    varied = np.where((marginals < 1) & ~np.isnan(marginals), marginals, 0)
    return int(varied.sum(axis=0).argmax())


def in_the_joint(truth: Truth, more: float) -> dict[str, Any]:
    joint = truth.token_label_joint
    assert joint is not None
    other = joint.copy()
    other[1] = rarer(joint[1], more)
    return {"build_joint": lambda: other}


def of_the_label(truth: Truth, more: float) -> dict[str, Any]:
    labels = truth.label_distribution
    assert labels is not None
    j, other = varied_slot(truth), np.atleast_2d(labels).copy()
    other[j] = rarer(other[j], more)
    return {"label_distribution": other if labels.ndim == 2 else other[0]}


def varied_slot(truth: Truth) -> int:
    """The first slot of which several labels are tested alone, or -1."""
    labels = () if truth.label_distribution is None else np.atleast_2d(truth.label_distribution)
    return next((j for j, law in enumerate(labels) if several(law)), -1)


class Rarer:
    """A law with one place of its smallest member, or one set, rarer than it is."""

    def __init__(self, law: Any, more: float, what: str) -> None:
        self.law, self.more, self.what = law, more, what

    def order_pmf(self) -> Floats:
        order = self.law.order_pmf().copy()
        if self.what == "places":
            share = order[0].sum()
            order[0] = rarer(order[0] / share, self.more) * share
        return order  # type: ignore[no-any-return]

    def pmf(self, sets: NDArray[np.int64]) -> Floats:
        pmf = self.law.pmf(sets)
        whole = abs(pmf.sum() - 1) < 1e-9 and (pmf * SEQUENCES >= 2 * SMALLEST_EXPECTED).sum() > 1
        return rarer(pmf, self.more) if self.what == "sets" and whole else pmf

    def support_size(self) -> int:
        return self.law.support_size()  # type: ignore[no-any-return]


def of_the_values(truth: Truth, more: float) -> dict[str, Any]:
    assert truth.value_distribution is not None
    return {"value_distribution": rarer(truth.value_distribution, more)}


def of_law(field: str, what: str) -> Change:
    def change(truth: Truth, more: float) -> dict[str, Any]:
        law = getattr(truth, field)
        if isinstance(law, tuple):
            return {field: (Rarer(law[0], more, what), *law[1:])}
        return {field: Rarer(law, more, what)}

    return change


def several(law: Floats) -> bool:
    """Whether an entry is tested alone, beside others."""
    return int((law * SEQUENCES >= 2 * SMALLEST_EXPECTED).sum()) > 1


def more_noise(truth: Truth, more: float) -> dict[str, Any]:
    return {"label_noise": truth.label_noise - more if more < truth.label_noise else truth.label_noise + more}


def plus(field: str) -> Change:
    return lambda truth, more: {field: getattr(truth, field) + more}


def of_the_number(truth: Truth, more: float) -> dict[str, Any]:
    assert isinstance(truth.num_targets, np.ndarray)
    return {"num_targets": rarer(truth.num_targets, more)}


def wrong_targets(sample: DrawnSequences, which: NDArray[np.int64], slot: Slot) -> dict[str, Any]:
    targets = sample.targets.copy()
    labels = np.asarray(sample.truth.labels or range(sample.task.vocabulary.size))
    targets[which] = labels[(np.searchsorted(labels, targets[which]) + 1) % len(labels)]
    return {"targets": targets}


def missing_sources(sample: DrawnSequences, which: NDArray[np.int64], slot: Slot) -> dict[str, Any]:
    sources = sample.sources.copy()
    sources[which, 0] = np.where(sources[which, 0] == 0, -1, 0)
    return {"sources": sources}


def wrong_ids(sample: DrawnSequences, which: NDArray[np.int64], slot: Slot) -> dict[str, Any]:
    assert sample.position_ids is not None
    ids = sample.position_ids.copy()
    ids[sample.rows[which]] += 1
    return {"position_ids": ids}


def told_by_a_source(sample: DrawnSequences, which: NDArray[np.int64], slot: Slot) -> dict[str, Any]:
    """The label is what the first source alone says."""
    labels, targets = np.asarray(sample.truth.labels), sample.targets.copy()
    sources = sample.tokens[sample.rows[which], sample.sources[which, 0]]
    targets[which] = labels[sources % len(labels)]
    return {"targets": targets}


def told(sample: DrawnSequences, which: NDArray[np.int64], bit: NDArray[np.int64]) -> dict[str, Any]:
    """Whether the number of a label is odd is what a bit of each sequence says."""
    labels, targets = np.asarray(sample.truth.labels), sample.targets.copy()
    index = np.searchsorted(labels, targets[which]) & ~1 | bit[sample.rows[which]]
    targets[which] = labels[index.clip(max=len(labels) - 1)]
    return {"targets": targets}


def told_by_the_stream(sample: DrawnSequences, which: NDArray[np.int64], slot: Slot) -> dict[str, Any]:
    return told(sample, which, np.arange(len(sample.tokens)) & 1)


def told_by_a_bystander(sample: DrawnSequences, which: NDArray[np.int64], slot: Slot) -> dict[str, Any]:
    """Of the place that is least often a source, the token says it."""
    before = int(slot.positions.min()) + 1
    varied = sample.tokens[:, :before].std(axis=0) > 0
    place = int(np.where(varied, slot.is_source[:, :before].mean(axis=0), 2.0).argmin())
    which = which[~slot.is_source[np.searchsorted(slot.where, which), place]]
    return told(sample, which, sample.tokens[:, place] & 1)


def repeated_value(sample: DrawnSequences, which: NDArray[np.int64], slot: Slot) -> dict[str, Any]:
    which = which[sample.sizes[which] > 1]
    tokens, (first, second) = sample.tokens.copy(), slot.sources[which, :2].T
    tokens[which, second] = tokens[which, first]
    return {"tokens": tokens}


def repeated_background(sample: DrawnSequences, which: NDArray[np.int64], slot: Slot) -> dict[str, Any]:
    """A token repeats the one before it, at the places where both are most often background."""
    tokens, roles = sample.tokens.copy(), np.array(sample.task.vocabulary.roles)
    both = (roles[tokens] == "background")[:, 1:] & (roles[tokens] == "background")[:, :-1]
    place = int(both.mean(axis=0).argmax())
    rows = sample.rows[which]
    rows = rows[both[rows, place]]
    tokens[rows, place + 1] = tokens[rows, place]
    return {"tokens": tokens}


def with_other_labels(sample: DrawnSequences) -> dict[str, Any]:
    joint = sample.truth.token_label_joint
    assert joint is not None
    other = joint * np.linspace(1.2, 0.8, joint.shape[2])
    return {"truth": dataclasses.replace(sample.truth, build_joint=lambda: other)}


def moved(law: Any) -> Any:
    return tuple(OtherLaw(one, 1, 1.0) for one in law) if isinstance(law, tuple) else OtherLaw(law, 1, 1.0)


def makers(sample: DrawnSequences) -> Iterator[Maker]:
    """Those that fit the task's declarations."""
    truth = sample.truth
    inside = sample.positions + 1 < sample.tokens.shape[1]
    if truth.k is not None:
        yield redeclared("k", "source_counts", lambda k: k + 1)
    if isinstance(truth.num_targets, np.ndarray) and several(truth.num_targets):
        yield declared("num_targets", "target_counts", "number of scored", of_the_number)
    else:
        yield redeclared("num_targets", "target_counts", lambda number: number + 1)
    for level in ("accuracy", "loss"):
        yield declared(f"chance_{level}", "declared_levels", f"chance {level}", plus(f"chance_{level}"))
        yield declared(f"bayes_{level}", "bayes", f"declared {level}", plus(f"bayes_{level}"))
    yield declared("bayes_loss_by_slot", "bayes", "declared loss of target 1", plus("bayes_loss_by_slot"))
    for field, check in (("position_law", "source_places"), ("target_law", "target_places")):
        law = getattr(truth, field)
        if law is None:
            continue
        first = law[0] if isinstance(law, tuple) else law
        if several((order := first.order_pmf()[0]) / max(order.sum(), 1e-300)):
            named = "source 1" if field == "position_law" else "scored position 1"
            yield declared(field, check, named, of_law(field, "places"))
        else:
            yield redeclared(field, check, moved)
    if truth.label_noise > 0:
        yield declared("label_noise", "rule", "noise, of all", more_noise)
    elif truth.labels and len(truth.labels) > 1:
        yield drawn("label_noise", "rule", "differ from the rule", wrong_targets, "target")
    if truth.labels is not None:
        commonest = int(np.bincount(sample.targets).argmax())
        yield redeclared("labels", "label_balance", lambda labels: tuple({*labels} - {commonest}))
        yield drawn("labels, independent of the stream", "targets", "and one of", told_by_the_stream)
    if (j := varied_slot(truth)) >= 0:
        named = "labels" if sample.one_target else f"target {j + 1}: labels"
        yield declared("label_distribution", "label_balance", named, of_the_label)
    if truth.token_label_joint is not None and several(truth.token_label_joint[1]):
        yield declared("build_joint", "position_shortcut", "position 1", in_the_joint)
    elif truth.token_label_joint is not None:
        yield exact("build_joint", "position_shortcut", with_other_labels)
    if (t := first_position(truth)) >= 0:
        yield declared("build_marginals", "token_marginals", f"position {t}", at_first_position)
        token = f"token {common_token(truth)} anywhere"
        yield declared("build_marginals, all positions", "token_marginals", token, everywhere)
    if truth.label_free_subsets:
        yield drawn("label_free_subsets", "subset_shortcut", "sum of sources (0,)", told_by_a_source)
    if truth.label_free_bystanders:
        yield drawn("label_free_bystanders", "bystanders", "the target and a token before", told_by_a_bystander)
    if truth.value_distribution is not None:
        yield declared("value_distribution", "source_places", "value 1", of_the_values)
    if truth.independent_values and (sample.sizes > 1).any():
        yield drawn("independent_values", "products", "two of", repeated_value)
    if truth.independent_background and sample.task.vocabulary.roles.count("background") > 1:
        yield drawn("independent_background", "products", "two of", repeated_background)
    if truth.shown_answers and inside.any():
        everything = np.arange(len(sample.targets))
        yield exact("shown_answers", "next_token", lambda s: wrong_targets(s, everything, s.slots[0]))
    elif inside.any():
        yield redeclared("shown_answers", "next_token", lambda shown: True)
    yield redeclared("largest_position_id", "position_ids", lambda largest: largest + 1)
    if sample.position_ids is not None:
        yield drawn("position_ids", "position_ids", "definition", wrong_ids)
    if sample.has_sources and sample.sources.shape[1]:
        yield drawn("sources", "second_answer", "targets and sources", missing_sources)


def says(truth: Truth) -> set[str]:
    """The fields that declare something. Noise of 0 does not where there is no rule, as without sources."""
    given = {field.name: getattr(truth, field.name) for field in dataclasses.fields(truth)}
    names = {name for name, value in given.items() if value is not None and value is not False}
    return names if truth.k or truth.label_noise else names - {"label_noise"}


@functools.cache
def faults_of(name: str) -> dict[str, Fault]:
    """Of a task, by field. Of its examples, those are looked at whose fields have none yet."""
    found: dict[str, Fault] = {}
    for task in TASKS[name].examples():
        truth = task.truth(task.certified_lengths[0])
        if says(truth) <= {field.split(",")[0] for field in found} and not truth.largest_position_id:
            continue
        sample = DrawnSequences.draw(task, 0, SEQUENCES, task.certified_lengths[0], budget=1e9)
        for make in makers(sample):
            for fault in make(sample):
                found.setdefault(fault.field, fault)
    return found


WITHOUT = {
    ("Mixture", "label_noise"): "of its components",
    ("ParityAnswer", "label_free_bystanders"): "all tokens before the answer are its sources",
    **{
        (name, "shown_answers"): "nothing follows a target"
        for name in ("FlipFlop", "InductionHeads", "Mixture", "Planted", "SparseParity")
    },
}
"""Fields without a fault, and why."""


@pytest.mark.slow
def test_every_field_of_the_truth_has_a_fault() -> None:
    lacking = {
        (name, field)
        for name, cls in TASKS.items()
        for task in cls.examples()
        for field in says(task.truth(task.certified_lengths[0])) - {one.split(",")[0] for one in faults_of(name)}
    }
    assert lacking == set(WITHOUT)


@pytest.mark.slow
def test_faults_of_the_stated_size_are_seen() -> None:
    faults = {(name, field): fault for name in TASKS for field, fault in faults_of(name).items()}
    seen = {
        case: {size: fault.seen(times * fault.effect) for size, times in SIZES.items()}
        for case, fault in faults.items()
    }
    assert [case for case, sizes in seen.items() if not sizes["large"]] == []
    missed = [case for case, sizes in seen.items() if not sizes["stated"]]
    assert len(missed) <= 0.05 * len(seen), missed
    # What is stated is not far above what can be seen; one violation is enough of what is certain.
    small = [sizes["small"] for case, sizes in seen.items() if not faults[case].exact]
    assert np.mean(small) < 0.1
