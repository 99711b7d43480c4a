"""Files of tokens: nothing is read as something else in silence."""

import codecs
import gzip
import io
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
    ],
)
def test_what_could_be_two_things_is_asked_for(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        read(tmp_path, name, content)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


IDS = np.random.default_rng(0).integers(0, 50_257, 1000)
FEW = np.random.default_rng(1).integers(0, 3, 1000)
FILLED = np.where(IDS < 1000, -100, IDS % 3000)
LLM_C = np.zeros(256, dtype="<i4")
LLM_C[:3] = 20240520, 1, len(IDS)
NUMBERS = "found numbers that are not lines of whole ones, such as {}; use --format text"


def array(value: Any, archive: bool = False, **arrays: Any) -> bytes:
    made = io.BytesIO()
    if archive:
        np.savez(made, **arrays)
    else:
        np.save(made, value)
    return made.getvalue()


def parquet(**columns: Any) -> bytes:
    made = io.BytesIO()
    pl.DataFrame(columns).write_parquet(made)
    return made.getvalue()


def column(numbers: Any) -> str:
    return "".join(f"{number}\n" for number in numbers)


READ: dict[str, tuple[str, bytes | str, Any, str]] = {
    "uint16": ("a.bin", IDS.astype("<u2").tobytes(), [IDS.tolist()], "numbers of 16 bits"),
    "uint16 of few": ("a.bin", FEW.astype("<u2").tobytes(), [FEW.tolist()], "numbers of 16 bits"),
    "uint32": ("a.bin", IDS.astype("<u4").tobytes(), [IDS.tolist()], "numbers of 32 bits"),
    "uint32 of few": ("a.bin", FEW.astype("<u4").tobytes(), [FEW.tolist()], "numbers of 32 bits"),
    "uint32 above 2^16": ("a.bin", (4 * IDS).astype("<u4").tobytes(), [(4 * IDS).tolist()], "numbers of 32 bits"),
    "int32 with -100": ("a.bin", FILLED.astype("<i4").tobytes(), [FILLED.tolist()], "numbers of 32 bits"),
    "int64": ("a.bin", IDS.astype("<i8").tobytes(), [IDS.tolist()], "numbers of 64 bits"),
    "int64 above 2^16": ("a.bin", (4 * IDS).astype("<i8").tobytes(), [(4 * IDS).tolist()], "numbers of 64 bits"),
    "int64 with -100": ("a.bin", FILLED.astype("<i8").tobytes(), [FILLED.tolist()], "numbers of 64 bits"),
    "llm.c": (
        "a.bin",
        LLM_C.tobytes() + IDS.astype("<u2").tobytes(),
        [IDS.tolist()],
        "numbers of 16 bits after the head of llm.c",
    ),
    "llm.c of 32 bits": (
        "a.bin",
        LLM_C.tobytes() + IDS.astype("<u4").tobytes(),
        [IDS.tolist()],
        "numbers of 32 bits after the head of llm.c",
    ),
    "npy (n,)": ("a.npy", array(IDS), [IDS.tolist()], "array"),
    "npy of big-endian numbers": ("a.npy", array(IDS.astype(">u2")), [IDS.tolist()], "array"),
    "npy under another name": ("a.dat", array(IDS), [IDS.tolist()], "array"),
    "npy of marks": ("a.npy", array(FEW > 0), [(FEW > 0).astype(int).tolist()], "array"),
    "npz of one array": ("a.npz", array(None, True, x=IDS), [IDS.tolist()], "array 'x' of an archive"),
    "a column of numbers": ("a.txt", column(FEW), [FEW.tolist()], "1 sequence of whole numbers, one a line"),
    "a column of reals": (
        "a.txt",
        column(map(float, FEW)),
        [FEW.tolist()],
        "1 sequence of whole numbers, one a line",
    ),
    "a column in .csv": ("a.csv", column([5, 6, 7]), [[5, 6, 7]], "1 sequence of whole numbers, one a line"),
    "columns with empty lines": (
        "a.txt",
        "5\r\n6\r\n\r\n7\r\n8\r\n9\r\n",
        [[5, 6], [7, 8, 9]],
        "2 sequences of whole numbers, one a line",
    ),
    "tabs": ("a.tsv", "5\t6\t7\n8\t9\n", ROWS, "2 lines of whole numbers"),
    "negative numbers": ("a.txt", "-5 6 -100\n8 -9\n", [[-5, 6, -100], [8, -9]], "2 lines of whole numbers"),
    "lists with a comma after each": ("a.txt", "[5, 6, 7],\n[8, 9],\n", ROWS, "2 lines of whole numbers"),
    "JSON, a list": ("a.json", "[5, 6, 7]", [[5, 6, 7]], "1 JSON list"),
    "JSON, lists on one line": ("a.json", "[[5, 6, 7], [8, 9]]", ROWS, "2 JSON lists"),
    "JSON, lists on many lines": ("a.json", json.dumps(ROWS, indent=2), ROWS, "2 JSON lists"),
    "JSON, lists in a .txt": ("a.txt", "[[5, 6, 7], [8, 9]]\n", ROWS, "2 JSON lists"),
    "JSON, objects": (
        "a.json",
        json.dumps([{"n": 3, "tokens": own} for own in ROWS]),
        ROWS,
        "entry 'tokens' of 2 JSON lists",
    ),
    "JSON, an object of columns": (
        "a.json",
        json.dumps({"input_ids": ROWS, "mask": [[1, 1, 1], [1, 1]]}),
        ROWS,
        "entry 'input_ids' of JSON: 2 JSON lists",
    ),
    "JSON, an object": ("a.json", '{"tokens": [5, 6]}', [[5, 6]], "entry 'tokens' of JSON: 1 JSON list"),
    "JSON, texts": ("a.json", '["ab", "c"]', [[97, 98], [99]], "2 JSON lists: 2 texts in JSON, a token a character"),
    "JSON lines in a .txt": ("a.txt", '{"ids": [5, 6, 7]}\n{"ids": [8, 9]}', ROWS, "entry 'ids' of 2 JSON lines"),
    "JSON lines with a line separator": (
        "a.jsonl",
        '{"text": "a\u2028b"}\r\n{"text": "c"}\r\n',
        [[97, 0x2028, 98], [99]],
        "entry 'text' of 2 JSON lines: 2 texts in JSON, a token a character",
    ),
    "JSON lines of texts of numbers": (
        "a.jsonl",
        '{"text": "5 6 7"}\n{"text": "8,9"}',
        ROWS,
        "entry 'text' of 2 JSON lines: 2 texts of numbers",
    ),
    "parquet, flat": ("a.parquet", parquet(t=[5, 6, 7]), [[5, 6, 7]], "column 't'"),
    "parquet, lists": ("a.parquet", parquet(t=ROWS), ROWS, "column 't' of 2 lists"),
    "parquet, texts": (
        "a.parquet",
        parquet(t=["ab", "c"]),
        [[97, 98], [99]],
        "column 't': 2 ASCII texts, a token a byte",
    ),
    "parquet, texts of numbers": ("a.parquet", parquet(t=["5 6 7", "8 9"]), ROWS, "column 't': 2 texts of numbers"),
    "UTF-32": ("a.txt", "né".encode("utf-32"), [[110, 233]], "text in UTF-32, a token a character"),
    "text with few numbers": ("a.log", "12:00 start\n12:05 end\n", None, "ASCII text, a token a byte"),
}


@pytest.mark.parametrize("shape", READ)
def test_what_is_recognized_is_read_and_said(tmp_path: Path, shape: str) -> None:
    name, content, sequences, form = READ[shape]
    found = read(tmp_path, name, content)
    assert found == (found[0] if sequences is None else sequences, form)


DRAWS = np.random.default_rng(3)
REALS = {
    "weights": 0.02 * DRAWS.standard_normal(4000),
    "activations": np.maximum(DRAWS.standard_normal(4000), 0),
    "probabilities": DRAWS.random(4000),
    "times": DRAWS.exponential(3.0, 4000),
    "whole numbers": IDS % 256.0,
}


OTHERS: dict[str, tuple[str, bytes | str, str]] = {
    "bytes": (
        "a.bin",
        np.random.default_rng(2).bytes(2000),
        "numbers of 8 or of 16 bits; use --format bytes or uint16",
    ),
    "one byte too many": ("a.bin", b"\x80bc", "an odd number of bytes, 3; use --format bytes"),
    "few numbers": (
        "a.bin",
        IDS[:20].astype("<u4").tobytes(),
        "only 80 bytes, which could be numbers of several sizes; use --format uint16 or int32",
    ),
    "only zeros": ("a.bin", bytes(62), "only 62 bytes|numbers of 8 or of 16 bits; use --format bytes or uint16"),
    "int16 with -100": ("a.bin", FILLED.astype("<i2").tobytes(), "-100 with a sign; use --format int16 or uint16"),
    "float32": ("a.bin", IDS.astype("<f4").tobytes(), "what could be floating-point numbers; use --format uint16 or"),
    "float64": ("a.bin", np.linspace(-1, 1, 100).tobytes(), "what could be floating-point numbers; use --format"),
    **{
        f"{name} of {law}": ("a.bin", content, "what could be floating-point numbers.*; use --format uint16")
        for law, values in REALS.items()
        for name, content in (
            ("float16", values.astype("<f2").tobytes()),
            ("bfloat16", (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()),
        )
    },
    "text in a .bin": ("a.bin", "to be or", "found text; use --format text or bytes or uint16"),
    "llm.c cut off": (
        "a.bin",
        LLM_C.tobytes() + IDS[:99].astype("<u2").tobytes(),
        "tokens of 2 or 4 bytes, got 1000 in the head and 198 bytes after it",
    ),
    "npy of reals": ("a.npy", array(np.ones(3)), "integers of shape .n,. or .N, n., got float64 of shape .3,."),
    "npy of whole reals": ("a.npy", array(IDS.astype(float)), "integers of shape .n,. or .N, n., got float64"),
    "npy of 3 dimensions": ("a.npy", array(np.ones((2, 2, 2), int)), "got int64 of shape .2, 2, 2."),
    "npy of no dimension": ("a.npy", array(np.array(5)), r"got int64 of shape \(\)"),
    "npy of objects": ("a.npy", array(np.array([[1], [2, 3]], dtype=object)), "expected an .npy array, got Object"),
    "npy of records": ("a.npy", array(np.zeros(3, dtype=[("a", "i4")])), "integers of shape"),
    "npy above 2^63": ("a.npy", array(np.array([2**63], dtype=np.uint64)), "expected integers below 2.63"),
    "npy cut off": ("a.npy", array(IDS)[:300], "expected an .npy array, got"),
    "npz of several arrays": (
        "a.npz",
        array(None, True, x=IDS, y=IDS),
        "--column: missing; name the tokens in a.npz",
    ),
    "npz of none": ("a.npz", array(None, True), "expected an array with tokens, got none"),
    "npz with a wrong sum": (
        "a.npz",
        array(None, True, x=IDS).replace(IDS[9:12].tobytes(), b"a" * 24),
        "an .npz archive",
    ),
    "gzip": ("a.npy", gzip.compress(array(IDS), mtime=0), "compressed with gzip; decompress it first"),
    "zstd": ("a.txt.zst", b"(\xb5/\xfd0123", "compressed with zstd; decompress it first"),
    "UTF-16 without a mark": ("a.txt", "to be".encode("utf-16-le"), "text with zero bytes; use --format bytes or"),
    "UTF-16 of Chinese without a mark": (
        "a.txt",
        "\u65e5\u672c\u8a9e".encode("utf-16-be"),
        "use --format bytes or uint16",
    ),
    "UTF-32 without a mark": ("a.txt", "to be".encode("utf-32-le"), "text with zero bytes; use --format bytes or"),
    "numbers of a kind in .dat": (
        "a.dat",
        IDS.astype("<u2").tobytes(),
        "use --format bytes or uint16 or uint32 or int64",
    ),
    "white space": ("a.txt", " \n\t\r\n", "expected tokens or text, got only white space"),
    "a mark alone": ("a.txt", codecs.BOM_UTF8, "expected tokens or text, got only white space"),
    "thousands": (
        "a.txt",
        "1,234\n12,345\n",
        "commas before three digits each, as in '1,234'; use --format numbers or text",
    ),
    "numbers between bars": ("a.txt", "1|2|3\n4|5|6\n", NUMBERS.format("'1'")),
    "a number that is none": ("a.txt", "1 2 nan\n3 4 5\n", NUMBERS.format("'nan'")),
    "thousands with points": ("a.txt", "1.234 5.678\n", NUMBERS.format("'1.234'")),
    "thousands with marks": ("a.txt", "1'234\n5_678\n", NUMBERS.format('"1.234"')),
    "hexadecimal": ("a.txt", "0x1f 0x2a\n0xff\n", NUMBERS.format("'0x1f'")),
    "a dump": ("a.txt", "1f2a 00ff be12\n", NUMBERS.format("'1f2a'")),
    "reals": ("a.txt", "0.5 1.25\n-3e-2 nan\n", NUMBERS.format("'0.5'")),
    "quoted numbers": ("a.txt", '"5" "6"\n"7"\n', NUMBERS.format("'5'")),
    "a number of 5,000 digits": ("a.txt", "7" * 5000, NUMBERS.format("'7{40}'")),
    "lines of 100 digits": ("a.txt", f"{'31415' * 20}\n" * 9, NUMBERS.format("'3141.*'")),
    "a missing number": ("a.txt", "5,,7\n8,9,1\n", "found numbers that are not lines|table|except for '5,,7'"),
    "a missing number in a tab": ("a.txt", "\t5\t7\n\t8\t9\n", "found numbers that are not lines of whole ones"),
    "spaces beside commas": ("a.txt", "1,5 6 7\n0,8 9\n", "found numbers that are not lines of whole ones"),
    "a text column of numbers": ("a.tsv", "0\t5 6 7\n1\t8 9\n", "found a table separated by tabs"),
    "a CSV column of numbers": ("a.csv", 'id,tokens\n1,"5 6 7"\n2,"8 9"\n', "found a table separated by commas"),
    "lines that are counted": (
        "a.csv",
        "0,17\n1,23\n2,17\n3,4\n",
        r"lines that begin with 0, 1, 2 \.\.; use --format numbers or text",
    ),
    "lists on one line": ("a.txt", "[5, 6], [7, 8]\n", "found numbers that are not lines of whole ones"),
    "an array on several lines": ("a.txt", "[ 5 6 7\n  8 9]\n", "found lines of numbers|found numbers"),
    "JSON with a number of 5,000 digits": ("a.json", f"[{'7' * 5000}]", "text that is not JSON; use --format text"),
    "JSON lines with one": ("a.jsonl", f"[1, {'7' * 5000}]", "line 1: expected JSON, got Exceeds the limit"),
    "JSON of mixed values": ("a.json", "[[1, 2], 3]", "record 2: expected a list of whole numbers, got '3'"),
    "JSON of deeper lists": ("a.json", "[[[1, 2], [3]]]", "record 1: expected a list of whole numbers"),
    "JSON of settings": ("a.json", '{"name": "a", "notes": []}', "--column: missing; name the tokens in a.json"),
    "JSON of numbers by name": ("a.json", '{"a": 1}', "expected an entry with tokens, got none"),
    "JSON that is none": ("a.json", "[1, 2", "text that is not JSON; use --format text"),
    "JSON lines of mixed values": (
        "a.jsonl",
        '[1, 2]\n"text"\n',
        "record 2: expected a list of whole numbers, got 'text'",
    ),
    "JSON lines with null": (
        "a.jsonl",
        '{"text": "a"}\n{"text": null}\n',
        "record 2: expected a text, as record 1 is, got 'None'",
    ),
    "JSON lines of marks": ("a.jsonl", "[true, false]\n", "record 1: expected a list of whole numbers"),
    "JSON lines of numbers": ("a.jsonl", "5\n6\n", "record 1: expected a list of whole numbers, got '5'"),
    "parquet, reals": ("a.parquet", parquet(t=[0.5, 1.5]), "expected a column of whole numbers, .* got none"),
    "parquet, deeper lists": (
        "a.parquet",
        parquet(t=[[[1], [2]]]),
        "column of whole numbers, lists or texts with tokens",
    ),
    "parquet, null": (
        "a.parquet",
        parquet(t=[5, None, 7]),
        "column 't': expected a value in every row, got null in row 2",
    ),
    "parquet, null list": ("a.parquet", parquet(t=[[5], None]), "expected a value in every row, got null in row 2"),
    "parquet, null in a list": (
        "a.parquet",
        parquet(t=[[5, None]]),
        "column 't', row 1: expected whole numbers below",
    ),
    "parquet, two columns": (
        "a.parquet",
        parquet(a=[1, 2], b=[3, 4]),
        "--column: missing; name the tokens in a.parquet",
    ),
    "parquet above 2^63": (
        "a.parquet",
        parquet(t=pl.Series([2**63], dtype=pl.UInt64)),
        "expected integers below 2.63",
    ),
}


@pytest.mark.parametrize("shape", OTHERS)
def test_all_else_is_asked_for_or_refused_in_one_line(tmp_path: Path, shape: str) -> None:
    name, content, message = OTHERS[shape]
    with pytest.raises(SettingError, match=message) as error:
        read(tmp_path, name, content)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.json", "a.jsonl", "a.parquet", "a.bin", "a.txt"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """Any byte may be another one: what comes is tokens or one line."""
    whole: dict[str, bytes] = {
        "a.npy": array(IDS[:9]),
        "a.npz": array(None, True, tokens=IDS[:9]),
        "a.parquet": parquet(t=ROWS),
        "a.json": json.dumps(ROWS).encode(),
        "a.jsonl": b'{"tokens": [1, 2]}\n{"tokens": [3]}',
        "a.bin": LLM_C.tobytes() + IDS[:9].astype("<u2").tobytes(),
        "a.txt": b"5 6 7\n8 9\n",
    }
    draws, messages = np.random.default_rng(3), list[str]()
    for _ in range(300):
        content = bytearray(whole[name])
        for at in draws.integers(0, len(content), draws.integers(1, 4)):
            content[at] = draws.integers(0, 256)
        try:
            read(tmp_path, name, bytes(content[: draws.integers(1, 2 * len(content))]))
        except SettingError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


def test_a_form_that_is_given_is_kept_to(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "1,2\n3,4\n", form="text")[0] == [list(b"1,2\n3,4\n")]
    assert read(tmp_path, "b.txt", b"caf\xe9", form="bytes")[0] == [[99, 97, 102, 233]]
    with pytest.raises(SettingError, match="line 2: expected whole numbers, got 'end'"):
        read(tmp_path, "c.txt", "1 2\nend\n", form="numbers")
    for width, kind in ((16, "uint16"), (32, "int32"), (64, "int64")):
        few = np.array([1, 2, 3, 1], dtype=kind).tobytes()
        assert read(tmp_path, "few.bin", few, form=kind) == ([[1, 2, 3, 1]], f"numbers of {width} bits")
    with pytest.raises(SettingError, match="few.bin: expected the head that llm.c writes, .* got no such head"):
        read(tmp_path, "few.bin", few, form="llm.c")
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
    assert found.note == "-100 fills the ends of 1 sequence, 3 tokens: taken as padding"
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
