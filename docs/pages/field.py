"""The map of the field: every task by its two dials, and what the lab has of peers' sets of tasks."""

from pathlib import Path

from pages.markdown import page, raw, table
from sparsity_lab.analysis import field_map
from sparsity_lab.analysis.style import figure_svg
from sparsity_lab.generators import suite
from sparsity_lab.settings import kinds

__all__ = ["pages"]

_SUITES = ("chomsky", "mad", "zoology", "rasp-l", "position-coupling")


def pages(source: Path) -> dict[str, str]:
    own = {name: cls for name, cls in kinds("task").items() if cls.__module__.startswith("sparsity_lab.")}
    found = field_map({name: cls.examples()[0] for name, cls in own.items()})
    words = (
        "How many tokens does an answer need, and how far back are they? Each row is a task at its first example, "
        "with sequences of at most 16, 64 and 256 tokens. Both numbers are counted from the sources of sampled "
        "sequences, of the answers that need most; the distance is that of the farthest source. A task whose first "
        "number stays where it is while sequences grow is *sparse*; one whose second number stays is *local*."
    )
    without = ", ".join(f"[{name}](tasks/{name}.md)" for name in found.without)
    parts = [
        "# The map of the field",
        words,
        raw(figure_svg(found.figure(), found.finding)),
        f"No sources are listed for {without}: their next token depends on all before it, or follows no rule.",
        "`sparsity_lab.analysis.field_map` draws this map, of any tasks. Build the page with `make docs`.",
        "## Peers' sets of tasks",
        "`suite(name)` gives what this lab has of a peer's set, under the published settings.",
    ]
    for name in _SUITES:
        of = suite(name)
        rows = [
            (task, f"`{here}`" if "(" in here else here, lengths, note) for task, here, lengths, note in of.rows()
        ]
        parts += [f"### {name}", f"{of.source}: {len(of.offered)} of {len(of.tasks)}."]
        parts.append(table(["task", "here", "lengths", "what differs, or why not"], rows))
    return {"field.md": page(*parts)}
