"""Sequences of tokens from files of many forms. What was recognized is said; what could be two things is asked for.

==============  ======================================================================================
``numbers``     text of whole numbers, a sequence a line: ``1 2``, ``1,2``, ``[1, 2]``, ``1.0e+00``, ``# note``
``text``        characters of UTF-8 text, or of UTF-16 with its mark; bytes where all are ASCII
``bytes``       any file, a token a byte
``npy, npz``    an array of integers, (n,) or (N, n)
``uint16``      numbers of two bytes without a head, as nanoGPT writes; ``uint32`` of four
``jsonl``       a list, an object with a list, or one with a text, on each line
``parquet``     a column of whole numbers, one sequence, or of lists of them, or of texts
==============  ======================================================================================
"""

import codecs
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.settings import SettingError, Shown, read_whole

Format = Literal["auto", "numbers", "text", "bytes", "npy", "npz", "uint16", "uint32", "jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("numbers", "text", "bytes", "npy", "npz", "uint16", "uint32", "jsonl", "parquet")

Tokens = NDArray[np.integer[Any]]

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
}
_USUAL = ("tokens", "input_ids", "ids", "arr_0", "text")
"""Columns that are taken for the tokens, or the text, where there are several."""
_MOST_BYTES = 2**32
"""Of a file, and of an array in an archive."""
_MOST_ROWS = 2**27
"""Of a parquet file: a few kilobytes can hold millions of equal ones."""
_WIDE = 4
"""High halves of 32-bit tokens are below: a vocabulary of up to 262,144."""
_NUMBER = re.compile(r"[+-]?(\d+)(\.\d*)?([eE][+-]?\d+)?")
_HUGGING_FACE = "a tokenizer.json of the package `tokenizers` (extra `transformers`)"


@dataclass(frozen=True)
class FileTokens:
    """What a file holds.

    Attributes:
        sequences: of one dimension each, in the file's own kind of integer.
        form: how it was read, for people.
        of_text: whether the tokens are characters or bytes of a text.
    """

    sequences: list[Tokens]
    form: str
    of_text: bool = False


def read_sequences(path: Path, form: str = "auto", column: str = "", tokenizer: Path | None = None) -> FileTokens:
    """The sequences in a file.

    Args:
        form: how to read it; ``"auto"`` recognizes it.
        column: of parquet, of the objects of jsonl, or the array of an npz.
        tokenizer: a ``tokenizer.json`` that makes tokens of text.

    Raises:
        SettingError: names the file, what was expected and what came; also where it could be two things.
    """
    if form not in ("auto", *FORMATS):
        raise SettingError("--format", "a file format", form, ("auto", *FORMATS))
    content = read_whole(path, _MOST_BYTES)
    if not content:
        raise SettingError(str(path), "the file is empty")
    recognized = _recognized(path, content) if form == "auto" else form
    return _READERS[recognized](_File(path, content, column, tokenizer))


def packed_with(content: bytes) -> str | None:
    """What a file is packed with, by its first bytes; None if it is not."""
    return next((name for mark, name in _PACKED.items() if content.startswith(mark)), None)


def json_lines(path: Path) -> list[Any]:
    """The values of the lines of a file.

    Raises:
        SettingError: names the line that is no JSON.
    """
    return list(_json_lines(_File(path, read_whole(path, _MOST_BYTES), "", None)))


@dataclass(frozen=True)
class _File:
    path: Path
    content: bytes
    column: str
    tokenizer: Path | None

    def error(self, expected: str, got: str) -> SettingError:
        return SettingError(str(self.path), expected, Shown(got))

    def asks(self, got: str, *forms: str) -> SettingError:
        """The error of a file that could have several formats."""
        return SettingError(str(self.path), f"found {got}; use --format {' or '.join(forms)}")


# --- what it is


