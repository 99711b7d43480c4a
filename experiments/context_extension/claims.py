"""The claims and their rules."""

import math
from collections.abc import Callable, Mapping
from operator import truediv

from sparsity_lab.analysis import Replicates, paired, paired_differences
from sparsity_lab.studies import Claim, Decision, Evidence, decided, shares_of_way, undecided

from .arms import INTERPOLATED, LONGER, PLAIN
from .lookup import above, chosen, context, mean, measures, values

__all__ = ["CLAIMS"]

ABOVE_ZERO = "held if the interval lies above 0, did not hold if it lies at or below, else not decided."

PAPER = "arXiv 2309.12307"
WITH_BOTH = "with LoRA, embedding and norms"


def no_more_than(bound: str) -> str:
    """``judged`` with ``at_most`` in words, the end of a rule."""
    return f"held if the interval ends at or below {bound}, did not hold if it lies above, else not decided."


def compared(
    group: str, method: str, other: str, *, at: str | None = None, at_most: float | None = None
) -> Callable[[Evidence], Decision]:
    """The rule about the perplexity of one method above that of another, at the context that ``at`` was trained on;
    None is the first of the two."""

    def decide(evidence: Evidence) -> Decision:
        names = [chosen(evidence, group, one) for one in (method, other)]
        length = context(evidence, chosen(evidence, group, at or method))
        found = {name: values(evidence, name, length) for name in names}
        return _perplexity_above(f"At {length} tokens: ", found, at_most)

    return decide


def closed(method: str, least: float) -> Callable[[Evidence], Decision]:
    """The rule about the share of the loss that LoRA alone leaves open, and that a method closes."""

    def decide(evidence: Evidence) -> Decision:
        names = [chosen(evidence, "text", one) for one in ("shifted, LoRA", method, "shifted")]
        found = {name: values(evidence, name, context(evidence, name)) for name in names}
        alone, own, full = found.values()
        detail = _perplexities(found)
        if any(left <= 0 for left in paired_differences(alone, full).values()):
            return undecided(decided({}, "of the gap", detail), "LoRA alone left no gap.")
        return decided(shares_of_way(alone, own, full), "of the gap", detail, above=least)

    return decide


def _dense_or_sparse(evidence: Evidence) -> Decision:
    name = chosen(evidence, "text", "shifted")
    found = {
        "sparse": measures(evidence, name, "sparse_loss"),
        "dense": values(evidence, name, context(evidence, name)),
    }
    return _perplexity_above("Tested ", found)


def _steps(evidence: Evidence) -> Decision:
    return decided(_step_over_dense(evidence), "of the time of a dense step", at_most=1.0)


def _attention(evidence: Evidence) -> Decision:
    return decided(_attention_over_dense(evidence), "of the time of dense attention", at_most=0.625)


def _gains_less(evidence: Evidence) -> Decision:
    step, attention = _step_over_dense(evidence), _attention_over_dense(evidence)
    detail = f"Of the dense time: a step {mean(step):.3f}, its attention {mean(attention):.3f}."
    return decided(paired_differences(step, attention), "of the dense time", detail)


def _step_over_dense(evidence: Evidence) -> Replicates:
    names = [chosen(evidence, LONGER, method) for method in ("shifted", "dense")]
    return paired(truediv, *(measures(evidence, name, "step_ms") for name in names))


def _attention_over_dense(evidence: Evidence) -> Replicates:
    return measures(evidence, chosen(evidence, LONGER, "shifted"), "attention_over_dense")


def _floor(evidence: Evidence) -> Decision:
    shifted, dense, untuned = (chosen(evidence, "markov", method) for method in ("shifted", "dense", PLAIN))
    length = context(evidence, shifted)
    found = [values(evidence, name, length, "excess_loss") for name in (shifted, dense, untuned)]
    guess, floor = (values(evidence, shifted, length, column) for column in ("chance_loss", "bayes_loss"))
    means = [mean(one) for one in (*found, paired_differences(guess, floor))]
    detail = "Above the floor: {:.3f} shifted, {:.3f} dense, {:.3f} without fine-tuning, {:.3f} by guessing."
    return decided(paired_differences(*found[:2]), "nats", detail.format(*means), at_most=0.01)


def _retrieval(evidence: Evidence) -> Decision:
    names = [chosen(evidence, "passkey", method) for method in ("shifted", "dense", INTERPOLATED, PLAIN)]
    length = context(evidence, names[0])
    own, *others = (values(evidence, name, length, "accuracy") for name in names)
    detail = "Fine-tuned dense {:.3f}; not fine-tuned {:.3f} with interpolated positions, {:.3f} with plain ones."
    return decided(own, "of the digits", detail.format(*map(mean, others)), above=0.9)


def _perplexity_above(begun: str, found: Mapping[str, Replicates], at_most: float | None = None) -> Decision:
    """The decision about the losses of two, by how many per cent the perplexity of the first lies above."""
    per_cent = paired(above, *found.values())
    return decided(per_cent, "% in perplexity", begun + _perplexities(found), at_most=at_most)


def _perplexities(found: Mapping[str, Replicates]) -> str:
    means = {name: mean({seed: math.exp(loss) for seed, loss in one.items()}) for name, one in found.items()}
    return "; ".join(f"{name}: {mean:.3f}" for name, mean in means.items()) + "."


