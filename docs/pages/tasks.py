"""The task gallery: every registered task with what it declares and sequences sampled now."""

from pathlib import Path

from pages.markdown import autodoc, fenced, page, raw, summary, table
from sparsity_lab.generators import Stream, Task, Truth
from sparsity_lab.generators.token_view import legend_html, sequence_html
from sparsity_lab.settings import kinds

__all__ = ["pages"]

_SEQUENCES = 3
_EXAMPLES = 4
_LONGEST = 40  # positions, so that a sequence fits a line or two


def pages(source: Path) -> dict[str, str]:
    found = {name: cls for name, cls in kinds("task").items() if issubclass(cls, Task)}
    made = {f"tasks/{name}.md": _page(cls) for name, cls in found.items()}
    words = (
        "Every registered task. The build of this site sampled the sequences. Framed tokens are the sources of an "
        "answer, and answers are the scored tokens. Small numbers below are coupled position IDs. `sparsity-lab "
        "sample` shows more, and `sparsity-lab certify` tests everything that a task declares."
    )
    parts = [
        f"## [{name}](tasks/{name}.md)\n\n{summary(cls)}\n\n{raw(_samples(cls.examples()[0], 1))}"
        for name, cls in found.items()
    ]
    tree = fenced("toctree", "\n".join(f"tasks/{name}" for name in found), hidden="", maxdepth="1")
    made["tasks.md"] = page("# Tasks", words, raw(legend_html()), *parts, tree)
    return made


def _page(cls: type[Task]) -> str:
    examples = cls.examples()
    first = examples[0]
    length = _length(first)
    parts = [
        f"# {cls.kind}",
        autodoc("autoclass", f"sparsity_lab.generators.{cls.kind}", "no-index"),
        "## Samples",
        raw(legend_html()),
    ]
    for example in examples[:_EXAMPLES]:
        parts += [f"`{example}` at length {_length(example)}:", raw(_samples(example, _SEQUENCES))]
    if rest := examples[_EXAMPLES:]:
        parts.append("More examples: " + ", ".join(f"`{one}`" for one in rest) + ".")
    declared = _declared(first.truth(length))
    parts += [f"## What it declares\n\nOf `{first}` at length {length}:", table(["", ""], declared)]
    return page(*parts)


def _length(task: Task) -> int:
    """The longest certified length whose sequences are short enough for a page, or the shortest."""
    fitting = [one for one in task.certified_lengths if task.sequence_length(one) <= _LONGEST]
    return max(fitting, default=min(task.certified_lengths))


def _samples(task: Task, count: int) -> str:
    batch = task.sample(Stream(seed=0, name="gallery"), 0, count, _length(task))
    return "\n".join(sequence_html(batch.view(row)) for row in range(len(batch)))


def _declared(truth: Truth) -> list[tuple[str, str]]:
    numbers = {
        "sources of a target": truth.k,
        "scored targets": truth.num_targets if isinstance(truth.num_targets, int) else "varies",
        "chance accuracy": truth.chance_accuracy,
        "Bayes accuracy": truth.bayes_accuracy,
        "chance loss (nats)": truth.chance_loss,
        "Bayes loss (nats)": truth.bayes_loss,
        "label noise": truth.label_noise or None,
        "largest position ID": truth.largest_position_id or None,
        "no smaller set of sources carries information": truth.label_free_subsets and "yes",
    }
    return [
        (name, f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in numbers.items()
        if value is not None
    ]