def _recognized(path: Path, content: bytes) -> Format:
    file = _File(path, content, "", None)
    if name := packed_with(content):
        raise SettingError(str(file.path), f"the file is compressed with {name}; decompress it first")
    if content.startswith(b"\x93NUMPY") or path.suffix.lower() == ".npy":
        return "npy"
    if content.startswith(b"PAR1") or path.suffix.lower() == ".parquet":
        return "parquet"
    if content.startswith(b"PK\x03\x04"):
        if path.suffix.lower() != ".npz":
            raise SettingError(str(file.path), "the file is a zip archive; unpack it first")
        return "npz"
    if path.suffix.lower() == ".bin":
        return _width(file)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return "jsonl"
    return _kind_of_text(file)


def _width(file: _File) -> Format:
    """Whether tokens of 16 or of 32 bits: of the latter, every second 16 bits are the small high halves."""
    if len(file.content) % 2:
        raise file.asks(f"an odd number of bytes, {len(file.content)}", "bytes")
    halves = np.frombuffer(file.content, dtype="<u2")
    low, high = halves[::2], halves[1::2]
    if len(file.content) % 4 or not len(high) or high.max() >= _WIDE:
        return "uint16"
    if low.max() < _WIDE:
        raise file.asks(f"only numbers below {_WIDE}, which could be tokens of either size", "uint16", "uint32")
    return "uint32"


def _kind_of_text(file: _File) -> Format:
    text = _decoded(file)
    lines = [line for line in text.splitlines() if line.strip()]
    numbers = [_numbers_in(line) for line in lines]
    others = [line for line, own in zip(lines, numbers, strict=True) if own is None]
    numeric = sum(map(bool, numbers))  # a line that is all a note is neither
    if numeric and not others:
        return "numbers"
    if numeric and numeric >= 4 * len(others):
        raise file.asks(f"lines of numbers except for {others[0].strip()[:40]!r}", "numbers", "text")
    if lines and all(line.lstrip()[:1] in "[{" for line in lines) and _is_json(lines[0]):
        return "jsonl"
    for mark, name in ((",", "comma"), ("\t", "tab"), (";", "semicolon")):
        counts = {line.count(mark) for line in lines}
        is_table = len(lines) >= 3 and len(counts) == 1 and min(counts) >= 1
        if is_table or file.path.suffix.lower() == {"comma": ".csv", "tab": ".tsv"}.get(name):
            raise file.asks(f"a table separated by {name}s (or give its tokens as .parquet or .jsonl)", "text")
    return "text"


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)


def _encoding(content: bytes) -> tuple[str, str]:
    """The encoding that a file's first bytes say, and its name for people."""
    return next(((name, words) for mark, name, words in _MARKS if content.startswith(mark)), ("utf-8", "UTF-8"))


def _decoded(file: _File) -> str:
    try:
        text = file.content.decode(_encoding(file.content)[0])
    except UnicodeError:
        raise file.asks("bytes that are not UTF-8 text", "bytes", "uint16", "uint32") from None
    if "\0" in text:
        raise file.asks("text with zero bytes", "bytes", "uint16", "uint32")
    return text


# --- readers


def _read_bytes(file: _File) -> FileTokens:
    return FileTokens([np.frombuffer(file.content, dtype=np.uint8)], "bytes", of_text=True)


def _read_text(file: _File) -> FileTokens:
    return _of_texts([_decoded(file)], _encoding(file.content)[1], file)


def _of_texts(texts: Sequence[str], encoding: str, file: _File) -> FileTokens:
    many = f"{len(texts)} texts" if len(texts) != 1 else "text"
    if file.tokenizer is not None:
        return FileTokens(_tokenized(texts, file.tokenizer), f"{many} in {encoding}, tokens of {file.tokenizer.name}")
    ascii_alone = encoding == "UTF-8" and all(text.isascii() for text in texts)
    form = f"ASCII {many}, a token a byte" if ascii_alone else f"{many} in {encoding}, a token a character"
    return FileTokens([text_tokens(text) for text in texts], form, of_text=True)


