"""Files of a store that were made to fill the memory of their reader, or to end it."""

import io
import json
import os
import random
import resource
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from training.small_runs import small_run

from sparsity_lab import cli
from sparsity_lab.settings import SettingError
from sparsity_lab.sweeps import Results, Serial, Sweep, grid, overview, run_sweep
from sparsity_lab.training import Run, parsing_process, store
from sparsity_lab.training.files import DamagedFile
from sparsity_lab.training.frames import FrameProcess, parse_frame

SPARSE = 3 * 2**30
FRAMES = ("runs", "evaluation", "summary", "metrics", "timing")
SCHEMA = pl.Schema({"name": pl.String(), "whole": pl.Int64(), "real": pl.Float64(), "sure": pl.Boolean()})


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def small_frame() -> pl.DataFrame:
    rows = [("a", 1, 0.1, True), (None, None, None, None), ("\u202eé", -(2**63), float("nan"), False)]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def forge(folder: Path, contents: dict[str, bytes]) -> None:
    """Put files in a run's folder, with checksums that say they are what was written."""
    marker = json.loads((folder / "finished.json").read_bytes())
    del marker["digest"]
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        marker["files"][name] = store.digest(content)
    (folder / "finished.json").write_bytes(store.Marker(**marker).to_json())


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    made = Sweep(name="foreign", runs=grid(small_run(), {"seed": [0, 1]}))
    run_sweep(made, tmp_path / "out", Serial())
    return made


def test_frames_parsed_elsewhere_are_the_same(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Results(tmp_path / "out")
    frames, seen = {name: own.frame(name) for name in FRAMES}, overview(own)
    assert own.trusted
    assert own.failures == ()
    monkeypatch.setattr(pl, "read_parquet", lambda *_, **__: pytest.fail("parsed here"))
    foreign = Results(tmp_path / "out", trusted=False)
    for name in FRAMES:
        assert_frame_equal(foreign.frame(name), frames[name])
    assert overview(foreign) == seen
    assert Run.load(tmp_path / "out" / sweep.runs[0].id, trusted=False).config == sweep.runs[0]
    page = tmp_path / "page.html"
    assert cli.run(["report", str(tmp_path / "out"), "--untrusted", "--out", str(page)]) == 0
    assert page.stat().st_size > 1000


def test_a_folder_of_another_user_is_not_trusted(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "out").stat().st_uid + 1)
    assert not Results(tmp_path / "out").trusted
    assert Results(tmp_path / "out", trusted=True).trusted
    assert Results(tmp_path / "out").frame().height == Results(tmp_path / "out", trusted=True).frame().height > 0


@pytest.mark.parametrize("trusted", [True, False])
def test_millions_of_rows_in_a_small_file_are_not_made(sweep: Sweep, tmp_path: Path, trusted: bool) -> None:
    run, other = sweep.runs
    folder = tmp_path / "out" / run.id
    evaluation = store.evaluation_file(run)
    many = {name: pl.read_parquet(folder / name)[:1] for name in ("metrics.parquet", evaluation, "timing.parquet")}
    contents = {
        name: parquet(pl.select(pl.repeat(0, 5_000_000)).join(one, how="cross")[:, 1:]) for name, one in many.items()
    }
    assert max(len(content) for content in contents.values()) < 300_000
    forge(folder, contents)
    (folder / "timing.sha256").write_text(store.digest(contents["timing.parquet"]))
    results = Results(tmp_path / "out", trusted=trusted)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("evaluation", "metrics", "timing"):
        assert results.frame(name)["run"].unique().to_list() == [other.id]
    state = results.state(run, large=True)
    assert state.status == "broken"
    assert state.reason is not None
    assert "has more than " in state.reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


FILES = ["sweep.json", "config.json", "finished.json", "metrics.parquet", "EVALUATION", "model.safetensors"]
FILES += ["timing.parquet", "timing.sha256", "environment.json", "failed.json", "checkpoint.safetensors", "lease/x"]


