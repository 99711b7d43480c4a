"""``MapView``: the weights of some heads over one sequence, and what they mean for its sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sparsity_lab.generators.token_view import TokenView

Head = tuple[int, int]
"""Layer and head."""


@dataclass(frozen=True, eq=False)
class MapView:
    """One sequence read by one model.

    Attributes:
        arm, length: whose, and how long.
        name: both in words, as in "at length 24 (trained)".
        learned: what is to be said of a run that did not learn; else "".
        tokens: of the sequence.
        rows: positions of the queries that are shown, ascending.
        sources: of each scored row that is shown, the positions that enter the rule.
        weights: (R, T) for each layer and head: shares of a row's absolute weight, with the sign of the weight; NaN
            where the row may not see the key.
    """

    arm: str
    length: int
    name: str
    learned: str
    tokens: tuple[TokenView, ...]
    rows: tuple[int, ...]
    sources: Mapping[int, tuple[int, ...]]
    weights: Mapping[Head, NDArray[np.float64]]

    @property
    def heads(self) -> list[Head]:
        """Layer and head of each map, ascending."""
        return sorted(self.weights)

    @property
    def layers(self) -> list[int]:
        """The layers that are shown, ascending."""
        return sorted({layer for layer, _ in self.weights})

    def of_heads(self, heads: Sequence[Head]) -> "MapView":
        """The same view with these heads alone."""
        return replace(self, weights={head: self.weights[head] for head in heads})

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(index of the row among those shown, key) of every source of a scored row."""
        return [(index, key) for index, row in enumerate(self.rows) for key in self.sources.get(row, ())]

    def source_mass(self, layer: int, head: int) -> float | None:
        """The mean share of the scored rows shown that is on their sources; None without sources."""
        weights = np.abs(self.weights[layer, head])
        masses = [
            float(weights[index, list(own)].sum())
            for index, row in enumerate(self.rows)
            if (own := self.sources.get(row, ()))
        ]
        return float(np.mean(masses)) if masses else None

    @property
    def uniform(self) -> float | None:
        """What uniform attention would put on the sources: the mean of k / n over the same rows."""
        shares = [len(own) / (row + 1) for row in self.rows if (own := self.sources.get(row, ()))]
        return float(np.mean(shares)) if shares else None

    def interest(self, layer: int, head: int) -> float:
        """How much there is to see: the mass on the sources, or else the mean largest share of a row."""
        mass = self.source_mass(layer, head)
        return float(np.nanmax(np.abs(self.weights[layer, head]), axis=1).mean()) if mass is None else mass

    def frame(self) -> pl.DataFrame:
        """One row per cell that may be seen; see ``AttentionMap.frame``."""
        parts = []
        sources = set(self.cells)
        names = [token.name for token in self.tokens]
        for (layer, head), weights in self.weights.items():
            index, key = np.nonzero(~np.isnan(weights))
            row = np.array(self.rows)[index]
            parts.append(
                pl.DataFrame(
                    {
                        "row": row,
                        "key": key,
                        "query": [names[place] for place in row],
                        "token": [names[place] for place in key],
                        "share": weights[index, key],
                        "distance": row - key,
                        "source": [cell in sources for cell in zip(index.tolist(), key.tolist(), strict=True)],
                    }
                ).select(
                    pl.lit(self.arm).alias("arm"),
                    pl.lit(self.length, pl.Int64).alias("length"),
                    pl.lit(layer, pl.Int64).alias("layer"),
                    pl.lit(head, pl.Int64).alias("head"),
                    pl.all(),
                )
            )
        return pl.concat(parts)