def text_tokens(text: str) -> Tokens:
    """The code point of each character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _tokenized(texts: Sequence[str], tokenizer: Path) -> list[Tokens]:
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415
    except ImportError:
        raise SettingError("--tokenizer", "the package tokenizers is not installed") from None
    if not tokenizer.is_file():
        raise SettingError("--tokenizer", _HUGGING_FACE, str(tokenizer))
    try:
        made = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the package raises nothing narrower
        raise SettingError("--tokenizer", _HUGGING_FACE, Shown(f"{tokenizer}: {error}")) from None
    return [np.array(made.encode(text).ids, dtype=np.int64) for text in texts]


def _read_numbers(file: _File) -> FileTokens:
    sequences = []
    for at, line in enumerate(_decoded(file).splitlines(), 1):
        if not line.strip():
            continue
        own = _numbers_in(line)
        if own is None:
            raise SettingError(f"{file.path}, line {at}", "whole numbers", line.strip()[:60])
        if own:
            sequences.append(_integers(own, f"{file.path}, line {at}"))
    if not sequences:
        raise file.error("whole numbers", "none")
    return FileTokens(sequences, f"{len(sequences)} lines of whole numbers")


def _numbers_in(line: str) -> list[int] | None:
    """The whole numbers of a line, with commas or brackets, up to a ``#``; None if there is anything else."""
    words = re.split(r"[\s,;]+", line.partition("#")[0].translate(_NO_BRACKETS).strip())
    numbers = []
    for word in words if words != [""] else []:
        if not (match := _NUMBER.fullmatch(word)):
            return None
        if match[2] or match[3]:
            if not (value := float(word)).is_integer():
                return None
            numbers.append(int(value))
        else:
            numbers.append(int(word))
    return numbers


_NO_BRACKETS = str.maketrans("[](){}", "      ")


def _integers(values: object, where: str) -> Tokens:
    try:
        array = np.array(values, dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        raise SettingError(where, "whole numbers below 2^63", str(values)[:60]) from None
    if array.ndim != 1:
        raise SettingError(where, "a list of whole numbers", str(values)[:60])
    return array


def _read_array(file: _File) -> FileTokens:
    try:
        array = np.load(io.BytesIO(file.content), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise file.error("an .npy array", str(error).partition("\n")[0]) from None
    return FileTokens(_rows(array, file), "array")


def _rows(array: object, file: _File) -> list[Tokens]:
    """The sequences of an array: one, or its rows."""
    whole = isinstance(array, np.ndarray) and (array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer))
    if not isinstance(array, np.ndarray) or not whole or array.ndim not in (1, 2):
        given = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise file.error("integers of shape (n,) or (N, n)", given)
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise SettingError(str(file.path), "integers below 2^63", int(array.max()))
    return list(np.atleast_2d(array.astype(np.uint8) if array.dtype == np.bool_ else array))


def _read_archive(file: _File) -> FileTokens:
    try:
        archive = np.load(io.BytesIO(file.content), allow_pickle=False)
        name = _chosen(archive.files, file, "array")
        sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.zip.infolist()}
        if sizes[name] > _MOST_BYTES:
            raise file.error(f"an array of at most {_MOST_BYTES} bytes", f"{sizes[name]}")
        return FileTokens(_rows(archive[name], file), f"array {name!r} of an archive")
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile) as error:
        if isinstance(error, SettingError):
            raise
        raise file.error("an .npz archive of arrays", str(error).partition("\n")[0]) from None


def _chosen(names: Sequence[str], file: _File, what: str) -> str:
    """The column or array that is meant: the one that was named, the only one, or the one with a usual name."""
    if file.column:
        if file.column not in names:
            raise SettingError("--column", f"an {what} of {file.path.name}", file.column, names)
        return file.column
    usual = [name for name in _USUAL if name in names]
    if len(names) == 1 or len(usual) == 1:
        return (usual or list(names))[0]
    raise SettingError("--column", f"missing; name the tokens in {file.path.name}", known=names)