@pytest.mark.parametrize("name", FILES)
def test_files_that_claim_gigabytes_are_not_read(sweep: Sweep, tmp_path: Path, name: str) -> None:
    """As sparse files do, which take no space."""
    out, run = tmp_path / "out", sweep.runs[0]
    folder = out if name == "sweep.json" else out / run.id
    file = folder / (store.evaluation_file(run) if name == "EVALUATION" else name)
    file.parent.mkdir(exist_ok=True)
    if name == "checkpoint.safetensors":
        (folder / "finished.json").unlink()
    with file.open("ab") as opened:
        opened.truncate(SPARSE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = Results(out, sweep)
    overview(results)
    results.frame()
    assert cli.run(["sweep", "--status", str(out)]) in (0, 1, 2)
    assert run_sweep(sweep, out, Serial()).failures == ()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert overview(Results(out, sweep)).complete


@pytest.mark.parametrize("command", [["report"], ["report", "--untrusted"], ["sweep", "--status"]])
def test_a_folder_of_another_user_may_not_fill_the_memory(
    sweep: Sweep, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Each file is small, but there can be many. What is read takes more than is allowed."""
    limits = []

    def fill(results: Results) -> None:
        limits.append(resource.getrlimit(resource.RLIMIT_DATA)[0])
        bytearray(2**40)

    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(Results, "labels", fill)
    monkeypatch.setattr(Results, "failures", property(fill))
    if "--untrusted" not in command:
        monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "out").stat().st_uid + 1)
    assert cli.run([*command, str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("sparsity-lab: out of memory")
    assert 2**32 <= limits[0] < 2**40
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_files_of_a_foreign_folder_are_bounded_in_all(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Each file may be within its limit, and a small one may give a large frame."""
    out, run = tmp_path / "out", sweep.runs[0]
    size = sum(file.stat().st_size for end in ("json", "parquet") for file in out.rglob(f"*.{end}"))
    frames = {name: Results(out, trusted=False).frame(name) for name in FRAMES}
    assert max(frame.estimated_size() for frame in frames.values()) < 20_000 < size
    monkeypatch.setattr("sparsity_lab.sweeps.results._MOST_FOREIGN", size)
    for name in FRAMES:
        assert_frame_equal(Results(out, trusted=False).frame(name), frames[name])
    (out / run.id / "evaluation" / "more.parquet").write_bytes(b"x")
    with pytest.raises(SettingError, match=f"at most {size} bytes in total from someone else's folder, got "):
        Results(out, trusted=False)
    assert cli.run(["report", str(out), "--untrusted"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert Results(out).frame().equals(frames["evaluation"])
    folder = Results(out)
    folder.trusted = False
    monkeypatch.setattr("sparsity_lab.sweeps.results._MOST_FOREIGN", 1000)
    for name in ("evaluation", "metrics"):
        with pytest.raises(SettingError, match="expected at most 1000 bytes in total"):
            folder.frame(name)


def test_configs_are_bounded_in_all(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no file lists the runs."""
    out = tmp_path / "out"
    (out / "sweep.json").unlink()
    size = sum((out / run.id / "config.json").stat().st_size for run in sweep.runs)
    for most, fits in ((size, True), (size - 1, False)):
        monkeypatch.setattr("sparsity_lab.sweeps.results._MOST_FOREIGN_SWEEP", most)
        assert len(Results(out).runs) == 2
        if fits:
            assert len(Results(out, trusted=False).runs) == 2
        else:
            with pytest.raises(SettingError, match=rf"at most {most} bytes of config\.json in total"):
                Results(out, trusted=False)


def test_whatever_a_file_holds_the_reader_goes_on() -> None:
    """Bytes are changed, cut and doubled under a process that parses them, which some of them end."""
    content, numbers, parse = parquet(small_frame()), random.Random(0), FrameProcess()
    outcomes = set()
    for _ in range(300):
        at = numbers.randrange(len(content))
        changed = content[:at] + numbers.randbytes(numbers.randrange(4)) + content[at + numbers.randrange(4) :]
        try:
            outcomes.add(parse(Path("file"), changed, SCHEMA, 3).height)
        except DamagedFile as error:
            outcomes.add(str(error).split(":")[0])
    assert_frame_equal(parse(Path("file"), content, SCHEMA, 3), small_frame())
    assert "file is no frame" in outcomes


PARSERS = {
    "one that aborts": "os.abort()",
    "one that fills the memory": "bytearray(2**34)",
    "one that ends": "sys.exit(0)",
    "one that stops in the middle": "os.write(int(sys.argv[1]), b'\\0\\0\\0\\x63ab'), os._exit(0)",
    "one that never ends": "time.sleep(1000)",
}


@pytest.mark.parametrize("how", PARSERS)
def test_a_file_that_ends_its_parser_is_damaged_and_the_next_one_is_read(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(parsing_process.__file__).read_text()
    source = source.replace("SECONDS = 30", "SECONDS = 1").replace("import json\n", "import json, os, time\n", 1)
    begin = "    try:\n        frame ="
    assert source.count(begin) == 1
    script = tmp_path / "script.py"
    script.write_text(source.replace(begin, f"    if content == b'bad':\n        {PARSERS[how]}\n{begin}"))
    monkeypatch.setattr(parsing_process, "__file__", str(script))
    parse, content = FrameProcess(), parquet(small_frame())
    for _ in range(2):
        assert_frame_equal(parse(Path("good"), content, SCHEMA, 3), small_frame())
        with pytest.raises(DamagedFile, match="bad ended the process that parsed it"):
            parse(Path("bad"), b"bad", SCHEMA, 3)


def test_both_parsers_name_the_same_faults() -> None:
    content = parquet(small_frame())
    for parse in (parse_frame, FrameProcess()):
        for schema, most, words in (
            (SCHEMA, 2, "has more than 2 rows"),
            (pl.Schema({**SCHEMA, "more": pl.Int64()}), 3, "has other columns: more is missing, not Int64"),
            (pl.Schema({**SCHEMA, "real": pl.Int64()}), 3, "has other columns: real is Float64, not Int64"),
            (pl.Schema(dict(reversed(SCHEMA.items()))), 3, "has other columns: their order differs"),
        ):
            with pytest.raises(DamagedFile, match=f"file {words}"):
                parse(Path("file"), content, schema, most)
        with pytest.raises(DamagedFile, match="file is no frame"):
            parse(Path("file"), b"nothing", SCHEMA, 3)


def test_other_columns_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them in a small file take as much room as a thousand times the rows."""
    monkeypatch.setattr(pl, "read_parquet", lambda *_, **__: pytest.fail("made"))
    many = small_frame().with_columns(pl.lit(0).alias(f"column {i}") for i in range(1000))
    with pytest.raises(DamagedFile, match="has other columns: column 0 is Int32, not to be there"):
        parse_frame(Path("file"), parquet(many), SCHEMA, 3)
