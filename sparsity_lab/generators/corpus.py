"""Text from a local folder, split by file into a training part and an evaluation part."""

import hashlib
import os
import platform
import sysconfig
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.settings import SettingError

__all__ = ["END_OF_FILE", "Corpus", "read_corpus"]

END_OF_FILE = 0
"""The byte put after each file; text has none, and a file that does is read as it is."""

_EVALUATION_SHARE = 10  # one file in so many
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """The bytes of all files, in order of their paths, each followed by ``END_OF_FILE``.

    A file belongs to the evaluation part if the hash of its content is 0 modulo 10, else to the training part: so no
    content is in both, whatever files are called or added.

    Attributes:
        name: for people.
        files, num_bytes: of both parts together, ends of file not counted.
        hash: of all paths and contents.
        train, evaluation: (n,) uint8.
    """

    name: str
    files: int
    num_bytes: int
    hash: str
    train: NDArray[np.uint8] = field(repr=False, compare=False)
    evaluation: NDArray[np.uint8] = field(repr=False, compare=False)


@lru_cache(maxsize=8)
def read_corpus(path: str | None) -> Corpus:
    """The corpus of a folder, read once in a process; None is the source of Python's standard library, without its
    tests and installed packages.

    Raises:
        SettingError: there is no such folder, a file cannot be read, or one of the two parts lacks text.
    """
    folder = Path(os.path.expanduser(sysconfig.get_path("stdlib") if path is None else path))
    if path == "" or not folder.is_dir():
        raise SettingError("path", "a folder with text", path)
    of_all = hashlib.blake2b(digest_size=16)
    parts: tuple[list[bytes], list[bytes]] = [], []
    files = size = 0
    for file in _files(folder, standard_library=path is None):
        try:
            text = file.read_bytes()
        except OSError as error:
            raise SettingError("path", "a folder whose files can be read", f"{file} ({error.strerror})") from error
        if not text:
            continue
        digest = hashlib.blake2b(text, digest_size=8).digest()
        relative = os.fsencode(file.relative_to(folder).as_posix())
        of_all.update(len(relative).to_bytes(8, "little") + relative + digest)
        parts[int.from_bytes(digest, "little") % _EVALUATION_SHARE == 0].append(text + bytes([END_OF_FILE]))
        files, size = files + 1, size + len(text)
    for part, texts in zip(("training", "evaluation"), parts, strict=True):
        if not texts:
            expected = f"a folder with files for the {part} part (one file in ten is for evaluation, by its hash)"
            raise SettingError("path", expected, f"{folder} ({files} files)")
    train, evaluation = (np.frombuffer(b"".join(texts), dtype=np.uint8) for texts in parts)
    name = f"the standard library of Python {platform.python_version()}" if path is None else folder.resolve().name
    return Corpus(name, files, size, of_all.hexdigest(), train, evaluation)


def _files(folder: Path, standard_library: bool) -> list[Path]:
    """Files below the folder in order of path: hidden ones are left out, and of the library all but its modules."""
    found = []
    for file in sorted(folder.rglob("*.py" if standard_library else "*")):
        inside = file.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in inside)
        if file.is_file() and not hidden and not (standard_library and _LEFT_OUT & set(inside)):
            found.append(file)
    return found
