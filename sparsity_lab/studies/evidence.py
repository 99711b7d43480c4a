"""What the claims and the figure of a study see."""

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Evidence:
    """What the finished runs of a study showed.

    >>> Evidence(rows).rows["arm"].unique().sort().to_list()
    ['one', 'two']

    Attributes:
        rows: evaluation rows, as ``Study.rows`` gives them: ``arm``, ``seed``, ``run``, ``condition``, the columns of
            the evaluation, and ``learned``, ``reach`` and ``censored`` of the run.
        measures: what the study's ``measure`` found, with ``arm``, ``seed`` and ``run`` in front; None if it
            measures nothing beyond the evaluation.
    """

    rows: pl.DataFrame
    measures: pl.DataFrame | None = None

    @property
    def measured(self) -> pl.DataFrame:
        """The measures, of a study that has some.

        Raises:
            ValueError: there are none.
        """
        if self.measures is None:
            raise ValueError("the study has no measures beyond the evaluation")
        return self.measures
