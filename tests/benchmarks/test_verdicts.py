"""Sources with known answers, and who is right about them; the committed result."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sparsity_lab import cli
from sparsity_lab.analysis import look_at, read_tokens
from sparsity_lab.benchmarks.known_sources import SOURCES, Known
from sparsity_lab.benchmarks.verdicts import verdicts, wrong
from sparsity_lab.models import Decoder
from sparsity_lab.settings import SettingError

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "verdicts.json"
SMOKE = {"steps": 20, "targets": 8, "windows": 16, "model": Decoder(num_layers=1, d_model=16)}
IID = [name for name in SOURCES if name.startswith("iid")]


def test_there_are_twenty_of_all_kinds() -> None:
    assert len(SOURCES) == 20
    assert len(IID) == 6
    assert {source.words for source in SOURCES.values()} != {""}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_drawn_by_seed_and_read_as_what_they_are(name: str, tmp_path: Path) -> None:
    contents = []
    for i, seed in enumerate((0, 0, 1)):
        (tmp_path / str(i)).mkdir()
        file, known = SOURCES[name].write(tmp_path / str(i), seed)
        contents.append(file.read_bytes())
        data = read_tokens([file])
        # Padding is gone, and a character is a token, however many bytes it takes.
        assert data.vocab_size <= 64
        assert 8000 <= data.num_tokens <= 48_000
        assert data.num_tokens < len(contents[-1]) or file.suffix == ".txt"
        assert known.verdicts
    assert contents[0] == contents[1] != contents[2]


def test_laws_of_some(tmp_path: Path) -> None:
    """Lags are where they are said to be, and chance is far below."""
    for name, share in (("lag_of_320", 0.9 + 0.1 / 10), ("lag_beyond", 0.9 + 0.1 / 6)):
        file, known = SOURCES[name].write(tmp_path, 3)
        assert known.beyond is not None
        lag, rows = known.beyond[0], np.load(file)
        assert (rows[:, lag:] == rows[:, :-lag]).mean() == pytest.approx(share, abs=0.01)
        assert (rows[:, lag:] == rows[:, 1 : 1 - lag]).mean() < 0.25
    file, _ = SOURCES["copies"].write(tmp_path, 3)
    text = np.frombuffer(file.read_bytes(), np.uint8)
    before = np.lib.stride_tricks.sliding_window_view(text, 81)[:-360]  # the tokens 360 .. 280 before
    assert (before == text[360 + 80 - 80 :][: len(before), None]).any(1).mean() > 0.9


@pytest.mark.parametrize("name", ["copies", "lag_of_320", "either_lag_beyond", "chain_with_copies", *IID])
def test_a_look_without_a_model_finds_what_lies_beyond_and_nothing_else(name: str, tmp_path: Path) -> None:
    file, known = SOURCES[name].write(tmp_path, 5)
    beyond = look_at(read_tokens([file])).beyond(32)
    assert beyond.matters == (known.beyond is not None)
    if known.beyond is not None:
        distance = beyond.distance if beyond.gain is beyond.repeats else beyond.lag
        assert distance is not None
        assert known.beyond[0] <= distance <= known.beyond[1]


def test_what_is_wrong_is_named() -> None:
    known = Known(verdicts=("expected",), learned=True, k=(1, 2), near=True, beyond=None)
    right = {"verdict": "expected", "learned": True, "k": 2.0, "near": True, "beyond": None}
    assert wrong(right, known) == []
    for name, value in (("verdict", "not decided"), ("learned", False), ("k", 3.0), ("near", None), ("beyond", 40)):
        assert wrong({**right, name: value}, known) == [name]
    assert wrong({**right, "k": None}, known) == ["k"]
    far = Known(verdicts=("not decided",), learned=False, beyond=(300, 340))
    assert wrong({"verdict": "not decided", "learned": False, "k": None, "near": None, "beyond": 320}, far) == []


def test_rows_are_kept_and_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("sparsity_lab.benchmarks.verdicts", fromlist=["diagnose"])
    small = module.diagnose
    monkeypatch.setattr(module, "diagnose", lambda data: small(data, **SMOKE))
    first = verdicts(only=["iid_uniform"], seeds=[0, 1], out=tmp_path)
    assert first["seed"].to_list() == [0, 1]
    assert len(list(tmp_path.glob("*.json"))) == 2
    monkeypatch.setattr(module, "diagnose", None)
    assert verdicts(only=["iid_uniform"], seeds=[0, 1], out=tmp_path).equals(first)
    with pytest.raises(SettingError, match="^settings: expected the defaults where rows are kept"):
        verdicts(only=["iid_uniform"], seeds=[0], out=tmp_path, settings=SMOKE)


def test_smoke(capsys: pytest.CaptureFixture[str]) -> None:
    rows = verdicts(only=["iid_padded", "chain_characters"], seeds=[0], settings=SMOKE)
    assert rows["source"].to_list() == ["iid_padded", "chain_characters"]
    assert rows.row(0, named=True)["learned"] is False
    assert cli.run(["bench", "verdicts", "--only", "chains"]) == 2
    assert capsys.readouterr().err.startswith("sparsity-lab: --only: expected a source")


def test_the_committed_result_is_good_enough() -> None:
    """At least 18 of 20 are right at each seed, and nothing is learned from independent tokens. Wrong verdicts are
    "not decided"."""
    rows = json.loads(COMMITTED.read_text())["rows"]
    assert {(row["source"], row["seed"]) for row in rows} == {(name, seed) for name in SOURCES for seed in range(4)}
    right = Counter(row["seed"] for row in rows if row["wrong"] is None)
    assert min(right[seed] for seed in range(4)) >= 18
    assert {row["verdict"] for row in rows if row["wrong"]} == {"not decided"}
    assert not [row for row in rows if row["source"] in IID and row["learned"]]
