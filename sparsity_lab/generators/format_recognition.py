"""Recognize the format of a token file by its content. If two formats are possible, ask the user for it."""

import codecs
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparsity_lab.settings import SettingError, Shown

Format = Literal[
    "auto",
    "numbers",
    "text",
    "bytes",
    "npy",
    "npz",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "llm.c",
    "json",
    "jsonl",
    "parquet",
]

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf": "7z",
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_BINARY = ("bytes", "uint16", "uint32", "int64")
_LARGEST_ID = 2**19
"""The largest ID of a vocabulary. Pairs of numbers of half the width, read as one, are hardly ever all below it."""
_FEWEST = 64
"""The least number of tokens that shows their width."""
_SAMPLE = 2**20
_LEAST_HALF, _OCTAVES_OF_HALF = 2**11, 8 * 2**10
"""For 16-bit floats read as integers: the smallest one, and the range of nearly all of them."""
_LLM_C = (20240520, 20240801)
LLM_C_HEAD = 1024
"""Bytes: 256 numbers of 32 bits, the first one of ``_LLM_C``, the third the number of tokens."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,19}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?")
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3}){1,4}")
_BETWEEN = re.compile(r"[^\w.,'\"+%-]+")
_LIKE_A_NUMBER = re.compile(
    r"[+-]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|[0-9][0-9_.,']*([eE][+-]?[0-9]+)?%?|\.[0-9]+|nan|inf)"
    r"|([0-9a-fA-F]{2})+"
)


@dataclass(frozen=True)
class TokenSource:
    """The content of a file, and the part of it to read.

    Attributes:
        column: column of a parquet file, key of JSON objects, or array of an npz; empty if not given.
        tokenizer: a ``tokenizer.json`` that turns text into tokens.
    """

    path: Path
    content: bytes
    column: str = ""
    tokenizer: Path | None = None

    def error(self, expected: str, got: str) -> SettingError:
        return SettingError(str(self.path), expected, Shown(got))

    def asks(self, got: str, *forms: str) -> SettingError:
        """The error of a file that could have several formats."""
        return SettingError(str(self.path), f"found {got}; use --format {' or '.join(forms)}")

    @property
    def encoding(self) -> tuple[str, str]:
        """The encoding that the first bytes declare, and its readable name."""
        found = ((name, words) for mark, name, words in _MARKS if self.content.startswith(mark))
        return next(found, ("utf-8", "UTF-8"))

    @property
    def text(self) -> str:
        try:
            text = self.content.decode(self.encoding[0])
        except UnicodeError:
            raise self.asks("bytes that are not UTF-8 text", *_BINARY) from None
        if "\0" in text:
            raise self.asks("text with zero bytes", *_BINARY)
        return text


def packed_with(content: bytes) -> str | None:
    """The compression format of a file by its first bytes; None if it is not compressed."""
    return next((name for mark, name in _PACKED.items() if content.startswith(mark)), None)


def recognized(file: TokenSource) -> Format:
    """The format of a file.

    Raises:
        SettingError: the file is compressed, has no tokens, or could have several formats.
    """
    content, suffix = file.content, file.path.suffix.lower()
    if name := packed_with(content):
        raise SettingError(str(file.path), f"the file is compressed with {name}; decompress it first")
    if content.startswith(b"\x93NUMPY") or suffix == ".npy":
        return "npy"
    if content.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    if content.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        if suffix != ".npz":
            raise SettingError(str(file.path), "the file is a zip archive; unpack it first")
        return "npz"
    if suffix == ".bin":
        return _kind_of_numbers(file)
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    return _kind_of_text(file)


# --- numbers without a name of their kind


def _kind_of_numbers(file: TokenSource) -> Format:
    """The widest integer type for which all numbers are below ``_LARGEST_ID``, unless another type is possible."""
    content = file.content
    if tokens_of_llm_c(content) is not None:
        return "llm.c"
    if _is_text(content[:_SAMPLE]):
        raise file.asks("text", "text", *_BINARY[:2])
    if len(content) % 2:
        raise file.asks(f"an odd number of bytes, {len(content)}", "bytes")
    if any(_could_be_real(content[:_SAMPLE], kind) for kind in ("<f4", "<f8")):
        raise file.asks("what could be floating-point numbers", *_BINARY[1:])
    fitting: list[Format] = [kind for kind in ("int64", "int32") if _could_be_ids(content, kind)]
    if fitting and 8 * len(content) < _FEWEST * int(fitting[0][-2:]):
        raise file.asks(f"only {len(content)} bytes, which could be numbers of several sizes", "uint16", *fitting)
    if fitting:
        return "int64" if "int64" in fitting else "int32" if np.frombuffer(content, "<i4").min() < 0 else "uint32"
    signed = np.frombuffer(content, dtype="<i2")
    if signed.min() < 0 and np.isin(signed[signed < 0], (-1, -100)).all():
        raise file.asks(f"numbers of 16 bits of which one is {signed.min()} with a sign", "int16", "uint16")
    if _are_alike(content[:_SAMPLE]):
        raise file.asks("numbers of 8 or of 16 bits", "bytes", "uint16")
    if _could_be_half(content[:_SAMPLE]):
        raise file.asks("what could be floating-point numbers of 16 bits", "uint16")
    return "uint16"


def tokens_of_llm_c(content: bytes) -> int | None:
    """The number of tokens after a header as llm.c writes it; None without a header."""
    head = np.frombuffer(content[:LLM_C_HEAD], dtype="<i4") if len(content) >= LLM_C_HEAD else None
    return int(head[2]) if head is not None and head[0] in _LLM_C else None


def _is_text(content: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeError:
        return False
    return all(letter.isprintable() or letter in "\t\n\r\f" for letter in text[:4096])


def _could_be_real(content: bytes, kind: str) -> bool:
    if len(content) % np.dtype(kind).itemsize:
        return False
    size = np.abs(np.frombuffer(content, dtype=kind))
    with np.errstate(invalid="ignore"):
        return bool(size.any() and ((size == 0) | ((size > 1e-6) & (size < 1e6))).all())


def _could_be_half(content: bytes) -> bool:
    """Whether 16-bit numbers are within a few powers of two and far from 0, as float16 and bfloat16 are. The most
    common IDs are near 0."""
    size = np.frombuffer(content, dtype="<u2") & 0x7FFF
    low, high = np.quantile(size[size > 0], (0.025, 0.975)) if size.any() else (0, 0)
    return bool(low > _LEAST_HALF and high - low < _OCTAVES_OF_HALF)


def _could_be_ids(content: bytes, kind: str) -> bool:
    """Whether 64-bit or 32-bit numbers are IDs, -1 or -100. Two 16-bit numbers, read as one, are not such a number
    unless all are small."""
    width = np.dtype(kind).itemsize
    if len(content) % width:
        return False
    numbers = np.frombuffer(content, dtype=f"<i{width}")
    least, most = int(numbers.min()), int(numbers.max())
    low = np.frombuffer(content, dtype="<u2")[:: width // 2]
    return least >= -100 and most < _LARGEST_ID and (most < 2**16 or int(low.max()) >= _LARGEST_ID >> 16)


def _are_alike(content: bytes) -> bool:
    """Whether bytes at even and odd places could have one distribution, which is rare for 16-bit numbers."""
    even, odd = (np.bincount(np.frombuffer(content, np.uint8)[at::2], minlength=256) for at in (0, 1))
    both = even + odd
    used = both > 0
    difference = float(((even - odd)[used] ** 2 / both[used]).sum())
    freedom = float(used.sum()) - 1
    # The mean of chi-square, three standard errors, and a small change of the distribution.
    return bool(difference <= freedom + 3 * (2 * freedom) ** 0.5 + 0.03 * float(both.sum()))


# --- text


def _kind_of_text(file: TokenSource) -> Format:
    text = file.text
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise file.error("tokens or text", "only white space")
    if text.lstrip()[0] in "[{" and json_of(text) is not None:
        return "json"
    numbers = [numbers_in(line) for line in lines]
    others = [line for line, own in zip(lines, numbers, strict=True) if own is None]
    rows = [own for own in numbers if own]  # skip lines that are only a comment
    if rows and not others:
        return _kind_of_rows(file, lines, rows)
    if rows and len(rows) >= 4 * len(others):
        raise file.asks(f"lines of numbers except for {others[0].strip()[:40]!r}", "numbers", "text")
    if all(line.lstrip()[:1] in "[{" for line in lines) and json_of(lines[0]) is not None:
        return "jsonl"
    for mark, name in ((",", "comma"), ("\t", "tab"), (";", "semicolon")):
        counts = {line.count(mark) for line in lines}
        is_table = len(lines) >= 3 and len(counts) == 1 and min(counts) >= 1
        if is_table or file.path.suffix.lower() == {"comma": ".csv", "tab": ".tsv"}.get(name):
            raise file.asks(f"a table separated by {name}s (or give its tokens as .parquet or .jsonl)", "text")
    if file.path.suffix.lower() == ".json":
        raise file.asks("text that is not JSON", "text")
    words = [word for each in _BETWEEN.split(text[:_SAMPLE]) if (word := each.strip("\"',"))]
    like = [word for word in words if _LIKE_A_NUMBER.fullmatch(word)]
    if len(like) >= 0.9 * len(words) and any(letter.isdigit() for word in like for letter in word):
        one = next((word for word in like if not word.isdigit()), like[0])
        raise file.asks(f"numbers that are not lines of whole ones, such as {one[:40]!r}", "text")
    return "text"


def _kind_of_rows(file: TokenSource, lines: list[str], rows: list[list[int]]) -> Format:
    """Recognize lines of numbers, unless their commas or first numbers could mean something else."""
    words = [word for line in lines for word in line.split() if "," in word]
    if words and all(map(_THOUSANDS.fullmatch, words)):
        raise file.asks(f"commas before three digits each, as in {words[0]!r}", "numbers", "text")
    first = [row[0] for row in rows]
    if len(rows) >= 4 and min(map(len, rows)) > 1 and first == list(range(first[0], first[0] + len(rows))):
        raise file.asks(f"lines that begin with {first[0]}, {first[1]}, {first[2]} ..", "numbers", "text")
    return "numbers"


def numbers_in(line: str) -> list[int] | None:
    """The integers of a line up to a ``#``; None if there is anything else. They are separated by spaces or by one
    other mark, and may be inside brackets."""
    body = _without_last_mark(line.partition("#")[0])
    if body[:1] in _CLOSING:
        if not body.endswith(_CLOSING[body[0]]):
            return None
        body = _without_last_mark(body[1:-1])
    if not body:
        return []
    marks = [mark for mark in ",;\t" if mark in body]
    words = body.split(marks[0]) if marks else body.split()
    numbers = [_whole(word.strip()) for word in words]
    return None if None in numbers else numbers  # type: ignore[return-value]


def _without_last_mark(words: str) -> str:
    return words.strip(" ").removesuffix(",").removesuffix(";").rstrip(" ")  # a tab may be next to a missing number


def _whole(word: str) -> int | None:
    if not (match := _NUMBER.fullmatch(word)):
        return None
    value = float(word) if match[1] or match[2] else int(word)
    return int(value) if value == value // 1 and abs(value) < 2**63 else None


def json_of(text: str) -> Any:
    """The value of a JSON text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
