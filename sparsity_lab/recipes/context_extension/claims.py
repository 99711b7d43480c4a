"""The claims and their rules."""

import math
from collections.abc import Callable, Mapping, Sequence

from sparsity_lab.analysis import Interval, mean_interval
from sparsity_lab.recipes.context_extension.arms import INTERPOLATED, LONGER, PLAIN, arm
from sparsity_lab.recipes.context_extension.lookup import above, chosen, context, mean, measures, paired, values
from sparsity_lab.studies import Claim, Decision, Evidence, Verdict, judged

__all__ = ["CLAIMS"]


def at_most(interval: Interval, bound: float) -> Verdict:
    """``held`` if the whole interval lies at or below the bound, ``did not hold`` if all of it lies above."""
    if interval.low is None or interval.high is None:
        return "not decided"
    return "held" if interval.high <= bound else "did not hold" if interval.low > bound else "not decided"


PERCENT = "% in perplexity"


def compared(
    group: str, method: str, other: str, verdict: Callable[[Interval], Verdict]
) -> Callable[[Evidence], Decision]:
    """The rule about the perplexity of one method above that of another, at the context of both."""

    def decide(evidence: Evidence) -> Decision:
        names = [chosen(evidence, group, one) for one in (method, other)]
        first, second = (values(evidence, name, context(evidence, name)) for name in names)
        interval = paired(first, second, above)
        return Decision(verdict(interval), interval, PERCENT, _perplexities(names, [first, second]))

    return decide


def closed(method: str, least: float) -> Callable[[Evidence], Decision]:
    """The rule about the share of the loss that LoRA alone leaves open, and that a method closes."""

    def decide(evidence: Evidence) -> Decision:
        names = [chosen(evidence, "text", one) for one in ("shifted, LoRA", method, "shifted")]
        alone, own, full = (values(evidence, name, context(evidence, name)) for name in names)
        detail = _perplexities(names, [alone, own, full])
        seeds = sorted(alone.keys() & own.keys() & full.keys())
        if any(alone[seed] <= full[seed] for seed in seeds):
            return Decision("not decided", mean_interval([]), "of the gap", f"LoRA alone left no gap. {detail}")
        shares = [(alone[seed] - own[seed]) / (alone[seed] - full[seed]) for seed in seeds]
        interval = mean_interval(shares)
        return Decision(judged(interval, above=least), interval, "of the gap", detail)

    return decide


def _dense_or_sparse(evidence: Evidence) -> Decision:
    name = chosen(evidence, "text", "shifted")
    dense, sparse = values(evidence, name, context(evidence, name)), measures(evidence, name, "sparse_loss")
    interval = paired(sparse, dense, above)
    return Decision(judged(interval), interval, PERCENT, _perplexities(["sparse", "dense"], [sparse, dense]))


def _time(evidence: Evidence) -> Decision:
    names = [chosen(evidence, LONGER, method) for method in ("shifted", "dense")]
    shifted, dense = (measures(evidence, name, "step_ms") for name in names)
    interval = paired(shifted, dense, lambda own, other: own / other)
    return Decision(at_most(interval, 1.0), interval, "of the time of a dense step")


def _interpolation(evidence: Evidence) -> Decision:
    names = [arm("text", method) for method in (PLAIN, INTERPOLATED)]
    plain, interpolated = (values(evidence, name, context(evidence, names[1])) for name in names)
    interval = paired(plain, interpolated, above)
    return Decision(judged(interval), interval, PERCENT, _perplexities(names, [plain, interpolated]))


def _short_contexts(evidence: Evidence) -> Decision:
    names = [chosen(evidence, "text", "shifted"), arm("text", PLAIN)]
    length = context(evidence, names[1])
    tuned, plain = (values(evidence, name, length) for name in names)
    interval = paired(tuned, plain, above)
    detail = f"At {length} tokens: {_perplexities(names, [tuned, plain])}"
    return Decision(judged(interval), interval, PERCENT, detail)


def _floor(evidence: Evidence) -> Decision:
    names = [chosen(evidence, "markov", method) for method in ("shifted", "dense")]
    shifted, dense = (values(evidence, name, context(evidence, name), "excess_loss") for name in names)
    interval = paired(shifted, dense, lambda own, other: own - other)
    detail = f"Above the floor: {mean(shifted):.4f} shifted, {mean(dense):.4f} dense."
    return Decision(at_most(interval, 0.01), interval, "nats", detail)


def _retrieval(evidence: Evidence) -> Decision:
    name = chosen(evidence, "passkey", "shifted")
    found = values(evidence, name, context(evidence, name), "accuracy")
    interval = mean_interval(list(found.values()))
    plain = values(evidence, arm("passkey", PLAIN), context(evidence, name), "accuracy")
    detail = f"Without fine-tuning {mean(plain):.3f}."
    return Decision(judged(interval, above=0.9), interval, "of the digits", detail)


