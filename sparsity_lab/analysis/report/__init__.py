"""The report of a sweep, and the page around it, which other analyses share."""

from sparsity_lab.analysis.report.page import Section, page
from sparsity_lab.analysis.report.report import write_report

__all__ = ["Section", "page", "write_report"]
