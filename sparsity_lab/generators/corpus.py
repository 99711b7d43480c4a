"""Text from local files, split into a training part and an evaluation part."""

import codecs
import difflib
import glob
import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.format_recognition import packed_with
from sparsity_lab.settings import SettingError, Shown, counted

END_OF_FILE = 0
"""The byte put after each file. Text does not contain it; a file that does is read unchanged."""

_EVALUATION_SHARE = 10  # one file, or one block, in so many
_LEAST_SHARE, _MOST_SHARE = 1 / 40, 1 / 3
_SMALL_BLOCK, _LARGE_BLOCK = 2**12, 2**20
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

_MOST_BYTES = 2**32

Paths = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Corpus:
    """The bytes of some files, each followed by ``END_OF_FILE``.

    A file belongs to the evaluation part if the hash of its content is 0 modulo 10, else to the training part. So no
    content is in both parts, even if files are renamed or added. With few files, this may give a part far too many or
    too few bytes (see ``split`` for the limits). Then every tenth block is for evaluation.

    Attributes:
        name: for people.
        files, num_bytes: of both parts together, ends of file not counted.
        hash: of the contents in their order, whatever the files are called and wherever they lie.
        by: ``"files"`` or ``"blocks"``: what the parts are made of.
        train, evaluation: (n,) uint8.
    """

    name: str
    files: int
    num_bytes: int
    hash: str
    by: str
    train: NDArray[np.uint8] = field(repr=False, compare=False)
    evaluation: NDArray[np.uint8] = field(repr=False, compare=False)


def read_corpus(path: Paths) -> Corpus:
    """The corpus of files, folders and patterns, read again only if a file has changed; None is the source of
    Python's standard library, without its tests and installed packages.

    Raises:
        SettingError: there is no such file, one cannot be read, or there is too little text for two parts.
    """
    return _read(path, states_of(find_files(path)))


def states_of(files: Iterable[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Each file with its size and the time of its last change, by which a changed one is known."""
    try:
        return tuple((file, (state := file.stat()).st_size, state.st_mtime_ns) for file in files)
    except OSError as error:
        raise SettingError("path", f"cannot read {error.filename}: {error.strerror}") from error


def find_files(path: Paths) -> list[Path]:
    """The files of a path, each once. The files of a folder (without hidden ones) or a pattern are in order of their
    paths. Several paths keep the given order.

    Raises:
        SettingError: there are none.
    """
    if path is None:
        return _standard_library()
    found = [file for one in ((path,) if isinstance(path, str) else path) for file in _found(one)]
    return list(dict.fromkeys(found))


@cache
def _standard_library() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    modules = [file for file in library.rglob("*.py") if not _LEFT_OUT & set(file.relative_to(library).parts)]
    return _visible(sorted(modules), library)


def _found(path: str) -> list[Path]:
    place = Path(os.path.expanduser(path))
    if path and place.is_file():
        return [place]
    if path and place.is_dir():
        return _visible(sorted(place.rglob("*")), place)
    files = [Path(name) for name in sorted(glob.glob(str(place), recursive=True)) if Path(name).is_file()]
    if not path or not files:
        expected = (
            "a pattern that matches a file"
            if glob.has_magic(path)
            else "a file, a folder with files, or a pattern of files"
        )
        raise SettingError("path", expected, path, _neighbors(place))
    return files


def _neighbors(place: Path) -> list[str]:
    """Names in the place of a missing file that are like its name."""
    try:
        names = os.listdir(place.parent)
    except OSError:
        return []
    return [str(place.parent / name) for name in difflib.get_close_matches(place.name, names, n=3)]


def _visible(files: Iterable[Path], folder: Path) -> list[Path]:
    return [
        file
        for file in files
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


@lru_cache(maxsize=8)
def _read(path: Paths, states: tuple[tuple[Path, int, int], ...]) -> Corpus:
    if (total := sum(size for _, size, _ in states)) > _MOST_BYTES:
        raise SettingError("path", f"at most {_MOST_BYTES} bytes of text", total)
    # What says that it is empty and is not, such as a file of the system's state, is no text.
    texts = [np.frombuffer(_content(file), dtype=np.uint8) for file, size, _ in states if size]
    by, train, evaluation = split(texts)
    if not evaluation:
        found = f"{counted(sum(map(len, texts)), 'byte')} in {counted(len(texts), 'file')} of {_name(path)}"
        expected = "at least 20 bytes of text, for a training and an evaluation part"
        raise SettingError("path", expected, Shown(found))
    joined = (np.concatenate([one for text in part for one in (text, _END)]) for part in (train, evaluation))
    return Corpus(_name(path), len(texts), sum(map(len, texts)), hash_of(texts), by, *joined)


def hash_of(contents: Iterable[NDArray[np.uint8]]) -> str:
    """Of the contents of files in their order."""
    of_all = hashlib.blake2b(digest_size=16)
    for content in contents:
        of_all.update(_digest(content))
    return of_all.hexdigest()


def _content(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SettingError("path", f"cannot read {file}: {error.strerror}") from error
    if name := packed_with(content):
        raise SettingError("path", f"{file} is compressed with {name}; decompress it first")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SettingError("path", f"{file} is UTF-16; convert it to UTF-8")
    return content


_END = np.array([END_OF_FILE], dtype=np.uint8)


def _name(path: Paths) -> str:
    if path is None:
        return f"the standard library of Python {platform.python_version()}"
    first, *others = (path,) if isinstance(path, str) else path
    name = Path(os.path.expanduser(first)).resolve().name
    return f"{name} and {len(others)} more" if others else name


def split(pieces: Sequence[NDArray[Any]]) -> tuple[str, list[NDArray[Any]], list[NDArray[Any]]]:
    """The training and the evaluation part of files or sequences, and what they are made of, ``"files"`` or
    ``"blocks"``.

    One piece in ten is for evaluation, by the hash of its content. If that leaves a part without its share, pieces
    are cut into equal blocks, and every tenth block is for evaluation. A block is a hundredth of all values, but at
    least 4096 values and at most a twentieth.
    """
    parts: tuple[list[NDArray[Any]], list[NDArray[Any]]] = [], []
    for piece in pieces:
        parts[int.from_bytes(_digest(piece), "little") % _EVALUATION_SHARE == 0].append(piece)
    total = sum(map(len, pieces))
    if total and _LEAST_SHARE <= sum(map(len, parts[1])) / total <= _MOST_SHARE:
        return "files", *parts
    size = max(1, min(max(total // 100, _SMALL_BLOCK), _LARGE_BLOCK, total // 20))
    blocks = [block for piece in pieces for block in np.array_split(piece, -(-len(piece) // size))]
    last = _EVALUATION_SHARE - 1
    train = [block for i, block in enumerate(blocks) if i % _EVALUATION_SHARE != last]
    return "blocks", train, blocks[last::_EVALUATION_SHARE]


def _digest(piece: NDArray[Any]) -> bytes:
    return hashlib.blake2b(piece.tobytes(), digest_size=8).digest()
