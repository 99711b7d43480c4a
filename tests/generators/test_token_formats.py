"""Files of tokens: nothing is read as something else in silence."""

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sparsity_lab.generators import token_formats
from sparsity_lab.generators.padding import obvious_padding, without_padding
from sparsity_lab.generators.token_formats import read_sequences
from sparsity_lab.settings import SettingError

ROWS = [[5, 6, 7], [8, 9]]


def read(folder: Path, name: str, content: bytes | str, **options: Any) -> tuple[list[list[int]], str]:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    found = read_sequences(file, **options)
    return [own.tolist() for own in found.sequences], found.form


@pytest.mark.parametrize(
    "content",
    [
        "5 6 7\n8 9\n",
        "5,6,7\n8,9",
        "[5, 6, 7]\n[8, 9]\n",
        "# a note\n5 6 7 # and one here\n\n8\t9\r\n",
        "5.000000000000000000e+00 6.000000000000000000e+00 7.0\n8e0 9\n",
        "(5; 6; 7)\n(8; 9)\n",
        codecs.BOM_UTF8 + b"5 6 7\n8 9\n",
        "5 6 7\n8 9\n".encode("utf-16"),
    ],
)
@pytest.mark.parametrize("name", ["data.txt", "data", "data.csv"])
def test_whole_numbers_are_recognized_however_they_are_written(tmp_path: Path, content: Any, name: str) -> None:
    assert read(tmp_path, name, content) == (ROWS, "2 lines of whole numbers")


@pytest.mark.parametrize(
    ("content", "form", "tokens"),
    [
        ("to be 9", "ASCII text, a token a byte", list(b"to be 9")),
        ("größer", "text in UTF-8, a token a character", [ord(letter) for letter in "größer"]),
        ("日本語😀".encode("utf-16"), "text in UTF-16, a token a character", [ord(one) for one in "日本語😀"]),
        ("to be".encode("utf-16"), "text in UTF-16, a token a character", list(b"to be")),
        (codecs.BOM_UTF8 + b"to be", "text in UTF-8 with a mark, a token a character", list(b"to be")),
        (codecs.BOM_UTF8 + "né".encode(), "text in UTF-8 with a mark, a token a character", [110, 233]),
        ("# one\n# two\nthree\n", "ASCII text, a token a byte", None),
    ],
)
def test_text_is_characters(tmp_path: Path, content: Any, form: str, tokens: list[int] | None) -> None:
    sequences, got = read(tmp_path, "data.txt", content)
    assert got == form
    assert tokens in (None, sequences[0])


def test_binary_tokens(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 50_257, 1000)
    for kind, width in ((np.uint16, 16), (np.uint32, 32)):
        got, form = read(tmp_path, "train.bin", tokens.astype(kind).tobytes())
        assert (got, form) == ([tokens.tolist()], f"numbers of {width} bits")
    few = np.array([1, 2, 3, 1], dtype=np.uint16).tobytes()
    with pytest.raises(SettingError, match="found only numbers below 4, .*; use --format uint16 or uint32"):
        read(tmp_path, "few.bin", few)
    assert read(tmp_path, "few.bin", few, form="uint16")[0] == [[1, 2, 3, 1]]


