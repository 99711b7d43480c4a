"""The verdicts of a study, for reports and terminals."""

import polars as pl

from sparsity_lab.analysis import figure_svg, titled
from sparsity_lab.analysis.report.page import Section
from sparsity_lab.settings.markup import Markup, element, join, table
from sparsity_lab.studies.evidence import Evidence
from sparsity_lab.studies.files import record
from sparsity_lab.studies.page import estimate_words
from sparsity_lab.studies.study import Study


def verdict_frame(study: Study, evidence: Evidence) -> pl.DataFrame:
    """One row for each claim: ``claim``, ``verdict`` (or why there is none), ``estimate`` with its interval,
    ``seeds`` and ``e-value``, the largest of the three e-values.

    >>> from sparsity_lab.studies.files import read_found
    >>> study = load_study("tiny_study")
    >>> verdict_frame(study, read_found(study, Path("tiny_study")).evidence).columns
    ['claim', 'verdict', 'estimate', 'seeds', 'e-value']
    """
    return pl.DataFrame(
        {
            "claim": one["statement"],
            "verdict": one["cannot_tell"] or one["verdict"],
            "estimate": estimate_words(one),
            "seeds": one["seeds"],
            "e-value": max(one["e_values"]),
        }
        for one in record(study, evidence, {})["claims"]
    )


def verdict_section(study: Study, evidence: Evidence) -> Section:
    """The verdicts and the figure of the study, as a section for ``write_report(first=...)``.

    >>> from sparsity_lab.studies.files import read_found
    >>> study = load_study("tiny_study")
    >>> verdict_section(study, read_found(study, Path("tiny_study")).evidence).heading
    'What is decided'
    """
    words = record(study, evidence, {})["finding"]
    figure = Markup(figure_svg(titled(study.figure(evidence), words), words))
    shown = verdict_frame(study, evidence)
    picture = element("div", figure, class_="picture")
    parts = [element("p", study.question), picture, table(shown.columns, shown.iter_rows())]
    return Section("decided", "What is decided", join(parts))
