"""Read sequences of tokens from files of many formats. An ambiguous format is an error that asks the user.

==============  ======================================================================================
``numbers``     text with integers, one sequence per line: ``1 2``, ``1,2``, ``[1, 2]``, ``1.0e+00``, ``# note``; if
                each line has one number, an empty line ends a sequence
``text``        characters of UTF-8 text, or of UTF-16 or UTF-32 with a byte order mark; bytes if all are ASCII
``bytes``       any file, one token per byte
``npy, npz``    an array of integers, (n,) or (N, n)
``uint16``      two-byte numbers without a header, as nanoGPT writes; also ``int16``, ``uint32``, ``int32``, ``int64``
``llm.c``       two-byte or four-byte numbers after the header of 1,024 bytes that llm.c writes
``jsonl``       a list, an object with a list, or an object with a text on each line; texts of numbers are lists
``json``        a list of these, or one of them
``parquet``     a column of integers (one sequence), of lists of integers, or of texts
==============  ======================================================================================
"""

import io
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.format_recognition import (
    LLM_C_HEAD,
    Format,
    TokenSource,
    numbers_in,
    recognized,
    tokens_of_llm_c,
)
from sparsity_lab.settings import SettingError, Shown, counted, read_whole

FORMATS: tuple[Format, ...] = get_args(Format)

Tokens = NDArray[np.integer[Any]]

