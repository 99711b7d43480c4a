"""Result pages and figures of the studies in ``experiments/``, and the table of primary claims for the front page."""

from pathlib import Path

__all__ = ["pages"]


def pages(source: Path) -> dict[str, str]:
    experiments = source.parent / "experiments"
    table = (experiments / "README.md").read_text(encoding="utf-8").replace("/result.md)", ".md)")
    primary = table.partition("## Primary claims")[2].partition("\n## ")[0]
    rows = [line.replace("](", "](generated/results/") for line in primary.splitlines() if line.startswith("|")]
    made = {"claims.md": "\n".join(rows) + "\n", "results/README.md": table}
    for page in sorted(experiments.glob("*/result.md")):
        name = page.parent.name
        made[f"results/{name}.md"] = page.read_text(encoding="utf-8").replace("](result.svg)", f"]({name}.svg)")
        made[f"results/{name}.svg"] = page.with_suffix(".svg").read_text(encoding="utf-8")
    return made
