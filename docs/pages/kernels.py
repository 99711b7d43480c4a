"""A page for each attention mechanism: formula and options from its docstring, a picture of its weights, what was
measured, and its section of docs/kernels.md."""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from pages.markdown import autodoc, fenced, page, raw, summary, table
from sparsity_lab.analysis.style import figure_svg, styled
from sparsity_lab.benchmarks.kernel_page import kernel_table, measured_rows
from sparsity_lab.kernels import Kernel, RotaryPosition, Softmax
from sparsity_lab.settings import kinds

__all__ = ["pages"]

_T, _D = 32, 16


def pages(source: Path) -> dict[str, str]:
    sections = _sections((source / "kernels.md").read_text(encoding="utf-8"))
    measured = measured_rows(source.parent / "benchmarks")
    found = {name: cls for name, cls in kinds("kernel").items() if issubclass(cls, Kernel)}
    made = {f"kernels/{name}.md": _page(cls, sections, measured) for name, cls in found.items()}
    rows = [(f"[`{name}`]({name}.md)", summary(cls)) for name, cls in found.items()]
    words = (
        "One page for each mechanism, made from its class. [Attention kernels](../../kernels.md) has the contract, "
        "the use outside the lab, and the table of all costs."
    )
    tree = fenced("toctree", "\n".join(found), hidden="", maxdepth="1")
    made["kernels/index.md"] = page("# Mechanisms", words, table(["kernel", "formula"], rows), tree)
    return made


def _page(
    cls: type[Kernel], sections: dict[str, str], measured: tuple[list[dict[str, Any]], list[dict[str, Any]]]
) -> str:
    name = f"sparsity_lab.kernels.{cls.kind}"
    heading, text = _section_of(cls, sections)
    rows, on_cuda = ([row for row in part if row["kernel"].partition("(")[0] == cls.kind] for part in measured)
    cost = kernel_table(rows, on_cuda) if rows else "`sparsity-lab bench kernels` has not measured it."
    return page(
        f"# {cls.kind}",
        autodoc("autoclass", name, "no-index"),
        _facts(cls),
        "## Its weights, next to those of softmax",
        raw(_weights_picture(cls)),
        "Weights of one head. Each row is divided by its largest weight. Queries and keys have rotary positions, and "
        "a few keys are similar to the last query. Softmax is on the left.",
        "## Cost",
        cost,
        "## Source",
        _sources(cls),
        "## How it works",
        f"From [Attention kernels](../../kernels.md), the section “{heading}”.",
        text,
    )


def _facts(cls: type[Kernel]) -> str:
    example = cls.examples()[0]
    trainable = example.build(4, 16, 0)
    rows = [
        ("written as", ", ".join(f"`{one}`" for one in cls.examples()[:4])),
        ("positions", " or ".join(f"`{kind}`" for kind in sorted(example.positions)) or "none"),
        ("implementations", ", ".join(f"`{one}`" for one in example.implementations)),
        ("trainable parts", "none" if trainable is None else f"`{type(trainable).__name__}`"),
        ("fewer heads of keys", "used directly" if example.grouped else "repeated first"),
    ]
    return table(["", ""], rows)


def _sources(cls: type[Kernel]) -> str:
    """The code, and every arXiv number that the docstring names."""
    name, *inside = cls.__module__.split(".")[2:]
    place = f"{name}/" if inside else f"{name}.py"
    numbers = dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", inspect.getdoc(cls) or ""))
    papers = ", ".join(f"[arXiv {number}](https://arxiv.org/abs/{number})" for number in numbers)
    link = f"{{py:obj}}`in the reference <sparsity_lab.kernels.{cls.kind}>`"
    own = f"Code: `sparsity_lab/kernels/{place}`, {link}."
    return f"{own} Literature: {papers}." if papers else own


def _sections(text: str) -> dict[str, str]:
    """The sections under "Mechanisms", by heading, with headings moved to fit below one of the second level."""
    _, _, mechanisms = text.partition("\n## Mechanisms\n")
    parts = re.split(r"^### (.*)$", mechanisms, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.partition("\n## ")[0] for part in parts[2::2]), strict=True))


def _section_of(cls: type[Kernel], sections: dict[str, str]) -> tuple[str, str]:
    """Heading and text of the section about this mechanism: the one that has it in its heading, or says it most."""

    def said(item: tuple[str, str]) -> tuple[bool, int]:
        heading, text = item
        return bool(re.search(rf"\b{cls.kind}\b", heading)), len(re.findall(rf"`{cls.kind}\b", text))

    heading, text = max(sections.items(), key=said)
    return heading.replace("`", ""), re.sub(r"^####", "###", text, flags=re.MULTILINE)


def _weights_picture(cls: type[Kernel]) -> str:
    """Softmax and the mechanism on the same rows, as pictures of the lower triangle."""
    kernel = cls.examples()[0]
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, _T, _D, generator=generator) for _ in range(2))
    k[:, :, [5, 13, 22]] += 0.7 * q[:, :, -1:]  # the last row has something to find
    with styled():
        figure = Figure(figsize=(7.2, 3.5), layout="constrained")
        for ax, one in zip(figure.subplots(1, 2), (Softmax(), kernel), strict=True):
            position = _rotation() if "rotate" in one.positions else None
            try:
                weights = one.weights(q, k, training=True, position=position, params=one.build(2, _D, 0))
            except ValueError:  # a mechanism may refuse a rotation by its options
                weights = one.weights(q, k, training=True, params=one.build(2, _D, 0))
            rows = weights[0, -1].detach().abs().numpy()
            rows = rows / np.maximum(rows.max(axis=1, keepdims=True), 1e-12)
            seen = np.ma.masked_where(np.triu(np.ones_like(rows), 1) > 0, rows)
            # So many cells are smaller as a raster image, and nothing compares the bytes of this page.
            ax.pcolormesh(seen, cmap="cividis", vmin=0, vmax=1, rasterized=True)
            ax.invert_yaxis()
            ax.set_aspect("equal")
            ax.set_title(textwrap.fill(str(one), 38), fontsize=9, loc="left")
            ax.set_xlabel("key")
            ax.set_ylabel("query")
        return figure_svg(figure, f"Weights of {kernel} next to those of softmax")


def _rotation() -> RotaryPosition:
    angles = torch.arange(_T, dtype=torch.float64)[:, None] * 10000.0 ** (
        -torch.arange(0, _D, 2, dtype=torch.float64) / _D
    )
    return RotaryPosition(angles[None])
