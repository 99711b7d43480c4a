"""``sparsity-lab diagnose``: one JSON document, one line for bad input."""

import json
from pathlib import Path

import numpy as np
import pytest

from sparsity_lab import cli
from sparsity_lab.generators import SparseMarkov, Stream

CHEAP = ["--length", "12", "--steps", "20", "--model", "Decoder(num_layers=1, d_model=16)"]


def lab(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["diagnose", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tokens = SparseMarkov(k=1, vocab_size=4).sample(Stream(0, "user"), 0, 20, 100).tokens.numpy()
    np.save(tmp_path / "data.npy", tokens)
    marks = np.zeros_like(tokens)
    marks[:, [-4, -3]] = 1
    np.save(tmp_path / "marks.npy", marks)
    (tmp_path / "short.txt").write_text("1 2 3 4\n")
    return tmp_path


def test_json_with_labels(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(data / "data.npy"), "--labels", str(data / "marks.npy"), "--other", "NoPE()", *CHEAP, "--json"]
    code, out, err = lab(capsys, *arguments)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["labeled"]
    assert found["k"] == {"estimate": 2.0, "low": 2.0, "high": 2.0, "count": 20}
    assert found["reach"]["estimate"] == 3.0
    assert [(row["position"], row["length"]) for row in found["tests"]] == [
        (scheme, length) for scheme in ("RoPE()", "NoPE()") for length in (12, 24, 48)
    ]
    assert found["verdict"] in ("expected", "not expected", "not decided")
    assert [row["step"] for row in found["cost"]] == ["look at the data", "train RoPE()", "train NoPE()"]
    assert all(row["tokens"] > 20 * 32 * 6 for row in found["cost"][1:])
    assert found["beyond"]["horizon"] == 12
    assert {row["source"] for row in found["look"]} == {"pair", "repeat"}
    assert found["horizon"][0].endswith("needs were counted from labels.")


def test_what_people_see(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = lab(
        capsys, str(data / "data.npy"), *CHEAP, "--picture", str(data / "kept.png"), "--page", str(data / "all.html")
    )
    assert code == 0
    for words in ("Read data.npy: array, 2000 tokens", "\n1. ", "\n2. ", "\n3. ", "\nCost", "seconds"):
        assert words in out
    assert "Length generalization on this data: " in out
    assert (data / "kept.png").stat().st_size > 5000
    for words in (
        "\nHorizon: trained on up to 12 tokens",
        "\nWithout a model, pairs of tokens up to 75 apart and repeats up to 100: ",
        "\nAdvice: ",
    ):
        assert words in out
    page = (data / "all.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert "Advice: " in page


def test_padding_is_noticed_and_said(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixty sequences of independent tokens, filled up with 0: nothing is learned."""
    draws = np.random.default_rng(0)
    rows = np.zeros((60, 120), dtype=int)
    for row in rows:
        size = draws.integers(60, 120)
        row[:size] = draws.integers(1, 9, size)
    np.save(data / "padded.npy", rows)
    code, out, _ = lab(capsys, str(data / "padded.npy"), *CHEAP)
    assert code == 0
    assert "Read 0 fills the ends of 60 sequences" in out
    assert "taken as padding (--pad none keeps it as data)" in out
    assert "learned something at the trained length (gain at least 5%): yes" not in out
    assert "Length generalization on this data: not decided" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "paths: missing; give at least one file"),
        (["{}/no.txt"], "{}/no.txt: No such file"),
        (["{}"], "{}: Is a directory"),
        (["{}/short.txt"], "data: the training part needs a sequence of more than 32 tokens"),
        (["{}/data.npy", "--labels", "{}/short.txt"], "{}/short.txt: expected labels of 20 sequences, got 1"),
        (["{}/data.npy", "{}/data.npy", "--labels", "{}/marks.npy"], "--labels: expected a file for each of 2 data"),
        (["{}/data.npy", "--other", "RoPE()"], "other: expected a position scheme other than RoPE()"),
        (["{}/data.npy", "--other", "Rope()"], "--other.kind: expected a position"),
        (
            ["{}/data.npy", "--pad", "zero"],
            "--pad: expected a whole number, auto or none (one of auto, none), got 'zero'",
        ),
        (["{}/data.npy", "--format", "numpy"], "--format: expected a file format (one of auto, numbers, text"),
        (["{}/short.txt", "--format", "npy"], "{}/short.txt: expected an .npy array, got"),
        (["{}/data.npy", "--length", "x"], "--length: expected a whole number, got 'x'"),
        (["{}/data.npy", "--step", "3"], "--step: expected an option of sparsity-lab diagnose"),
        (["{}/data.npy", "--length", "12", "--steps", "0"], "steps: expected at least 1, got 0"),
    ],
)
def test_bad_input(arguments: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = lab(capsys, *(argument.format(data) for argument in arguments))
    assert (code, out.partition("Read")[0]) == (2, "")
    assert err.startswith(f"sparsity-lab: {message.format(data)}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("diagnose", "sparsity-lab: interrupted\n"),
        ("sweep", "sparsity-lab: interrupted; run the same command again to continue\n"),
        ("train", "sparsity-lab: interrupted; run the same command again; without checkpoint_every it starts over\n"),
    ],
)
def test_an_interruption_promises_no_more_than_is_kept(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.COMMANDS[name], "run", interrupted)
    assert cli.run([name, "demo"]) == 130
    assert capsys.readouterr().err == words