def _read_uint(bits: int) -> Callable[[_File], FileTokens]:
    def read(file: _File) -> FileTokens:
        if len(file.content) % (bits // 8):
            raise file.error(f"a multiple of {bits // 8} bytes", f"{len(file.content)} bytes")
        return FileTokens([np.frombuffer(file.content, dtype=f"<u{bits // 8}")], f"numbers of {bits} bits")

    return read


def _read_json_lines(file: _File) -> FileTokens:
    values = list(_json_lines(file))
    name = ""
    if isinstance(values[0], dict):
        fitting = [key for key, value in values[0].items() if isinstance(value, list | str)]
        name = _chosen(fitting if not file.column else list(values[0]), file, "entry")
        for at, value in enumerate(values, 1):
            if not isinstance(value, dict) or name not in value:
                raise SettingError(f"{file.path}, record {at}", f"an object with {name!r}", str(value)[:60])
        values = [value[name] for value in values]
    of = f"entry {name!r} of " if name else ""
    if all(isinstance(value, str) for value in values):
        found = _of_texts(values, "JSON", file)
        return FileTokens(found.sequences, f"{of}JSON lines: {found.form}", found.of_text)
    sequences = []
    for at, value in enumerate(values, 1):
        where = f"{file.path}, record {at}"
        if not isinstance(value, list) or not all(type(one) is int for one in value):
            raise SettingError(where, "a list of whole numbers", str(value)[:60])
        sequences.append(_integers(value, where))
    return FileTokens(sequences, f"{of}{len(sequences)} JSON lines")


def _json_lines(file: _File) -> Iterator[Any]:
    empty = True
    for at, line in enumerate(_decoded(file).splitlines(), 1):
        if line.strip():
            empty = False
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SettingError(f"{file.path}, line {at}", "JSON", Shown(str(error))) from None
    if empty:
        raise file.error("JSON lines", "none")


def _read_parquet(file: _File) -> FileTokens:
    import polars as pl  # noqa: PLC0415

    try:
        schema = pl.read_parquet_schema(io.BytesIO(file.content))
        kinds = [name for name, kind in schema.items() if _holds_tokens(kind)]
        name = _chosen(list(schema) if file.column else kinds, file, "column of whole numbers, lists or texts")
        if name not in kinds:
            raise file.error("whole numbers, lists of them or texts", f"column {name!r} of {schema[name]}")
        column = pl.read_parquet(file.content, columns=[name], n_rows=_MOST_ROWS + 1)[name]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise file.error("a parquet file", str(error).partition("\n")[0]) from None
    if len(column) > _MOST_ROWS:
        raise file.error(f"at most {_MOST_ROWS} rows", "more")
    column = column.drop_nulls()
    if column.dtype == pl.String():
        found = _of_texts(column.to_list(), "UTF-8", file)
        return FileTokens(found.sequences, f"column {name!r}: {found.form}", found.of_text)
    if column.dtype.is_integer():
        return FileTokens([column.to_numpy()], f"column {name!r}")
    lists = [_integers(own.to_list(), f"{file.path}, column {name!r}, row {at}") for at, own in enumerate(column, 1)]
    return FileTokens(lists, f"column {name!r} of {len(lists)} lists")


def _holds_tokens(kind: Any) -> bool:
    inner = getattr(kind, "inner", None)
    return bool(str(kind) == "String" or kind.is_integer() or (inner is not None and inner.is_integer()))


_READERS: dict[str, Callable[[_File], FileTokens]] = {
    "numbers": _read_numbers,
    "text": _read_text,
    "bytes": _read_bytes,
    "npy": _read_array,
    "npz": _read_archive,
    "uint16": _read_uint(16),
    "uint32": _read_uint(32),
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
}
