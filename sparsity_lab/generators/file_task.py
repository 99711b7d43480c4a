"""What tasks share whose sequences are read from files."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

from sparsity_lab.generators.task import Task
from sparsity_lab.settings import SettingError, check_least


class FileTask(Task):
    """A task that reads files, which are opened when data are made, and not before.

    Attributes:
        path: a file, a folder, a pattern, or several of them; None is something that comes with Python.
        corpus_hash: of what is read; empty as typed, and filled when a run is planned. With it the path is no part of
            the id. What comes with Python has no part in it at all, so that ids are the same with each Python.
    """

    path: str | tuple[str, ...] | None
    corpus_hash: str
    certified_lengths = (12, 100)

    @property
    @abstractmethod
    def found_hash(self) -> str:
        """Of what is read now."""

    def check(self) -> None:
        if self.path == () or "" in ((self.path,) if isinstance(self.path, str) else self.path or ()):
            raise SettingError("path", "a file, a folder with files, or a pattern of files", self.path)
        if not re.fullmatch("([0-9a-f]{32})?", self.corpus_hash):
            expected = "32 hexadecimal digits, or an empty string, which is filled when the run is planned"
            raise SettingError("corpus_hash", expected, self.corpus_hash)

    def check_length(self, length: int) -> None:
        check_least(1, length=length)

    @property
    def outside_id(self) -> tuple[str, ...]:
        own = "corpus_hash" if self.path is None else "path"
        return (own,) if self.corpus_hash else ()

    @property
    def reads_files(self) -> bool:
        return self.path is not None

    @property
    def is_planned(self) -> bool:
        return bool(self.corpus_hash)

    def planned(self, lengths: Sequence[int] = ()) -> Self:
        for length in lengths:
            self.checked_length(length)
        return self if self.is_planned else self.replace(corpus_hash=self.found_hash)

    def unplanned(self) -> Self:
        return self.replace(corpus_hash="")

    def largest_position_id(self, length: int) -> int:
        # Not from the declared truth, which counts all that is read.
        return 0