CLAIMS = (
    Claim(
        name="shifted sparse is enough",
        statement="Fine-tuned with shifted sparse attention, a model tested dense is as good as fine-tuned dense",
        source=f"{PAPER}: +0.25, -0.25 and +0.5 %",
        rule="Perplexity on text at the extended context, above that of dense fine-tuning, full fine-tuning both: "
        + no_more_than("0.5 %"),
        decide=compared("text", "shifted", "dense", at_most=0.5),
    ),
    Claim(
        name="at the longer context too",
        statement="The same, extended twice as far",
        source=PAPER,
        rule="As for the first claim, with the text's longer context.",
        decide=compared(LONGER, "shifted", "dense", at_most=0.5),
    ),
    Claim(
        name="the shift helps",
        statement="Shifting half of the heads makes a better dense model than groups alone",
        source=f"{PAPER}: 8.12 against 8.39, there {WITH_BOTH}",
        rule="Perplexity of unshifted groups above that of shifted ones, full fine-tuning, tested dense: "
        + ABOVE_ZERO,
        decide=compared("text", "unshifted groups", "shifted"),
    ),
    Claim(
        name="LoRA alone falls short",
        statement="LoRA on queries, keys, values and output alone is worse than full fine-tuning",
        source=f"{PAPER}: 11.44 against 8.08",
        rule="Perplexity of LoRA alone above that of full fine-tuning, both with shifted sparse attention: "
        + ABOVE_ZERO,
        decide=compared("text", "shifted, LoRA", "shifted"),
    ),
    Claim(
        name="embeddings close most of it",
        statement="Training the embedding beside LoRA closes most of that gap",
        source=f"{PAPER}: 8.29",
        rule="Share of the gap in loss between LoRA alone and full fine-tuning: held if the interval lies above 0.5, "
        "did not hold if it lies at or below; not decided in between, or if a seed has no gap.",
        decide=closed("shifted, LoRA + embed", 0.5),
    ),
    Claim(
        name="both close nearly all",
        statement="Training embedding and norms beside LoRA closes nearly all of that gap",
        source=f"{PAPER}: 8.12",
        rule="As for the claim before, with 0.9 instead of 0.5.",
        decide=closed("shifted, LoRA + both", 0.9),
    ),
    Claim(
        name="dense in use is better",
        statement="A model fine-tuned with shifted sparse attention is better tested dense than sparse",
        source=f"{PAPER}: 8.12 against 8.64, there {WITH_BOTH}",
        rule="Perplexity of full fine-tuning tested sparse above that tested dense, same weights and windows: "
        + ABOVE_ZERO,
        decide=_dense_or_sparse,
    ),
    Claim(
        name="attention falls towards G / N",
        statement="With groups of a quarter, the time of attention alone falls towards a quarter",
        source=f"the number of operations in {PAPER}'s method",
        rule="Time of attention alone, forward and backward, over that of dense attention, in the shapes of a "
        "training step at the text's longer context: " + no_more_than("0.625, halfway between 1 and G / N"),
        decide=_attention,
    ),
    Claim(
        name="steps are faster",
        statement="A training step with shifted sparse attention takes less time than a dense one",
        source=f"{PAPER}, as reported by others; how much less depends on the size, see "
        "`sparsity-lab bench fine_tune`",
        rule="Median time of a step over that of a dense step, text at the longer context: " + no_more_than("1"),
        decide=_steps,
    ),
    Claim(
        name="a step gains less",
        statement="A whole step gains less than its attention",
        source=f"the number of operations in {PAPER}'s method",
        rule="The quotient of the times of steps minus that of the times of attention, seed by seed: " + ABOVE_ZERO,
        decide=_gains_less,
    ),
    Claim(
        name="interpolation before training",
        statement="Without any fine-tuning, interpolated positions are better than positions never seen",
        source="this lab",
        rule="Perplexity of the parent above that of the parent with interpolated positions, at the extended "
        "context: " + ABOVE_ZERO,
        decide=compared("text", PLAIN, INTERPOLATED, at=INTERPOLATED),
    ),
    Claim(
        name="short contexts suffer",
        statement="At the short context the extended model is worse than the one it was made from",
        source=f"{PAPER}, as reported by others",
        rule="Perplexity of full fine-tuning with shifted sparse attention above that of its parent, at the parent's "
        "context: " + ABOVE_ZERO,
        decide=compared("text", "shifted", PLAIN, at=PLAIN),
    ),
    Claim(
        name="the floor is reached alike",
        statement="On SparseMarkov, shifted sparse fine-tuning comes as near to the known floor as dense fine-tuning",
        source="this lab",
        rule="Loss above the Bayes optimum at the extended context, minus that of dense fine-tuning: "
        + no_more_than("0.01 nats"),
        decide=_floor,
    ),
    Claim(
        name="retrieval survives",
        statement="After shifted sparse fine-tuning, a model tested dense retrieves a passkey from anywhere",
        source=f"{PAPER}, as reported by others",
        rule="Accuracy of the digits at the extended context: held if the interval lies above 0.9, did not hold if "
        "it lies at or below, else not decided.",
        decide=_retrieval,
    ),
)
