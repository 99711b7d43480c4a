"""Draw docs/images/architecture.svg, the picture of docs/architecture.md: ``make pictures``.

The picture is read off the imports of the package, so it cannot disagree with them. A package stands one row above
the highest package that it imports. An arrow that follows from others is left out.
"""

import ast
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = Path(__file__).parent / "images" / "architecture.svg"
PREFIX = "sparsity_lab."
BOX, GAP = (148, 46), (26, 62)

Imports = Mapping[str, set[str]]


def imports(package: Path = ROOT / "sparsity_lab") -> dict[str, set[str]]:
    """The packages of the instrument, and which others each one imports, in functions as well."""
    found: dict[str, set[str]] = {}
    for path in sorted(package.iterdir()):
        files = [path] if path.suffix == ".py" and path.stem != "__init__" else sorted(path.rglob("*.py"))
        if files:
            names = {name.split(".")[1] for file in files for name in imported_names(file) if name.startswith(PREFIX)}
            found[path.stem] = names - {path.stem}
    return found


def imported_names(file: Path) -> set[str]:
    """The dotted names of all modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def rows(graph: Imports) -> list[list[str]]:
    """The packages from the lowest row to the highest.

    Raises:
        graphlib.CycleError: packages import each other.
    """
    level: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        level[name] = max((level[other] + 1 for other in graph.get(name, ())), default=0)
    return [
        sorted(name for name in level if level[name] == row) for row in range(max(level.values(), default=-1) + 1)
    ]


def direct(graph: Imports) -> set[tuple[str, str]]:
    """The imports that do not follow from others."""

    def reached(name: str) -> set[str]:
        return {name}.union(*(reached(other) for other in graph[name]))

    return {
        (name, other)
        for name, others in graph.items()
        for other in others
        if not any(other in reached(third) for third in others - {other})
    }


def picture(graph: Imports) -> str:
    """The SVG text: boxes by row, the highest row on top, and arrows to what a package imports."""
    levels = rows(graph)[::-1]
    widest = max(len(names) for names in levels)
    width = widest * (BOX[0] + GAP[0]) + GAP[0]
    height = len(levels) * (BOX[1] + GAP[1]) - GAP[1] + 2 * GAP[0]
    place = {
        name: (
            width - (len(names) - column) * (BOX[0] + GAP[0]),
            GAP[0] + row * (BOX[1] + GAP[1]),
        )
        for row, names in enumerate(levels)
        for column, name in enumerate(names)
    }
    arrows = [
        f'<line marker-end="url(#tip)" x1="{place[name][0] + BOX[0] // 2}" y1="{place[name][1] + BOX[1]}" '
        f'x2="{place[other][0] + BOX[0] // 2}" y2="{place[other][1] - 2}"/>'
        for name, other in sorted(direct(graph))
    ]
    boxes = [
        f'<rect x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="7"/>' for _, (x, y) in sorted(place.items())
    ]
    names = [
        f'<text x="{x + BOX[0] // 2}" y="{y + BOX[1] // 2 + 5}">{name}</text>'
        for name, (x, y) in sorted(place.items())
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
            "<title>The packages of sparsity_lab. An arrow points to a package that is imported.</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#5b6472"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            '<g stroke="#5b6472" stroke-width="1.3">',
            *arrows,
            '</g>\n<g fill="#eef3fa" stroke="#2b5c9e">',
            *boxes,
            '</g>\n<g fill="#20242b" text-anchor="middle" font-family="sans-serif" font-size="15">',
            *names,
            "</g>\n</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(imports()), encoding="utf-8")
