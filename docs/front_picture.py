"""Draw docs/images/front.svg, the picture of the README, from the frames of a study: ``make pictures``."""

from pathlib import Path

import polars as pl

from sparsity_lab.analysis import figure_svg, looks_of, styled, titled
from sparsity_lab.studies import draw_by_length, panels
from sparsity_lab.studies.files import standalone

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "front.svg"
SHOWN = {1: "1 relevant token", 2: "2 relevant tokens", 4: "4 relevant tokens"}


def picture() -> str:
    """Curves of three numbers of relevant tokens, under how far each keeps half of its accuracy."""
    rows = pl.read_parquet(ROOT / "experiments" / "k_locality" / "rows.parquet")
    rows = rows.filter(pl.col("arm") == "token marking, anywhere", pl.col("learned"))
    curves = {name: rows.filter(condition=f"k={k}") for k, name in SHOWN.items()}
    with styled():
        figure, (ax,) = panels(1, width=6.6, height=3.3)
        draw_by_length(ax, curves, looks_of(list(curves)), words="accuracy\n(0 = chance, 1 = optimum)")
        ax.set_xlabel("tokens in the tested sequence (log scale)")
    words = finding(curves, int(rows.filter("trained")["length"].max()))  # type: ignore[arg-type]
    return standalone(figure_svg(titled(figure, words), words))


def finding(curves: dict[str, pl.DataFrame], trained: int) -> str:
    """Up to which length the median of each stays at one half or more: at least the largest that was tested, where
    it never falls below."""
    each = []
    for name, rows in curves.items():
        medians = rows.group_by("length").agg(pl.col("normalized_accuracy").median()).sort("length")
        short = medians.filter(pl.col("normalized_accuracy") < 0.5)["length"].min()
        kept = medians if short is None else medians.filter(pl.col("length") < short)
        at_least = "at least " if short is None else ""
        each.append(f"to {at_least}{kept['length'].max()} with {name if not each else name.partition(' ')[0]}")
    return f"Trained on up to {trained} tokens, models keep half of their accuracy {', '.join(each)}"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
