"""Loggers whose lines are safe to show."""

import logging

from sparsity_lab.settings.errors import one_line


def plain_logger(name: str) -> logging.Logger:
    """The logger of a module. Its lines are safe to show on a terminal, because they can quote text of an untrusted
    store.

    >>> plain_logger("sparsity_lab.example").name
    'sparsity_lab.example'
    """
    found = logging.getLogger(name)
    found.addFilter(_plain)
    return found


def _plain(record: logging.LogRecord) -> bool:
    record.msg, record.args = one_line(record.getMessage()), None
    return True
