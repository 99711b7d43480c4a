"""Folders from elsewhere: what they hold is read as data, shown as text, and never executed."""

import ast
import io
import json
import pickle
import re
import shutil
import socket
from pathlib import Path

import polars as pl
import pytest
from training.small_runs import small_run
from training.test_train import contents

import sparsity_lab
from sparsity_lab import cli
from sparsity_lab.generators import Planted
from sparsity_lab.settings import SettingError, canonical_json
from sparsity_lab.settings.log import plain_logger
from sparsity_lab.sweeps import Results, Serial, Sweep, grid, overview, run_sweep
from sparsity_lab.training import Evaluation, Run, Status, status, store, train
from sparsity_lab.training.files import Writer
from sparsity_lab.training.folder import RunFolder

PACKAGE = Path(sparsity_lab.__file__).parent
EXECUTING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "torch.save", "torch.jit.load", "torch.package", "eval", "exec", "numpy.load", "np.load"}


def sources() -> list[tuple[str, ast.Module]]:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    return [(str(file.relative_to(PACKAGE)), ast.parse(file.read_text())) for file in files]


def executing(tree: ast.AST) -> list[str]:
    """Imports and calls that could execute what a file holds."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.split(".")[0] in EXECUTING]
                if found[-1:] == ["pickle"] and only_copies(tree):
                    found.pop()
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in EXECUTING:
                found.append(module)
            case ast.Call(func=func) if ast.unparse(func) in CALLS:
                # Without pickles, an array file is data.
                if "allow_pickle=False" not in [ast.unparse(word) for word in node.keywords]:
                    found.append(ast.unparse(func))
            case ast.keyword(arg="allow_pickle", value=value) if ast.unparse(value) != "False":
                found.append("allow_pickle")
    return found


def only_copies(tree: ast.AST) -> bool:
    """Whether pickles are made of an object in memory and read at once: ``pickle.loads(pickle.dumps(x))``."""
    used = [
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
    ]
    read = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "pickle.loads"
    ]
    at_once = [node for node in read if ast.unparse(node.args[0]).startswith("pickle.dumps(")]
    return bool(read) and len(at_once) == len(read) and len(used) == 2 * len(read)


def test_nothing_in_the_package_can_execute_a_file() -> None:
    assert [(name, found) for name, tree in sources() if (found := executing(tree))] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import pickle\npickle.loads(text)",
        "import pickle\npickle.loads(pickle.dumps(x))\npickle.load(file)",
        "from cloudpickle import dumps",
        "torch.load(file)",
        "np.load(file)",
        "eval(text)",
        "np.load(file, allow_pickle=True)",
        "read(allow_pickle=given)",
    ],
)
def test_the_scan_sees_what_it_looks_for(line: str) -> None:
    assert executing(ast.parse(line))


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


def test_pickles_in_place_of_a_runs_files_do_nothing(tmp_path: Path) -> None:
    out, hit = tmp_path / "out", tmp_path / "hit"
    attack = pickle.dumps(Attack(hit))
    pickle.loads(attack)
    assert hit.exists()
    hit.unlink()
    training = small_run().training.replace(checkpoint_every=4)
    sweep = Sweep(name="attacked", runs=grid(small_run(training=training), {"seed": [0]}))
    run = sweep.runs[0]
    for vouched in (False, True):
        run_sweep(sweep, out, Serial())
        before = contents(out)
        folder = out / run.id
        names = [str(file.relative_to(folder)) for file in folder.rglob("*.*")]
        names += ["checkpoint.safetensors", "trained.json", "failed.json"]
        for name in names:
            (folder / name).write_bytes(attack)
        if vouched:
            # An attacker can write checksums too.
            files = {name: store.digest(attack) for name in names}
            marker = store.Marker(status="finished", files=files)
            (folder / "finished.json").write_bytes(marker.to_json())
            (folder / "timing.sha256").write_text(store.digest(attack))
        assert status(run, out) is Status.BROKEN
        assert not Results(out).frame("evaluation").height
        with pytest.raises(SettingError):
            Run.load(folder)
        with pytest.raises(ValueError, match="."):
            Run(run, folder).model()
        assert cli.run(["report", str(out), "--out", str(tmp_path / "report.html")]) == 1
        assert cli.run(["sweep", "--status", str(out)]) in (0, 1)
        assert run_sweep(sweep, out, Serial()).failures == ()
        assert contents(out) == before
        assert not hit.exists()


def test_nonsense_in_one_folder_stops_no_reader(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep = Sweep(name="nonsense", runs=grid(small_run(), {"seed": [0, 1]}))
    run_sweep(sweep, out, Serial())
    folder, other = (out / run.id for run in sweep.runs)
    before = contents(out)
    frame = next((folder / "evaluation").iterdir())
    frame.write_bytes(b"no frame")
    marker = json.loads((folder / "finished.json").read_text())
    marker["files"][str(frame.relative_to(folder))] = store.digest(b"no frame")
    (folder / "finished.json").write_bytes(store.Marker(**marker).to_json())
    for name in ("failed.json", "environment.json"):
        (folder / name).write_text("[" * 200_000)
    (folder / "lease").mkdir()
    (folder / "lease" / "x").write_text('{"host": "far", "process": 1e999, "since": ""}')
    assert Results(out).frame("evaluation")["run"].unique().to_list() == [other.name]
    assert cli.run(["sweep", "--status", str(out)]) in (0, 1)
    (folder / "lease" / "x").unlink()
    run_sweep(sweep, out, Serial())
    assert contents(out) == before


OTHER_FRAMES = {
    "no frame": lambda _: b"no frame",
    "a column less": lambda frame: parquet(frame.drop(frame.columns[-1])),
    "a column more": lambda frame: parquet(frame.with_columns(new=1)),
    "another type": lambda frame: parquet(frame.cast({frame.columns[-1]: pl.String})),
    "another order": lambda frame: parquet(frame.select(reversed(frame.columns))),
}
"""Under checksums that say they are what was written: of another release, or forged."""


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("other", OTHER_FRAMES)
def test_frame_of_another_release_is_named_and_made_again(
    tmp_path: Path, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = Sweep(name="other", runs=grid(small_run(), {"seed": [0, 1]}))
    run_sweep(sweep, tmp_path, Serial())
    before = contents(tmp_path)
    folder = tmp_path / sweep.runs[0].id
    evaluation = store.evaluation_file(sweep.runs[0])
    # In both frames first, so that metrics are found to be at fault; then in the evaluation alone.
    for names, found in ((("metrics.parquet", evaluation), Status.BROKEN), ((evaluation,), Status.UNEVALUATED)):
        marker = json.loads((folder / "finished.json").read_bytes())
        for name in names:
            content = OTHER_FRAMES[other](pl.read_parquet(folder / name))
            (folder / name).write_bytes(content)
            marker["files"][name] = store.digest(content)
        del marker["digest"]
        (folder / "finished.json").write_bytes(store.Marker(**marker).to_json())
        caplog.clear()
        for frame in ("evaluation", "summary"):
            assert Results(tmp_path).frame(frame)["run"].unique().to_list() == [sweep.runs[1].id]
        assert len(caplog.messages) == 2
        assert caplog.messages[0].startswith(f"{folder / evaluation} ")
        told = overview(Results(tmp_path))
        assert told.counts == {"finished": 1, found.value: 1}
        assert told.damaged[0][1].startswith(f"{folder.name}/{names[0]} ")
        assert run_sweep(sweep, tmp_path, Serial()).failures == ()
        assert contents(tmp_path) == before


def test_words_of_a_folder_leave_the_terminal_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(name="a\x1b[2Jb", runs=[small_run()])
    (tmp_path / "sweep.json").write_text(canonical_json(sweep))
    folder = tmp_path / sweep.runs[0].id
    folder.mkdir()
    (folder / "failed.json").write_text(json.dumps({"reason": "red \x1b[31m\n[bold]second line"}))
    for command in (["sweep", "--status", str(tmp_path)], ["report", str(tmp_path)]):
        assert cli.run(command) == 1
        told = capsys.readouterr().out
        assert "\x1b" not in told
        assert "red \\x1b[31m\\n[bold]second line" in told


EVIL = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202eb\u2066c\u200fd\u2028e"


def test_names_steer_neither_a_terminal_nor_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Planted(k=1, vocab_size=8)  # of two conditions, figures show the names
    evaluation = small_run().evaluation.replace(conditions={EVIL: task, f"{EVIL}2": task.replace(noise=0.1)})
    base = small_run(task=Planted(k=1, vocab_size=8), evaluation=evaluation)
    sweep = Sweep(name=EVIL, runs=grid(base, {"seed": [0, 1]}))
    file, out = tmp_path / "sweep.json", tmp_path / "out"
    file.write_text(canonical_json(sweep))
    page = tmp_path / "report.html"
    for command in (
        ["sweep", str(file), "--out", str(out)],
        ["sweep", "--status", str(out)],
        ["report", str(out), "--out", str(page), "--picture", str(tmp_path / "picture.png")],
        ["train", str(out / sweep.runs[0].id / "config.json"), "--out", str(out)],
    ):
        assert cli.run(command) == 0
        told = capsys.readouterr()
        assert not {*told.out, *told.err} & set(EVIL) - set("a[2J]0;title31mbcde")
    written = page.read_text()
    assert not set(written) & set(EVIL) - set("a[2J]0;title31mbcde")
    assert "\\x1b[2J" in written
    for figure in (repr(sweep.runs[0]), sweep.runs[0]._repr_html_(), Results(out)._repr_html_()):
        assert not set(figure) & set(EVIL) - set("a[2J]0;title31mbcde")


def test_lines_of_the_log_steer_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    """Every module of the package gets its logger in one way, which writes out what steers."""
    own = [name for name, tree in sources() if "getLogger" in ast.unparse(tree)]
    assert own == ["settings/log.py"]
    users = [name for name, tree in sources() if "plain_logger(__name__)" in ast.unparse(tree)]
    assert set(users) == {"kernels/parts/compiler.py", "sweeps/results.py", "training/optimize.py", "training/run.py"}
    for name in users:
        log = plain_logger(f"sparsity_lab.{name.removesuffix('.py').replace('/', '.')}")
        for _ in range(2):
            log.warning("%s of %d", EVIL, 3)
            log.warning(EVIL + "%")
        assert len(log.filters) == 1
    assert len(caplog.messages) == 4 * len(users)
    assert all(line.isprintable() and line.startswith("a\\x1b[2J") for line in caplog.messages)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e300])
def test_clocks_that_show_no_time_are_lost(
    tmp_path: Path, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_run(), tmp_path)
    clocks = run.timing.with_columns(seconds=pl.lit(seconds))
    (run.folder / "timing.parquet").write_bytes(parquet(clocks))
    (run.folder / "timing.sha256").write_text(store.digest(parquet(clocks)))
    (run.folder / "lease").mkdir()
    assert Results(tmp_path).timing(run.config).is_empty()
    assert cli.run(["sweep", "--status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("1 run: 1 finished")
    assert "NaN" not in "".join(file.read_text() for file in tmp_path.glob("verified.json"))


@pytest.mark.parametrize("step", [-1, 2**63])
def test_step_that_is_none_is_a_damaged_marker(tmp_path: Path, step: int) -> None:
    run = train(small_run(), tmp_path)
    marker = RunFolder(run.folder).marker
    assert marker is not None
    for given, found in ((3, "diverged"), (step, "broken")):
        record = {"status": "diverged", "files": marker.files, "step": given, "loss": "nan", "reason": "?"}
        content = store.json_bytes({**record, "digest": store.digest(store.json_bytes(record))})
        (run.folder / "finished.json").write_bytes(content)
        assert Results(tmp_path).frame("runs")["status"].to_list() == [found]


def test_other_clocks_are_lost_and_no_fault(tmp_path: Path) -> None:
    run = train(small_run(), tmp_path)
    content = parquet(pl.DataFrame({"seconds": ["many"]}))
    (run.folder / "timing.parquet").write_bytes(content)
    (run.folder / "timing.sha256").write_text(store.digest(content))
    assert Results(tmp_path).frame("timing").height == 0
    assert overview(Results(tmp_path)).counts == {"finished": 1}


def test_names_from_a_config_are_text_in_a_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    evaluation = Evaluation(lengths=(4, 8, 16), sequences=16, conditions={evil: small_run().task})
    results = run_sweep(Sweep(name=evil, runs=[small_run(evaluation=evaluation)]), tmp_path, Serial())
    assert cli.run(["report", str(tmp_path), "--title", evil]) == 0
    page = (tmp_path / "report.html").read_text()
    for shown in (page, results._repr_html_()):
        assert "<script>alert" not in shown
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown


def test_folder_copied_elsewhere_is_the_same(tmp_path: Path) -> None:
    sweep = Sweep(name="moved", runs=grid(small_run(), {"task.k": [1, 2], "seed": [0, 1]}))
    results = run_sweep(sweep, tmp_path / "here", Serial())
    pages = []
    for place in ("here", "far/away"):
        if place != "here":
            shutil.copytree(tmp_path / "here", tmp_path / place)
            shutil.rmtree(tmp_path / "here")
        assert cli.run(["report", str(tmp_path / place)]) == 0
        # The command that it shows names the folder.
        pages.append((tmp_path / place / "report.html").read_text().replace(str(tmp_path / place), "FOLDER"))
        frames = {name: Results(tmp_path / place).frame(name) for name in ("runs", "evaluation", "summary", "timing")}
        if place == "here":
            before = frames
    assert pages[0] == pages[1]
    assert all(frames[name].equals(before[name]) for name in frames)
    assert Run.load(tmp_path / "far/away" / sweep.runs[0].id).model()
    assert results.sweep == Results(tmp_path / "far/away").sweep
    # Nothing in a run says where it lay.
    for file in (tmp_path / "far").rglob("*.json"):
        assert str(tmp_path) not in file.read_text()
        assert socket.gethostname() not in file.read_text() or file.name == "environment.json"


def test_every_run_says_where_it_was_made(tmp_path: Path) -> None:
    diverging = small_run().training.replace(learning_rate=1e30, warmup=0.0, clip=1e30)
    child = small_run(parent=small_run(), data_seed=1)
    sweep = Sweep(name="recorded", runs=[small_run(data_seed=2), small_run(training=diverging), child])
    run_sweep(sweep, tmp_path, Serial())
    folders = [file.parent for file in tmp_path.glob("*/finished.json")]
    assert len(folders) == 4
    for folder in folders:
        record = json.loads((folder / "environment.json").read_bytes())
        assert {"torch", "numpy", "polars", "safetensors", "sparsity-lab"} <= record["packages"].keys()
        assert (record["device"], record["threads"]) == ("cpu", 1)
        assert record["python"]
        assert record["platform"]
        # Of a copy outside a checkout there is none to know.
        assert record["git_commit"] is None or re.fullmatch("[0-9a-f]{40}", record["git_commit"])
        assert (record["git_commit"] is None) == (record["git_modified"] is None)


def test_lost_environment_is_no_fault(tmp_path: Path) -> None:
    run = train(small_run(), tmp_path)
    (run.folder / "environment.json").unlink()
    assert status(run.config, tmp_path) is Status.FINISHED


PLACES = ["run", "evaluation", "lease", "config.json", "finished.json", "metrics.parquet", "failed.json", "parent"]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_a_link_in_a_store_reaches_nothing_outside(tmp_path: Path, place: str, finished: bool) -> None:
    """Files of another store lie where the link leads, with all that would be read, overwritten or removed there."""
    sweep = Sweep(name="links", runs=[small_run(parent=small_run(data_seed=3))])
    run, parent = sweep.runs[0], sweep.runs[0].parent
    assert parent is not None
    out, precious = tmp_path / "out", tmp_path / "precious"
    run_sweep(sweep, out, Serial())
    before = contents(out)
    shutil.copytree(out / run.id, precious)
    # What a killed process of this machine leaves, and what its successor removes.
    gone = Writer.here().mark().split(".")
    mark = ".".join([gone[0], "999999", "1", gone[3]])
    (precious / f".rows.{mark}.tmp").write_text("precious")
    (precious / mark).write_text('{"host": "here", "process": 999999, "since": ""}')
    (precious / "evaluation" / f".frame.{mark}.tmp").write_text("precious")
    kept = {str(file.relative_to(precious)): file.read_bytes() for file in precious.rglob("*") if file.is_file()}
    link = {"run": out / run.id, "parent": out / parent.id}.get(place, out / run.id / place)
    if not finished:
        (out / run.id / "finished.json").unlink()
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(precious if place in ("run", "parent", "lease") else precious / place)
    results = Results(out, sweep)
    results.frame("evaluation")
    overview(results)
    cli.run(["sweep", "--status", str(out)])
    cli.run(["report", str(out), "--out", str(tmp_path / "report.html")])
    failures = run_sweep(sweep, out, Serial()).failures
    # A run's own folder is not ours to replace; all else is repaired.
    if place == "run":
        assert "Symbolic links are not followed" in failures[0].reason
    elif place == "parent":
        assert [failure.reason for failure in failures] == [f"its parent {parent.id} failed"] * (not finished)
    else:
        assert failures == ()
        assert contents(out) == before
    now = {str(file.relative_to(precious)): file.read_bytes() for file in precious.rglob("*") if file.is_file()}
    assert now == kept


@pytest.mark.parametrize("name", ["", "nothing"])
def test_links_in_place_of_all_files_reach_nothing_outside(tmp_path: Path, name: str) -> None:
    """For every command that reads or writes a store; the links lead to the files of another one, or to no file."""
    sweep = Sweep(name="links", runs=[small_run(parent=small_run(data_seed=3))])
    out, precious, file = tmp_path / "out", tmp_path / "precious", tmp_path / "sweep.json"
    file.write_text(canonical_json(sweep))
    run_sweep(sweep, out, Serial())
    before = contents(out)
    names = {one.relative_to(out) for one in out.rglob("*") if one.is_file()}
    more = ("rules.json", "verified.json", "report.html", "report_explorer.html")
    run = out / sweep.runs[0].id
    names |= {Path(one) for one in more} | {Path(run.name) / one for one in (store.CHECKPOINT, store.FAILED)}
    shutil.copytree(out, precious)
    kept = {one: one.read_bytes() for one in precious.rglob("*") if one.is_file()}
    assert len(kept) > 15
    for one in names:
        (out / one).unlink(missing_ok=True)
        (out / one).symlink_to(precious / one.with_name(one.name + name))
    look = (["sweep", "--status", str(out)], ["report", str(out)], ["report", str(out), "--untrusted"])
    for command in (*look, ["report", str(out), "--relabel"]):
        assert cli.run(command) == 2
    write = ["sweep", str(file), "--out", str(out), "--engine", "Serial()"]
    for command in (write, *look, ["train", str(run / "config.json"), "--out", str(out)]):
        assert cli.run(command) == 0
    assert {one: content for one, content in contents(out).items() if not one.endswith(".html")} == before
    assert {one: one.read_bytes() for one in precious.rglob("*") if one.is_file()} == kept


def test_the_folder_that_the_user_names_may_be_a_link(tmp_path: Path) -> None:
    sweep = Sweep(name="linked", runs=[small_run()])
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert run_sweep(sweep, tmp_path / "out", Serial()).failures == ()
    assert Results(tmp_path / "out").frame("evaluation").height
    (tmp_path / "run").symlink_to(tmp_path / "out" / sweep.runs[0].id)
    assert Run.load(tmp_path / "run").config == sweep.runs[0]
    assert (tmp_path / "disk" / sweep.runs[0].id / "finished.json").is_file()


@pytest.mark.parametrize("name", ["../up", "/abs", "..", ".", "", "a/b", "a\\b", "a\x00b", "a\nb", "a\x1bb"])
def test_a_sweeps_name_leads_out_of_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    data = json.loads(canonical_json(Sweep(name="x", runs=[small_run()])))
    (tmp_path / "sweep.json").write_text(json.dumps({**data, "name": name}))
    assert cli.run(["sweep", "../sweep.json"]) == 2
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["inner", "sweep.json"]
