"""The input of the claims and the figure of a study."""

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Evidence:
    """The results of the finished runs of a study.

    >>> Evidence(rows).rows["arm"].unique().sort().to_list()
    ['one', 'two']

    Attributes:
        rows: evaluation rows, as ``Study.rows`` gives them: ``arm``, ``seed``, ``run``, ``condition``, the columns of
            the evaluation, and ``learned``, ``reach`` and ``censored`` of the run.
        measures: the results of the study's ``measure``, with the first columns ``arm``, ``seed`` and ``run``; None
            if it measures nothing beyond the evaluation.
    """

    rows: pl.DataFrame
    measures: pl.DataFrame | None = None

    @property
    def measured(self) -> pl.DataFrame:
        """The measures of a study that has them.

        Raises:
            ValueError: there are no measures.
        """
        if self.measures is None:
            raise ValueError("the study has no measures beyond the evaluation")
        return self.measures
