"""``make size``: code lines of the package by folder, without blanks, comments and docstrings.

Benchmarks are not counted. The first column has the files that existed at the end of issue 19, also under a new name;
the second has what was added since. Templates, scripts and styles of pages are counted by lines, next to them.
"""

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIRST_HALF = "3015d43"
LIMIT_FIRST_HALF, LIMIT = 15_500, 22_000

_NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def code_lines(text: str) -> int:
    """The number of lines that hold code."""
    docstrings = set[int]()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                docstrings |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def added_since(commit: str) -> set[str]:
    """The files that have been added since a commit, without those that were renamed."""
    command = ["git", "-C", str(ROOT), "diff", "-M40", "--diff-filter=A", "--name-only", commit, "--", "sparsity_lab"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def main() -> None:
    new = added_since(FIRST_HALF)
    before, since, pages = Counter[str](), Counter[str](), Counter[str]()
    for file in sorted((ROOT / "sparsity_lab").rglob("*")):
        name = file.relative_to(ROOT)
        folder = name.parts[1] if len(name.parts) > 2 else "."
        if folder == "benchmarks":
            continue
        if file.suffix == ".py":
            (since if str(name) in new else before)[folder] += code_lines(file.read_text(encoding="utf-8"))
        elif file.suffix in (".html", ".js", ".css", ".cpp"):
            pages[folder] += file.read_text(encoding="utf-8").count("\n")
    folders = sorted({*before, *since}, key=lambda folder: -before[folder] - since[folder])
    rows = [
        (folder, before[folder], since[folder], before[folder] + since[folder], pages[folder]) for folder in folders
    ]
    rows.append(("sum", before.total(), since.total(), before.total() + since.total(), pages.total()))
    lines = [f"{'folder':<12}{'first half':>12}{'since':>8}{'together':>10}{'pages':>8}"]
    lines += ["{:<12}{:>12,}{:>8,}{:>10,}{:>8,}".format(*row) for row in rows]
    lines.append(f"{'at most':<12}{LIMIT_FIRST_HALF:>12,}{'':>8}{LIMIT:>10,}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
