"""The table of kernel speeds in docs/kernels.md, written from what was measured:

sparsity-lab bench kernels --json > benchmarks/kernels.json
python -m sparsity_lab.benchmarks.kernel_page

``make gpu`` writes benchmarks/cuda/kernels.json, where the CUDA column is from.
"""

import json
import sys
from pathlib import Path
from typing import Any

from sparsity_lab.settings import SettingError

BEGIN = "<!-- table from benchmarks/kernels.json -->"
END = "<!-- end of the table -->"
NOT_MEASURED = "not measured"

Row = dict[str, Any]


def kernel_table(rows: list[Row], on_cuda: list[Row]) -> str:
    """Markdown: a line for each kernel and input, from the rows of ``sparsity-lab bench kernels --json``, and those
    with ``--device cuda``, which may be none. Decoding has a table of its own."""
    lengths = sorted({row["T"] for row in rows if row["pass"] == "both"})
    decoded = sorted({row["T"] for row in rows if row["pass"] == "decode"})
    longest = lengths[-1]
    costs = [
        "kernel",
        "runs",
        *(f"forward + backward, T={T}" for T in lengths),
        f"forward, T={longest}",
        f"peak memory, T={longest}",
        "CUDA bf16",
    ]
    steps = ["kernel", "runs", *(words for T in decoded for words in (f"T={T}", "ms", "SDPA ms"))]
    lines, decoding = ([head, ["---"] * 2 + ["---:"] * (len(head) - 2)] for head in (costs, steps))
    for kernel, runs, name in dict.fromkeys((row["kernel"], row["runs"], row["input"]) for row in rows):
        same = [row for row in rows if (row["kernel"], row["runs"], row["input"]) == (kernel, runs, name)]
        found = {(row["pass"], row["T"]): row for row in same}
        both = [found.get(("both", T)) for T in lengths]
        decode = [found.get(("decode", T)) for T in decoded]
        title = [f"`{kernel}`{'' if name == 'random' else f' ({name} input)'}", runs]
        lines.append(
            [
                *title,
                *(_ratio(row, "over SDPA") for row in both),
                _ratio(found.get(("forward", longest)), "over SDPA"),
                _ratio(both[-1], "peak over SDPA"),
                _cuda_ratios(kernel, name, [] if runs == "native" else on_cuda),
            ]
        )
        if any(decode):
            decoding.append([*title, *(words for row in decode for words in _step(row))])
    where = ", ".join(dict.fromkeys(row["where"] for row in rows))
    caption = f"Ratios over `scaled_dot_product_attention(is_causal=True)` in the same run; B=1, H=4, D=64; {where}."
    step = ["A decoding step, as a ratio and in milliseconds:", _markdown(decoding)] if len(decoding) > 2 else []
    return "\n\n".join([caption, _markdown(lines), *step, *_retained(rows)])


def _cuda_ratios(kernel: str, name: str, rows: list[Row]) -> str:
    """Of one kernel and input: by head size, and by length in order."""
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: int(row["T"])):
        given, _, head_size = row["input"].partition(", ")
        if (row["kernel"], given) == (kernel, name):
            found.setdefault(head_size, []).append(_ratio(row, "over SDPA"))
    return "; ".join(f"{', '.join(ratios)} ({size})" for size, ratios in sorted(found.items())) or NOT_MEASURED


def _retained(rows: list[Row]) -> list[str]:
    """A caption and a table of what mechanisms that choose blocks retain, if there are any."""
    chosen = [row for row in rows if row.get("retained") is not None]
    if not chosen:
        return []
    header = ["kernel", "input", "T", "retained mass", "over oracle blocks"]
    lines = [
        [f"`{row['kernel']}`", row["input"], str(row["T"]), _ratio(row, "retained"), _ratio(row, "over oracle", 3)]
        for row in chosen
    ]
    return ["Retained share of the dense attention mass:", _markdown([header, ["---"] * 2 + ["---:"] * 3, *lines])]


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _step(row: Row | None) -> list[str]:
    """Ratio and time of a decoding step, and SDPA's time if it was measured."""
    times = [None, None] if row is None else [row["ms"], row.get("SDPA ms")]
    return [_ratio(row, "over SDPA"), *("–" if ms is None else f"{ms:.2g}" for ms in times)]


def _ratio(row: Row | None, column: str, digits: int = 2) -> str:
    if row is None or row[column] is None:
        return "–"
    return f"{row[column]:.{digits}g}" if row[column] < 1 else f"{row[column]:.2f}"


def with_table(page: str, rows: list[Row], on_cuda: list[Row]) -> str:
    """The page with the table of these rows between its marks.

    Raises:
        SettingError: the page has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SettingError("page", f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{kernel_table(rows, on_cuda)}\n{END}{after}"


def measured_rows(folder: Path) -> tuple[list[Row], list[Row]]:
    """What was measured of kernels on a CPU, and on CUDA, which is nothing where no device was there.

    Args:
        folder: the benchmarks'.
    """
    files = folder / "kernels.json", folder / "cuda" / "kernels.json"
    on_cpu, on_cuda = (
        json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else [] for file in files
    )
    return on_cpu, on_cuda


def write_page(folder: Path, page: Path) -> None:
    """Put the table of what was measured into a page."""
    page.write_text(with_table(page.read_text(encoding="utf-8"), *measured_rows(folder)), encoding="utf-8")


if __name__ == "__main__":
    write_page(*map(Path, sys.argv[1:] or ("benchmarks", "docs/kernels.md")))