def test_arrays_archives_lines_and_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[5, 6], [7, 8]], dtype=np.uint16))
    assert [own.tolist() for own in read_sequences(tmp_path / "a.npy").sequences] == [[5, 6], [7, 8]]
    np.savez(tmp_path / "b.npz", tokens=np.arange(3), other=np.zeros(2))
    assert read_sequences(tmp_path / "b.npz").sequences[0].tolist() == [0, 1, 2]
    np.savez(tmp_path / "c.npz", train=np.arange(3), test=np.arange(4))
    assert read_sequences(tmp_path / "c.npz", column="test").sequences[0].tolist() == [0, 1, 2, 3]
    with pytest.raises(SettingError, match="--column: missing; name the tokens in c.npz .one of train, test"):
        read_sequences(tmp_path / "c.npz")
    with pytest.raises(SettingError, match="--column: .* got 'tests'; did you mean 'test'"):
        read_sequences(tmp_path / "c.npz", column="tests")
    lines = "\n".join(json.dumps({"id": i, "input_ids": own}) for i, own in enumerate(ROWS))
    assert read(tmp_path, "d.jsonl", lines) == (ROWS, "entry 'input_ids' of 2 JSON lines")
    texts = "\n".join(json.dumps({"text": text}) for text in ("ab", "é"))
    assert read(tmp_path, "e.jsonl", texts)[0] == [[97, 98], [233]]
    pl.DataFrame({"n": [0.5, 0.5], "ids": ROWS}).write_parquet(tmp_path / "f.parquet")
    assert [own.tolist() for own in read_sequences(tmp_path / "f.parquet").sequences] == ROWS
    pl.DataFrame({"token": [3, 4, 5]}).write_parquet(tmp_path / "g.parquet")
    assert read_sequences(tmp_path / "g.parquet").sequences[0].tolist() == [3, 4, 5]
    with pytest.raises(SettingError, match="got column 'n' of Float64"):
        read_sequences(tmp_path / "f.parquet", column="n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", gzip.compress(b"text", mtime=0), "the file is compressed with gzip; decompress it first"),
        ("a.csv", "x,y\n1,2\n3,4\n", "found a table separated by commas .*; use --format text"),
        ("a.log", "a,b\nc,d\ne,f\n", "found a table separated by commas .*; use --format text"),
        (
            "a.txt",
            "1 2\n3 4\n5 6\n7 8\nend\n",
            "found lines of numbers except for 'end'; use --format numbers or text",
        ),
        ("a.txt", b"caf\xe9", "found bytes that are not UTF-8 text; use --format bytes or uint16 or uint32"),
        ("a.txt", b"ab\0c", "found text with zero bytes; use --format bytes or uint16 or uint32"),
        ("a.txt", b"", "the file is empty"),
        ("a.jsonl", '{"tokens": [1, 2]}\n{"token": [1]}', "record 2: expected an object with 'tokens'"),
        ("a.jsonl", "[1, 2.5]", "record 1: expected a list of whole numbers"),
        ("a.jsonl", "[1,\n", "line 1: expected JSON, got"),
        ("a.parquet", b"PAR1", "expected a parquet file, got"),
        ("a.bin", b"abc", "found an odd number of bytes, 3; use --format bytes"),
    ],
)
def test_what_could_be_two_things_is_asked_for(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        read(tmp_path, name, content)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_form_that_is_given_is_kept_to(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "1,2\n3,4\n", form="text")[0] == [list(b"1,2\n3,4\n")]
    assert read(tmp_path, "b.txt", b"caf\xe9", form="bytes")[0] == [[99, 97, 102, 233]]
    with pytest.raises(SettingError, match="line 2: expected whole numbers, got 'end'"):
        read(tmp_path, "c.txt", "1 2\nend\n", form="numbers")
    with pytest.raises(SettingError, match="--format: expected a file format .* did you mean 'numbers'"):
        read(tmp_path, "c.txt", "1 2\n", form="number")


# --- padding


def iid(low: int, sizes: Any) -> list[np.ndarray]:
    draws = np.random.default_rng(1)
    return [draws.integers(low, 8, size) for size in sizes]


SIZES = np.random.default_rng(0).integers(20, 50, 60)


def padded(sequences: list[np.ndarray], fill: int, left: bool = False) -> list[np.ndarray]:
    return [
        np.pad(own, (50 - len(own), 0) if left else (0, 50 - len(own)), constant_values=fill) for own in sequences
    ]


@pytest.mark.parametrize("fill", [0, 7, 9, -1])
@pytest.mark.parametrize("left", [False, True])
def test_obvious_padding_is_found_and_taken_away(fill: int, left: bool) -> None:
    """Be the ID one of the data's or not; of what is taken away then, a few tokens may have been data."""
    data = iid(0, SIZES)
    found = without_padding(padded(data, fill, left), "auto")
    assert obvious_padding(padded(data, fill, left)) == fill
    assert found.note.startswith(f"{fill} fills the ends of")
    assert "--pad none keeps it as data" in found.note
    for own, kept in zip(data, found.sequences, strict=True):
        trimmed = np.trim_zeros(own - fill) + fill
        assert kept.tolist() == trimmed.tolist()
    assert [len(own) for own in without_padding(padded(data, fill, left), "none").sequences] == [50] * 60
    assert without_padding(padded(data, fill, left), fill).note.endswith("taken as padding")


def test_data_that_are_not_padded_are_left_alone() -> None:
    draws = np.random.default_rng(2)
    sticky = [np.repeat(draws.integers(0, 3, 20), draws.integers(1, 12, 20)) for _ in range(60)]
    same_end = [np.append(own, 3) for own in iid(0, SIZES)]
    for data in (iid(0, [50] * 60), iid(6, [50] * 60), sticky, same_end, iid(0, [50] * 3)):
        assert obvious_padding(data) is None
        found = without_padding(data, "auto")
        assert found.note == ""
        assert all(np.array_equal(own, kept) for own, kept in zip(data, found.sequences, strict=True))


def test_minus_a_hundred_is_no_token() -> None:
    found = without_padding([np.array([-100, -100, 4, 5, -100]), np.array([1, 2])], "none")
    assert [own.tolist() for own in found.sequences] == [[4, 5], [1, 2]]
    assert found.note == "-100 fills the ends of 1 sequences, 3 tokens: taken as padding"
    with pytest.raises(SettingError, match="sequence 1: padding .-100. may appear only at the ends"):
        without_padding([np.array([4, -100, 5])], "auto")


def test_what_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse files, archives that unpack to more, arrays that claim more than they have, rows that are all equal."""
    with (tmp_path / "data.bin").open("wb") as opened:
        opened.truncate(2**40)
    monkeypatch.setattr(token_formats, "_MOST_BYTES", 2**20)
    with pytest.raises(SettingError, match=r"data.bin: expected a file of at most 1048576 bytes, got more"):
        read_sequences(tmp_path / "data.bin")
    with pytest.raises(SettingError, match=r"data.bin: expected a file of at most 1048576 bytes, got more"):
        token_formats.json_lines(tmp_path / "data.bin")
    np.savez_compressed(tmp_path / "packed.npz", tokens=np.zeros(2**20, dtype=np.int64))
    assert (tmp_path / "packed.npz").stat().st_size < 2**14
    with pytest.raises(SettingError, match=r"packed.npz: expected an array of at most 1048576 bytes, got 8388736"):
        read_sequences(tmp_path / "packed.npz")
    with (tmp_path / "claims.npy").open("wb") as opened:
        head = {"descr": "<i8", "fortran_order": False, "shape": (2**40,)}
        np.lib.format.write_array_header_1_0(opened, head)
        opened.write(bytes(64))
    with pytest.raises(SettingError, match=r"claims.npy: expected an .npy array"):
        read_sequences(tmp_path / "claims.npy")
    monkeypatch.setattr(token_formats, "_MOST_ROWS", 1000)
    for rows in (1000, 1001):
        # Of the other column nothing is made.
        pl.DataFrame({"tokens": [7] * rows, "more": [1.5] * rows}).write_parquet(tmp_path / "rows.parquet")
        if rows == 1000:
            assert len(read_sequences(tmp_path / "rows.parquet").sequences[0]) == 1000
        else:
            with pytest.raises(SettingError, match=r"rows.parquet: expected at most 1000 rows, got more"):
                read_sequences(tmp_path / "rows.parquet")
