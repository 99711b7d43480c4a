"""Tables of all other settings: laws, rules, positions, index samplings, couplings, curricula, engines."""

from pathlib import Path

from pages.markdown import page, summary, table
from sparsity_lab.settings import families, kinds

__all__ = ["pages"]

_ELSEWHERE = {"task", "kernel"}
"""Families with pages of their own."""


def pages(source: Path) -> dict[str, str]:
    parts = []
    for family in families():
        members = kinds(family)
        if family in _ELSEWHERE or len(members) < 2:
            continue
        rows = [(_link(cls, name), summary(cls)) for name, cls in members.items()]
        parts.append(f"## {family}\n\n{table(['kind', 'what it is'], rows)}")
    words = (
        "All other settings of a run, by family, as `sparsity-lab list` shows them. [Tasks](tasks.md) and "
        "[kernels](kernels/index.md) have their own pages."
    )
    return {"settings.md": page("# Settings", words, *parts)}


def _link(cls: type, name: str) -> str:
    package = ".".join(cls.__module__.split(".")[:2])
    return f"{{py:obj}}`{name} <{package}.{name}>`"