def _perplexities(names: Sequence[str], found: Sequence[Mapping[int, float]]) -> str:
    means = [mean({seed: math.exp(loss) for seed, loss in one.items()}) for one in found]
    return "; ".join(f"{name}: {mean:.3f}" for name, mean in zip(names, means, strict=True)) + "."


CLAIMS = (
    Claim(
        name="shifted sparse is enough",
        statement="Fine-tuned with shifted sparse attention, a model tested dense is as good as fine-tuned dense",
        source="arXiv 2309.12307: +0.25, -0.25 and +0.5 %",
        rule="Perplexity on text at the extended context, above that of dense fine-tuning: held if the interval ends "
        "at or below 0.5 %, did not hold if all of it lies above, else not decided.",
        decide=compared("text", "shifted", "dense", lambda interval: at_most(interval, 0.5)),
    ),
    Claim(
        name="at the longer context too",
        statement="The same, extended twice as far",
        source="arXiv 2309.12307",
        rule="As for the first claim, with the text's longer context.",
        decide=compared(LONGER, "shifted", "dense", lambda interval: at_most(interval, 0.5)),
    ),
    Claim(
        name="the shift helps",
        statement="Shifting half of the heads makes a better dense model than groups alone",
        source="arXiv 2309.12307: 8.12 against 8.39",
        rule="Perplexity of unshifted groups above that of shifted ones, full fine-tuning, tested dense: held if the "
        "interval lies above 0, did not hold if it lies at or below, else not decided.",
        decide=compared("text", "unshifted groups", "shifted", judged),
    ),
    Claim(
        name="LoRA alone falls short",
        statement="LoRA on queries, keys, values and output alone is worse than full fine-tuning",
        source="arXiv 2309.12307: 11.44 against 8.08",
        rule="Perplexity of LoRA alone above that of full fine-tuning, both with shifted sparse attention: held if "
        "the interval lies above 0, did not hold if it lies at or below, else not decided.",
        decide=compared("text", "shifted, LoRA", "shifted", judged),
    ),
    Claim(
        name="embeddings close most of it",
        statement="Training the embedding beside LoRA closes most of that gap",
        source="arXiv 2309.12307: 8.29",
        rule="Share of the gap in loss between LoRA alone and full fine-tuning: held if the interval lies above 0.5, "
        "did not hold if it lies at or below; not decided in between, or if a seed has no gap.",
        decide=closed("shifted, LoRA + embed", 0.5),
    ),
    Claim(
        name="both close nearly all",
        statement="Training embedding and norms beside LoRA closes nearly all of that gap",
        source="arXiv 2309.12307: 8.12",
        rule="As for the claim before, with 0.9 instead of 0.5.",
        decide=closed("shifted, LoRA + both", 0.9),
    ),
    Claim(
        name="dense in use is better",
        statement="A model fine-tuned with shifted sparse attention is better tested dense than sparse",
        source="arXiv 2309.12307: 8.12 against 8.64",
        rule="Perplexity tested sparse above that tested dense, same weights and windows: held if the interval lies "
        "above 0, did not hold if it lies at or below, else not decided.",
        decide=_dense_or_sparse,
    ),
    Claim(
        name="steps are faster",
        statement="A training step with shifted sparse attention takes less time than a dense one",
        source="arXiv 2309.12307, as reported by others; how much less depends on the size, see "
        "`sparsity-lab bench fine_tune`",
        rule="Median time of a step over that of a dense step, text at the longer context: held if the interval ends "
        "at or below 1, did not hold if it lies above, else not decided.",
        decide=_time,
    ),
    Claim(
        name="interpolation before training",
        statement="Without any fine-tuning, interpolated positions are better than positions never seen",
        source="this lab",
        rule="Perplexity of the parent above that of the parent with interpolated positions, at the extended "
        "context: held if the interval lies above 0, did not hold if it lies at or below, else not decided.",
        decide=_interpolation,
    ),
    Claim(
        name="short contexts suffer",
        statement="At the short context the extended model is worse than the one it was made from",
        source="arXiv 2309.12307, as reported by others",
        rule="Perplexity of full fine-tuning with shifted sparse attention above that of its parent, at the parent's "
        "context: held if the interval lies above 0, did not hold if it lies at or below, else not decided.",
        decide=_short_contexts,
    ),
    Claim(
        name="the floor is reached alike",
        statement="On SparseMarkov, shifted sparse fine-tuning comes as near to the known floor as dense fine-tuning",
        source="this lab",
        rule="Loss above the Bayes optimum at the extended context, minus that of dense fine-tuning: held if the "
        "interval ends at or below 0.01 nats, did not hold if it lies above, else not decided.",
        decide=_floor,
    ),
    Claim(
        name="retrieval survives",
        statement="After shifted sparse fine-tuning, a model tested dense retrieves a passkey from anywhere",
        source="arXiv 2309.12307, as reported by others",
        rule="Accuracy of the digits at the extended context: held if the interval lies above 0.9, did not hold if "
        "it lies at or below, else not decided.",
        decide=_retrieval,
    ),
)
