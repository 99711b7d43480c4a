"""What a terminal shows of a benchmark."""

import polars as pl

_NAMES = {"both": "forward + backward"}


def tables(frame: pl.DataFrame) -> tuple[dict[str, pl.DataFrame], str]:
    """Tables by title, and a line of what is the same in all rows, empty where nothing is.

    A benchmark of passes at several lengths has too many rows for one table. It gives a small table per pass, with a
    row for each kernel and a column of ratios for each length.
    """
    common = [column.name for column in frame if len(frame) > 1 and column.n_unique() == 1]
    line = "; ".join(f"{name} {frame[name][0]}" for name in common)
    if not {"pass", "T", "over SDPA"} <= set(frame.columns):
        return {"": frame.drop(common)}, line
    found = {}
    for (name,), rows in frame.group_by("pass", maintain_order=True):
        longest = max(rows["T"])
        peak = f", and peak memory over its at T={longest}" if rows["peak over SDPA"].is_not_null().any() else ""
        found[f"{_NAMES.get(str(name), name)}: time over SDPA by T; ms{peak}"] = _by_length(rows)
    if "retained" in frame.columns and frame["retained"].is_not_null().any():
        chosen = frame.filter(pl.col("retained").is_not_null())
        names = [_short(kernel, frame) for kernel in chosen["kernel"]]
        title = "retained: share of dense attention's mass in the kept blocks, and over that of the best ones"
        found[title] = chosen.select(pl.Series("kernel", names), "input", "T", "retained", "over oracle")
    return found, line


def _by_length(rows: pl.DataFrame) -> pl.DataFrame:
    """Of one pass: a row for each kernel and input."""
    lengths = sorted(rows["T"].unique())
    lines = []
    for (kernel, runs, given), part in rows.group_by("kernel", "runs", "input", maintain_order=True):
        ratios = dict(part.select("T", "over SDPA").iter_rows())
        last = part.filter(pl.col("T") == part["T"].max()).row(0, named=True)
        lines.append(
            {"kernel": _short(str(kernel), rows) + (f", {given}" if given != "random" else ""), "runs": runs}
            | {str(length): ratios.get(length) for length in lengths}
            | {"ms": last["ms"], "peak": last["peak over SDPA"]}
        )
    table = pl.DataFrame(lines, infer_schema_length=None)
    return table.drop("peak") if table["peak"].is_null().all() else table


def _short(kernel: str, rows: pl.DataFrame) -> str:
    """The kind alone where one instance of it takes part."""
    kind = kernel.partition("(")[0]
    others = {other for other in rows["kernel"].unique() if other.partition("(")[0] == kind}
    return kind if len(others) == 1 else kernel.removesuffix("()")
