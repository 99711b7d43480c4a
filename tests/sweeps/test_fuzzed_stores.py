"""Every value in every file of a store, forged together with its checksums: each command ends as it is documented."""

import io
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from test_fuzzed_command_lines import wrong_with
from training.small_runs import small_run
from training.test_train import Interrupted, interrupt_at

from sparsity_lab import cli
from sparsity_lab.sweeps import Results
from sparsity_lab.training import checkpoint, store, train

RATES = Path(__file__).parents[1] / "studies" / "rates" / "study.py"
GONE = object()
WRONG = (GONE, math.nan, None, "\x1b[2J", [[]], {"a": {}}, 10**30, -1, -math.inf, True, 0)
JSON = ("config.json", "environment.json", "finished.json", "failed.json", "trained.json", "lease/x")
FRAMES = ("metrics.parquet", "timing.parquet", "evaluation")


def places(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of JSON data are, lists and objects among them; of a list the first one."""
    yield place
    inner = data.items() if isinstance(data, dict) else list(enumerate(data))[:1] if isinstance(data, list) else ()
    for key, value in inner:
        yield from places(value, (*place, key))


def changed(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return {} if value is GONE else value
    copy = dict(data) if isinstance(data, dict) else list(data)
    if len(place) == 1 and value is GONE:
        del copy[place[0]]
    else:
        copy[place[0]] = changed(data[place[0]], place[1:], value)
    return copy


def vouched(folder: Path) -> None:
    """Have the checksums in a run's folder say that its files are what was written."""
    marker = json.loads((folder / "finished.json").read_bytes())
    files = {name: store.digest((folder / name).read_bytes()) for name in marker["files"]}
    (folder / "finished.json").write_bytes(signed(marker | {"files": files}))
    (folder / "timing.sha256").write_text(store.digest((folder / "timing.parquet").read_bytes()))


def signed(marker: Any) -> bytes:
    if not isinstance(marker, dict):
        return json.dumps(marker).encode()
    rest = {name: value for name, value in marker.items() if name != "digest"}
    return store.json_bytes({**rest, "digest": store.digest(store.json_bytes(rest))})


def frames(frame: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """The frame with a wrong value in its first row, for each column."""
    for name, kind in frame.schema.items():
        values: tuple[Any, ...] = (None, math.nan, math.inf, -math.inf, -1.0, 1e300)
        if kind == pl.Int64():
            values = (None, 0, -1, -(2**63), 2**63 - 1)
        elif kind == pl.String():
            values = (None, "", "\x1b[2J", "x" * 10_000)
        elif kind == pl.Boolean():
            values = (None, True, False)
        for value in values:
            column = pl.Series(name, [value, *frame[name][1:]], dtype=kind)
            yield f"{name} {str(value)[:20]!r}", frame.with_columns(column)
    yield "no rows", frame[:0]
    yield "a row less", frame[1:]
    yield "a row twice", frame[[0, *range(frame.height)]][:-1]
    yield "reversed", frame.reverse()


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


Change = Callable[[Path], object]


def changes(out: Path, run: str) -> Iterator[tuple[str, Change]]:
    """What is done to a store, in words and as a function of its copy."""
    wrong = itertools.cycle(WRONG)

    def write(name: str, content: bytes, *, vouch: bool = True) -> Change:
        def act(copy: Path) -> None:
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_bytes(content)
            if vouch:
                vouched(copy / run)

        return act

    for name in ("sweep.json", "rules.json", *(f"{run}/{one}" for one in JSON)):
        example = {"host": "here", "process": 1, "since": "now"} if name.endswith("x") else {"reason": "?", "step": 1}
        data = json.loads((out / name).read_bytes()) if (out / name).is_file() else example
        is_marker = name.endswith(("finished.json", "trained.json"))
        for place in places(data):
            for value in WRONG if not place else (next(wrong),):
                content = changed(data, place, value)
                written = signed(content) if is_marker else json.dumps(content).encode()
                words = f"{name} {'.'.join(map(str, place))}: {'gone' if value is GONE else str(value)[:20]!r}"
                yield words, write(name, written, vouch=not is_marker)
    for name in FRAMES:
        file = next((out / run).glob(f"{name}*/*.parquet" if name == "evaluation" else name))
        for words, frame in frames(pl.read_parquet(file)):
            yield f"{name} {words}", write(str(file.relative_to(out)), parquet(frame))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study and the runs of its first seed."""
    before = list(sys.path)
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "rates_fuzzed").mkdir()
    shutil.copy(RATES, folder / "rates_fuzzed" / "study.py")
    assert cli.run(decide(folder, folder / "out")) == 0
    yield folder
    sys.path[:] = before


def decide(folder: Path, out: Path) -> list[str]:
    budget = ["--budget", "1e-9", "--engine", "Serial()", "--results", str(out.with_name("results"))]
    return ["decide", str(folder / "rates_fuzzed"), "--out", str(out), *budget]


def commands(folder: Path, out: Path, run: str, number: int) -> Iterator[list[str]]:
    """The quick ones of each store, and the others in turn."""
    yield ["sweep", "--status", str(out)]
    report = ["report", str(out), "--out", str(out.with_name("page.html"))]
    slow = {0: report, 10: [*report, "--untrusted"], 20: decide(folder, out)}
    if number % 30 in slow:
        yield slow[number % 30]
    yield ["train", str(folder / "out" / run / "config.json"), "--out", str(out)]
    yield ["sweep", "--status", str(out)]


@pytest.mark.slow
def test_no_value_of_a_store_ends_a_command_otherwise(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = Results(made / "out").runs[0].id
    found = []
    for number, (words, act) in enumerate(changes(made / "out", run)):
        out = tmp_path / str(number) / "out"
        shutil.copytree(made / "out", out)
        act(out)
        for line in commands(made, out, run, number):
            try:
                code: object = cli.run(line)
            except Exception as error:
                code = repr(error)
            told = capsys.readouterr()
            logged = "".join(caplog.messages)
            caplog.clear()
            if wrong := wrong_with(code, told.out, told.err + logged, line):
                found.append((words, line[:2], wrong))
        shutil.rmtree(out.parent)
    assert found == []


def test_whatever_a_checkpoint_records_training_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on from it, or starts at the beginning; of what cannot be right, it starts at the beginning."""
    base = small_run()
    run = base.replace(training=base.training.replace(checkpoint_every=3))
    with pytest.raises(Interrupted):
        train(run, tmp_path, progress=interrupt_at(10))
    file = tmp_path / run.id / "checkpoint.safetensors"
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        record = json.loads(json.loads(opened.metadata()["checkpoint"])["record"])
    assert set(record) == {"run", "step", "metrics", "timing"}
    moment = next(name for name in tensors if name.endswith(".exp_avg"))
    others = {
        "a moment less": {name: tensor for name, tensor in tensors.items() if name != moment},
        "a moment more": {**tensors, f"{moment}_max": tensors[moment]},
        "a moment of another shape": {**tensors, moment: tensors[moment][:1]},
    }
    wrong = itertools.cycle(WRONG[1:])
    forged = [
        (f"{'.'.join(map(str, place))} {value!r:.20}", data, tensors)
        for place in places(record)
        for value in ((GONE, next(wrong), next(wrong)) if place else WRONG)
        if (data := changed(record, place, value)) != record
    ]
    forged += [(words, record, other) for words, other in others.items()]
    begun = dict.fromkeys((words for words, _, _ in forged), 0)
    for words, data, held in forged:
        shutil.rmtree(file.parent)
        file.parent.mkdir()
        text = json.dumps(data)
        metadata = {"record": text, "hash": checkpoint._hash(held, text)}
        packed = {name: tensor.clone() for name, tensor in held.items()}
        save_file(packed, file, {"checkpoint": json.dumps(metadata)})
        caplog.clear()
        made = train(run, tmp_path)
        begun[words] = "starts at the beginning" in caplog.text
        assert made.metrics["step"].to_list() == [0, 3, 6, 9, 11]
    assert all(begun[words] for words in others)
    # Numbers that are wrong and yet numbers are what the author of a store wrote.
    measures = ("metrics.0.loss", "metrics.0.accuracy", "metrics.0.gradient_norm", "metrics.0.learning_rate")
    right = {words.split()[0] for words, from_start in begun.items() if not from_start}
    assert right <= {"run", *measures, "metrics.0.length", "timing.0.seconds", "timing.0.tokens", "timing.0.phase"}
