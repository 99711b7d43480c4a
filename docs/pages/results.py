"""The table of all claims, for the front page of the site."""

from pathlib import Path

__all__ = ["pages"]


def pages(source: Path) -> dict[str, str]:
    lines = (source / "results" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.replace("](", "](results/") for line in lines if line.startswith("|")]
    return {"claims.md": "\n".join(rows) + "\n"}