_USUAL = ("tokens", "input_ids", "ids", "arr_0", "text")
"""Names of the column of tokens or text, if there are several columns."""
_MOST_BYTES = 2**32
"""Of a file, and of an array in an archive."""
_MOST_ROWS = 2**27
"""The most rows of a parquet file: a few kilobytes can hold millions of equal rows."""
_HUGGING_FACE = "a tokenizer.json of the package `tokenizers` (extra `transformers`)"
_DAMAGE = (
    *(ValueError, TypeError, SyntaxError, EOFError, OSError, MemoryError, RuntimeError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""Errors that numpy and its archives raise for a file with another format. (Encryption is a ``RuntimeError``.)"""


@dataclass(frozen=True)
class FileTokens:
    """The contents of a file.

    Attributes:
        sequences: one-dimensional arrays, with the file's integer type.
        form: a readable note on how it was read.
        of_text: whether the tokens are characters or bytes of a text.
    """

    sequences: list[Tokens]
    form: str
    of_text: bool = False


def read_sequences(path: Path, form: str = "auto", column: str = "", tokenizer: Path | None = None) -> FileTokens:
    """The sequences in a file.

    Args:
        form: how to read it; ``"auto"`` recognizes it.
        column: column of a parquet file, key of the objects of a jsonl, or array of an npz.
        tokenizer: a ``tokenizer.json`` that turns text into tokens.

    Raises:
        SettingError: the file cannot be read, or its format is ambiguous. The message names the file, what was
            expected and what was found.
    """
    if form not in FORMATS:
        raise SettingError("--format", "a file format", form, FORMATS)
    content = read_whole(path, _MOST_BYTES)
    if not content:
        raise SettingError(str(path), "the file is empty")
    file = TokenSource(path, content, column, tokenizer)
    return _READERS[recognized(file) if form == "auto" else form](file)


def json_lines(path: Path) -> list[Any]:
    """The values of the lines of a file.

    Raises:
        SettingError: a line is not JSON.
    """
    return _values_of_lines(TokenSource(path, read_whole(path, _MOST_BYTES)))


def _read_bytes(file: TokenSource) -> FileTokens:
    return FileTokens([np.frombuffer(file.content, dtype=np.uint8)], "bytes", of_text=True)


def _read_text(file: TokenSource) -> FileTokens:
    return _of_texts([file.text], file.encoding[1], file)


def _of_texts(texts: Sequence[str], encoding: str, file: TokenSource) -> FileTokens:
    ascii_alone = file.tokenizer is None and encoding == "UTF-8" and all(text.isascii() for text in texts)
    kind = "ASCII text" if ascii_alone else "text"
    many = counted(len(texts), kind) if len(texts) != 1 else kind
    if file.tokenizer is not None:
        return FileTokens(_tokenized(texts, file.tokenizer), f"{many} in {encoding}, tokens of {file.tokenizer.name}")
    form = f"{many}, a token a byte" if ascii_alone else f"{many} in {encoding}, a token a character"
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


def _read_numbers(file: TokenSource) -> FileTokens:
    rows, blocks = list[list[int]](), [list[int]()]
    for at, line in enumerate(file.text.splitlines(), 1):
        own = numbers_in(line)
        if own is None:
            raise SettingError(f"{file.path}, line {at}", "whole numbers", line.strip()[:60])
        rows += [own] if own else []
        blocks[-1].extend(own)
        if not line.strip() and blocks[-1]:
            blocks.append([])
    if not rows:
        raise file.error("whole numbers", "none")
    if len(rows) > 1 and max(map(len, rows)) == 1:
        columns: list[Tokens] = [np.array(own, dtype=np.int64) for own in blocks if own]
        return FileTokens(columns, f"{counted(len(columns), 'sequence')} of whole numbers, one a line")
    form = f"{counted(len(rows), 'line')} of whole numbers"
    return FileTokens([np.array(own, dtype=np.int64) for own in rows], form)


def _integers(values: object, where: str) -> Tokens:
    try:
        array = np.array(values, dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        raise SettingError(where, "whole numbers below 2^63", str(values)[:60]) from None
    if array.ndim != 1:
        raise SettingError(where, "a list of whole numbers", str(values)[:60])
    return array


def _read_array(file: TokenSource) -> FileTokens:
    try:
        array = np.load(io.BytesIO(file.content), allow_pickle=False)
    except _DAMAGE as error:
        raise file.error("an .npy array", str(error).partition("\n")[0]) from None
    return FileTokens(_rows(array, file), "array")


def _rows(array: object, file: TokenSource) -> list[Tokens]:
    """The sequences of an array: itself, or its rows."""
    whole = isinstance(array, np.ndarray) and (array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer))
    if not isinstance(array, np.ndarray) or not whole or array.ndim not in (1, 2):
        given = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise file.error("integers of shape (n,) or (N, n)", given)
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise SettingError(str(file.path), "integers below 2^63", int(array.max()))
    return list(np.atleast_2d(array.astype(np.uint8) if array.dtype == np.bool_ else array))


def _read_archive(file: TokenSource) -> FileTokens:
    try:
        archive = np.load(io.BytesIO(file.content), allow_pickle=False)
        name = _chosen(archive.files, file, "an array")
        sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.zip.infolist()}
        if sizes[name] > _MOST_BYTES:
            raise file.error(f"an array of at most {_MOST_BYTES} bytes", f"{sizes[name]}")
        return FileTokens(_rows(archive[name], file), f"array {name!r} of an archive")
    except _DAMAGE as error:
        if isinstance(error, SettingError):
            raise
        raise file.error("an .npz archive of arrays", str(error).partition("\n")[0]) from None


def _chosen(names: Sequence[str], file: TokenSource, what: str) -> str:
    """The column or array to read: the named one, the only one, or the one with a usual name."""
    if file.column:
        if file.column not in names:
            raise SettingError("--column", f"{what} of {file.path.name}", file.column, names)
        return file.column
    usual = [name for name in _USUAL if name in names]
    if not names:
        raise file.error(f"{what} with tokens", "none")
    if len(names) == 1 or len(usual) == 1:
        return (usual or list(names))[0]
    raise SettingError("--column", f"missing; name the tokens in {file.path.name}", known=names)


def _read_numbers_of(kind: str, file: TokenSource, head: int = 0) -> FileTokens:
    content, width = file.content[head:], np.dtype(kind).itemsize
    if len(content) % width:
        raise file.error(f"a multiple of {width} bytes", counted(len(content), "byte"))
    tokens = np.frombuffer(content, dtype=np.dtype(kind).newbyteorder("<"))
    return FileTokens([tokens], f"numbers of {8 * width} bits{' after the head of llm.c' * bool(head)}")


def _read_llm_c(file: TokenSource) -> FileTokens:
    count, size = tokens_of_llm_c(file.content), len(file.content) - LLM_C_HEAD
    if count is None or count < 1 or size not in (2 * count, 4 * count):
        said = "no such head" if count is None else f"{count} in the head and {counted(size, 'byte')} after it"
        raise file.error("the head that llm.c writes, and tokens of 2 or 4 bytes", said)
    return _read_numbers_of("uint16" if size == 2 * count else "uint32", file, LLM_C_HEAD)


def _read_json_lines(file: TokenSource) -> FileTokens:
    return _of_records(_values_of_lines(file), "JSON line", file)


def _read_json(file: TokenSource) -> FileTokens:
    try:
        value = json.loads(file.text)
    except (ValueError, RecursionError) as error:
        raise SettingError(str(file.path), "JSON", Shown(str(error))) from None
    if isinstance(value, dict):
        name = _chosen([key for key, own in value.items() if isinstance(own, list | str)], file, "an entry")
        found = _read_records(value[name], "JSON list", file)
        return FileTokens(found.sequences, f"entry {name!r} of JSON: {found.form}", found.of_text)
    return _read_records(value, "JSON list", file)


def _read_records(value: Any, what: str, file: TokenSource) -> FileTokens:
    """A list of records, or one record."""
    many = isinstance(value, list) and any(isinstance(one, list | dict | str) for one in value)
    return _of_records(value if many else [value], what, file)


def _of_records(values: list[Any], what: str, file: TokenSource) -> FileTokens:
    """Read lists of integers, texts, or objects that contain one of these."""
    name = ""
    if isinstance(values[0], dict):
        fitting = [key for key, value in values[0].items() if isinstance(value, list | str)]
        name = _chosen(fitting if not file.column else list(values[0]), file, "an entry")
        for at, value in enumerate(values, 1):
            if not isinstance(value, dict) or name not in value:
                raise SettingError(f"{file.path}, record {at}", f"an object with {name!r}", str(value)[:60])
        values = [value[name] for value in values]
    of = f"entry {name!r} of " if name else ""
    if isinstance(values[0], str):
        for at, value in enumerate(values, 1):
            if not isinstance(value, str):
                raise SettingError(f"{file.path}, record {at}", "a text, as record 1 is", str(value)[:60])
        found = _of_column(values, "JSON", file)
        return FileTokens(found.sequences, f"{of}{counted(len(values), what)}: {found.form}", found.of_text)
    sequences = []
    for at, value in enumerate(values, 1):
        where = f"{file.path}, record {at}"
        if not isinstance(value, list) or not all(type(one) is int for one in value):
            raise SettingError(where, "a list of whole numbers", str(value)[:60])
        sequences.append(_integers(value, where))
    return FileTokens(sequences, f"{of}{counted(len(sequences), what)}")


def _of_column(texts: Sequence[str], encoding: str, file: TokenSource) -> FileTokens:
    """Read texts. If every text has several numbers and nothing else, they are read as lists of numbers."""
    rows = [numbers_in(text) for text in texts] if file.tokenizer is None else []
    if rows and all(row is not None and len(row) > 1 for row in rows):
        return FileTokens([np.array(row, dtype=np.int64) for row in rows], f"{counted(len(rows), 'text')} of numbers")
    return _of_texts(texts, encoding, file)


def _values_of_lines(file: TokenSource) -> list[Any]:
    values = []
    for at, line in enumerate(file.text.split("\n"), 1):  # a JSON text may hold what else ends a line
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise SettingError(f"{file.path}, line {at}", "JSON", Shown(str(error))) from None
    if not values:
        raise file.error("JSON lines", "none")
    return values


def _read_parquet(file: TokenSource) -> FileTokens:
    import polars as pl  # noqa: PLC0415

    try:
        schema = pl.read_parquet_schema(io.BytesIO(file.content))
        kinds = [name for name, kind in schema.items() if _holds_tokens(kind)]
        name = _chosen(list(schema) if file.column else kinds, file, "a column of whole numbers, lists or texts")
        if name not in kinds:
            raise file.error("whole numbers, lists of them or texts", f"column {name!r} of {schema[name]}")
        column = pl.read_parquet(file.content, columns=[name], n_rows=_MOST_ROWS + 1)[name]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise file.error("a parquet file", str(error).partition("\n")[0]) from None
    if len(column) > _MOST_ROWS:
        raise file.error(f"at most {_MOST_ROWS} rows", "more")
    if column.null_count():
        null = Shown(f"null in row {(column.is_null().arg_max() or 0) + 1}")
        raise SettingError(f"{file.path}, column {name!r}", "a value in every row", null)
    if column.dtype == pl.String():
        found = _of_column(column.to_list(), "UTF-8", file)
        return FileTokens(found.sequences, f"column {name!r}: {found.form}", found.of_text)
    if column.dtype.is_integer():
        return FileTokens(_rows(column.to_numpy(), file), f"column {name!r}")
    lists = [_integers(own.to_list(), f"{file.path}, column {name!r}, row {at}") for at, own in enumerate(column, 1)]
    return FileTokens(lists, f"column {name!r} of {counted(len(lists), 'list')}")


def _holds_tokens(kind: Any) -> bool:
    inner = getattr(kind, "inner", None)
    return bool(str(kind) == "String" or kind.is_integer() or (inner is not None and inner.is_integer()))


_READERS: dict[str, Callable[[TokenSource], FileTokens]] = {
    "numbers": _read_numbers,
    "text": _read_text,
    "bytes": _read_bytes,
    "npy": _read_array,
    "npz": _read_archive,
    **{kind: partial(_read_numbers_of, kind) for kind in ("int16", "uint16", "int32", "uint32", "int64")},
    "llm.c": _read_llm_c,
    "json": _read_json,
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
}
