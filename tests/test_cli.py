"""The command line: outcomes as JSON, and every bad input in one line with exit code 2 and nothing written."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

import sparsity_lab
from sparsity_lab import cli
from sparsity_lab.cli import certify
from sparsity_lab.cli.certify import certify_text
from sparsity_lab.cli.output import progress_bar
from sparsity_lab.generators import Parity, Planted, TextBytes
from sparsity_lab.settings.setting import _registry
from sparsity_lab.studies import demo
from sparsity_lab.sweeps.config_file import load_sweep


def lab(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(arguments)
    told = capsys.readouterr()
    return code, told.out, told.err


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """The one JSON document on standard output."""
    got, out, err = lab(capsys, *arguments, "--json")
    assert got == code, err
    return json.loads(out)


BAD = [
    (("sampl",), "command: expected a command (one of bench, certify, decide, demo,"),
    ((), "command: missing; give a command (one of bench,"),
    (("sample",), "task: missing; this argument is required"),
    (("sample", "Planted", "--lenght", "3"), "--lenght: expected an option of sparsity-lab sample"),
    (("sample", "Planted", "--length", "x"), "--length: expected a whole number, got 'x'"),
    (("sample", "Planted", "--length"), "--length: missing value"),
    (("sample", "Planted", "--count", "0"), "--count: expected at least 1, got 0"),
    (("demo", "--size", "big"), "--size: expected a choice (one of smoke, small, full), got 'big'"),
    (("--json", "list"), "--json: options come after the command; give a command first (one of bench,"),
    (("sample", "--lenght", "3", "Planted"), "--lenght: expected an option of sparsity-lab sample"),
    (("sample", "Planted", "--seed=abc"), "--seed: expected a whole number, got 'abc'"),
    (("train", "--task", "Planted", "--seed", "x"), "--seed: expected a whole number, got 'x'"),
    (("certify", "Planted", "--lengths", "12", "x"), "--lengths: expected a whole number, got 'x'"),
    (("certify", "Planted", "--lengths"), "--lengths: give at least one length"),
    (("certify", "Planted", "--lengths", "12", "2"), "length: expected at least 3 for Planted(), got 2"),
    (
        ("certify", "Planted", "--effort", "quik"),
        "effort: expected an effort (one of quick, default, thorough), got 'quik'; did you mean 'quick'?",
    ),
    (("certify", "--all", "--workers", "0"), "workers: expected at least 1, got 0"),
    (("certify", "Planted", "--workers", "-1"), "workers: expected at least 1, got -1"),
    (("certify", "Planted", "--seeds", "0"), "seeds: expected at least 1, got 0"),
    (("certify", "Planted", "--first"), "--first: this option needs --all"),
    (("certify", "Planted", "--seed", "1.5"), "--seed: expected a whole number, got '1.5'"),
    (("sample", "Planted(k={[1]})"), "task.k: expected a task such as"),
    (("sample", "Planted(k={1:[2], **x})"), "task.k: expected names in quotes, or whole numbers, as keys, got **"),
    (("sample", "Planted(k=1, k=2)"), "task.k: given twice"),
    (("sample", f"Planted(k={'-' * 5000}1)"), "task: expected a task such as"),
    (("sample", "Planted", "--count", "2000000000"), "--count: expected at most 100000000 tokens in total"),
    (("sample", "Planted", "--length", "2000000000"), "--length: expected at most 100000000 tokens in total"),
    (
        ("train", "--task", "Planted", "--evaluation", "Evaluation(conditions={[1]: Planted()})"),
        "evaluation.conditions: expected names in quotes, or whole numbers, as keys, got [1]",
    ),
    *(
        (("train", "--task", task, "--model", model), message)
        for task, model, message in [
            ("Planted", "Decoder(num_layers=1099511627776)", "model.num_layers: expected at most 4194304"),
            ("Planted", "Decoder(kernel=AdaptiveSparse(rank=99999))", "model.kernel.rank: expected at most 65536"),
            ("Planted", "Decoder(num_layers=5000)", "model.num_layers: expected at most 4096, got 5000"),
            ("Planted", "Decoder(d_model=1048576)", "model: expected a decoder of at most 17,179,869,184"),
            (
                "Planted",
                "Decoder(d_ff=4194304, d_model=4096)",
                "model: expected a decoder of at most 17,179,869,",
            ),
            (
                "Planted",
                "Decoder(position=Learned(size=1000000000))",
                "model.position.size: expected at most 419",
            ),
            (
                "Planted(k=9223372036854775807)",
                "Decoder()",
                "task.k: expected at most 4194304",
            ),
            (
                "Mixture(tasks=(Planted(k=9223372036854775807),))",
                "Decoder()",
                "task.tasks[0].k: expected at most",
            ),
        ]
    ),
    *(
        (("train", "--task", "Planted", f"--{name}", text), message)
        for name, text, message in [
            (
                "training",
                "Training(batch_size=8000000)",
                "training.batch_size: expected at most 67108864 tokens",
            ),
            ("training", "Training(batch_size=2000000000)", "training.batch_size: expected at most 67108864, got"),
            ("training", "Training(threads=1000000)", "training.threads: expected at most 1024, got 1000000"),
            ("training", "Training(device='cuda:128')", "training.device: expected cpu, cuda or cuda:N, got"),
            ("training", "Training(device='cuda:١')", "training.device: expected cpu, cuda or cuda:N, got"),
            (
                "evaluation",
                "Evaluation(lengths=[16, 1099511627776])",
                "evaluation.lengths[1]: expected at most",
            ),
            (
                "evaluation",
                "Evaluation(sequences=1099511627776)",
                "evaluation.sequences: expected at most",
            ),
        ]
    ),
    (("sample", "Planted(vocab_size=1000000000)"), "task.vocab_size: expected at most 4194304, got 1000000000"),
    (
        ("sample", "Planted(k=99999)", "--length", "99999"),
        "length: the tables have (k + 1) (positions + 1)",
    ),
    (("certify", "Planted", "--sequences", "2000000000"), "sequences: expected at most 1000000000 tokens at each"),
    (("certify", "Planted", "--lengths", "2000000000"), "length: the tables have (k + 1) (positions + 1)"),
    (("certify", "Copy()", "--lengths", "2000000000"), "sequences: expected at most 1000000000 tokens at each"),
    (("certify", "Addition(base=4194304)"), "sequences: expected at most 1000000000 probabilities of tokens at each"),
    (("certify", "--all", "--workers", "2000000000"), "workers: expected at most 1024, got 2000000000"),
    (("demo", "--workers", "2000000000"), "workers: expected at most 1024, got 2000000000"),
    (("sweep", "g.TOML"), "g.TOML: No such file"),
    (("list", "--import", "no_such"), "--import: cannot import 'no_such': No module"),
    (("list", "--import", ""), "--import: cannot import '': Empty module name"),
    (("sample", "Plantd"), "task.kind: expected a task (one of"),
    (("sample", "Planted(localty=Recent())"), "task.localty: expected a field of Planted"),
    (("sample", "Planted(locality=Recnt())"), "task.locality.kind: expected a law"),
    (("sample", "Planted(rule=Xor())"), "task.rule.kind: expected a rule"),
    (("sample", "Planted(k=9)", "--length", "8"), "length: expected at least 9"),
    (
        ("certify", "Planted(k=9, locality=Window(width=8))"),
        "task.locality.width: expected enough room for k=9, got 8",
    ),
    (
        ("certify", "Planted(k=40, marking='position')"),
        "task.reference_length: expected at least k=40 positions, got 32",
    ),
    (("certify", "Planted(noise=0.7)"), "task.noise: expected a number from 0 to 1 - 1/2 = 0.5, got 0.7"),
    (("certify", "Planted(vocab_size=3)"), "task.vocab_size: expected a vocabulary of at least 5"),
    (("certify", "Planted(marking='position', locality=Window())"), "task.locality: expected a law that fixes"),
    (("certify",), "task: give a task or --all"),
    (("certify", "Planted", "--sequences", "5"), "sequences: expected a whole number of at least 1000, got 5"),
    (("train",), "task: missing; RunConfig requires it"),
    (("train", "--task", "Planted", "--model", "Decoder(kernel=Sotfmax())"), "model.kernel.kind: expected a kernel"),
    (("train", "--task", "Planted(k=12)"), "training.curriculum: expected at least 12"),
    (("train", "--task", "Planted", "--model", "Decoder(position=Learned(size=20))"), "model.position"),
    (("train", "--task", "Planted(coupled=True)"), "model.coupling: task has coupled IDs but model.coupling is None"),
    (
        ("train", "--task", "Addition", "--model", "Decoder(coupling=Predicted(max_id=193))"),
        "model.coupling.max_id: expected at least 194, the task's largest position ID, got 193",
    ),
    (
        ("train", "--task", "Planted", "--model", "Decoder(index_sampling=PoSE())"),
        "model.index_sampling.target: missing; PoSE requires it",
    ),
    (("train", "no.toml"), "no.toml: No such file"),
    (("train", "no.yaml"), "no.yaml: expected a file that ends in .toml or .json, got '.yaml'"),
    (("sweep", "nothing"), "study: expected a file that ends in .py or a folder with a study.py"),
    (("decide", "nothing", "--budget", "5"), "study: expected a file that ends in .py or a folder with a study.py"),
    (("decide", "experiments/k_locality"), "--budget: missing; give core-minutes, as in --budget 60"),
    (("bench", "nothing"), "benchmark: expected a benchmark"),
    (
        ("train", "--config", "x.toml"),
        "--config: expected an option of sparsity-lab train (one of --json, --import, --task,",
    ),
    (("list", "laws"), "family: expected a family"),
    (("report", "no/such/folder"), "folder: no/such/folder is not a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments)[:60] for arguments, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = lab(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith(f"sparsity-lab: {message}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[" * 100_000, "invalid JSON: "),
        ("a.toml", f"task = {'[' * 100_000}", "invalid TOML: "),
        ("a.json", '{"task": {"kind": ["Planted"]}}', "task.kind: expected a task (one of"),
        ("a.json", '{"task": "Planted", "task": "Planted"}', "a.json.task: given twice"),
        ("a.JSON", '{"task": ', "invalid JSON: "),
        ("a.toml", "task = \n", "invalid TOML: "),
        ("a.toml", 'task = "Planted"'.encode("utf-16"), "a.toml: expected text in UTF-8, got another encoding"),
        ("a.json", '{"task": ', "invalid JSON: "),
        ("a.json", "[1]", "expected a table of fields, got 'list'"),
        ("a.toml", 'task = "Planted"\ntraning = "Training"\n', "traning: expected a field of RunConfig"),
        ("a.toml", 'task = "Planted(k=0)"\n', "task.k: expected a whole number of at least 1, got 0"),
        (
            "a.toml",
            'task = "Planted"\n[training]\nsteps = "many"\n',
            "training.steps: expected an integer, got 'many'",
        ),
    ],
)
def test_bad_run_files(
    name: str, text: str | bytes, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    code, _, err = lab(capsys, "train", str(tmp_path / name), "--out", str(tmp_path / "runs"))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[base]\ntask = "Planted"\n[grid]\n"task.locl" = ["Uniform()"]\n', "task.locl: expected a field of Planted"),
        ('[base]\ntask = "Planted"\n[grid]\n"task.k" = 3\n', "task.k: expected a list of values, got 3"),
        (
            '[base]\ntask = "Planted"\n[grid]\ntask.k = [1, 2]\n',
            'grid.task: expected a list of values (under [grid], quote a path, as in "task.k" = [..])',
        ),
        ('[base]\ntask = "Planted"\n[grid.task]\nk = [1, 2]\n', "as in \"task.k\" = [..]), got {'k': [1, 2]}"),
        (
            '[base]\ntask = "Planted"\n[grid]\ntask.locality.width = [1, 2]\n',
            'grid.task: expected a list of values (under [grid], quote a path, as in "task.locality.width" = [..])',
        ),
        (
            '[base]\ntask = "Planted"\n[grid.parent.task.locality]\nwidth = [1, 2]\n',
            'quote a path, as in "parent.task.locality.width" = [..])',
        ),
        ("[base]\ntask = Planted(k=2)  # two\n", '(at line 2, column 8); write task = "Planted(k=2)"'),
        ("[base]\ntask = Planted\n", '(at line 2, column 8); write task = "Planted"'),
        (
            "[base]\ntask = Planted(locality=Recent(width=8), marking='cue')\n",
            "; write task = \"Planted(locality=Recent(width=8), marking='cue')\"",
        ),
        ('[base]\ntask = "Planted"\nadapter = None\n', '(at line 3, column 11); write adapter = "None"'),
        ('[base]\ntask = "Planted"\n[base.model]\noutput_gate = True\n', "; write output_gate = true"),
        ('[base]\ntask = "Planted"\n[base.evaluation]\nlengths = (8, -16, .5)\n', "; write lengths = [8, -16, 0.5]"),
        (
            '[base]\ntask = "Planted"\n[grid]\n"task.locality" = [Uniform(), "Window(width=8)"]\n',
            '; write "task.locality" = ["Uniform()", "Window(width=8)"]',
        ),
        ('[base]\ntask = "Planted"\n[grid]\n"task.locality" = [\n  Uniform(),\n]\n', '; write "Uniform()"'),
        ('[base]\ntask = "Planted"\n[base.training]\ndevice = cuda\n', '; write device = "cuda"'),
        ("[base]\ntask = C:\\logs\n", "(at line 2, column 8)"),
        ('[base]\ntask = "Planted"\ntask.k = 3\n', "invalid TOML: Cannot"),
        ('[base]\ntask = "None"\n', "base.task: expected a task"),
        ('[base]\ntask = "Planted"\n[grd]\n"task.k" = [3]\n', "grd: expected a field of a sweep made by a grid"),
        ('[base]\ntask = "Plantd"\n', "base.task.kind: expected a task"),
        ('name = "x"\nruns = []\n', "runs: expected at least one run"),
    ],
)
def test_bad_sweep_files(text: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    code, _, err = lab(capsys, "sweep", str(tmp_path / "s.toml"), "--out", str(tmp_path / "runs"))
    assert (code, message in err, err.count("\n")) == (2, True, 1), err
    assert not (tmp_path / "runs").exists()


def test_a_mark_and_none_are_understood(tmp_path: Path) -> None:
    """Of editors that begin a file with a mark; and TOML has no word for None."""
    text = '\ufeff[base]\ntask = "Planted"\nadapter = "None"\n[grid]\n"model.vocab_size" = ["None", 16]\n'
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    runs = load_sweep(tmp_path / "s.toml").runs
    assert [run.adapter for run in runs] == [None, None]
    assert [run.model.vocab_size for run in runs] == [None, 16]  # type: ignore[attr-defined]
    assert TextBytes(path="None").path == "None"  # of a field that holds texts, it is one


def test_a_file_where_the_folder_should_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    code, _, err = lab(capsys, "train", "--task", "Planted", "--out", str(tmp_path / "taken"))
    assert code == 2
    assert err.startswith("sparsity-lab: out: cannot make the folder")
    assert (tmp_path / "taken").read_text() == "mine"


def test_sample_says_what_the_generator_made(capsys: pytest.CaptureFixture[str]) -> None:
    data = document(capsys, "sample", "Planted(k=2)", "--length", "8", "--count", "3")
    for tokens, targets, sources in zip(data["tokens"], data["targets"], data["sources"], strict=True):
        assert sum(tokens[place] for place in sources) % 2 == targets[-1]
    assert data["vocabulary"][-2:] == ["=", "BOS"]
    code, out, _ = lab(capsys, "sample", "Planted(k=2)", "--length", "8", "--count", "3")
    assert code == 0
    assert [line.count("[") for line in out.splitlines()] == [2, 2, 2]
    assert [line.split("→")[1].strip() for line in out.splitlines()] == [str(t[-1]) for t in data["targets"]]


def test_list_knows_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    data = document(capsys, "list")
    assert {"Planted", "SparseParity"} <= set(data["task"])
    assert "training" in data["benchmark"]
    assert all(doc for members in data.values() for doc in members.values())
    assert list(document(capsys, "list", "law")) == ["law"]


def test_certify_passes_and_fails_with_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = document(capsys, "certify", "Planted(k=2, noise=0.1)", "--sequences", "3000")
    assert [row["passed"] for row in data["certificates"]] == [True]
    monkeypatch.setattr(Parity, "define", lambda self, values, planted_vocab: values[0])
    data = document(capsys, "certify", "Planted(k=2)", "--sequences", "3000", code=1)
    assert data["certificates"][0]["failed_checks"] == ["rule"]
    code, out, _ = lab(capsys, "certify", "Planted(k=2)", "--sequences", "3000")
    assert (code, "no: rule" in out, "[bold red]" in out) == (1, True, False)


def test_certify_at_lengths_of_ones_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(certify, "certify_text", lambda *given: seen.append(given) or certify_text(*given))
    document(capsys, "certify", "Planted(k=2)", "--sequences", "1000", "--lengths", "12", "40")
    assert seen == [("Planted(k=2)", 0, 1000, (12, 40), "default")]
    assert {length for length, _ in certify_text(*seen[0]).findings} == {12, 40}


def test_certificates_of_several_seeds_go_on_where_they_stopped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("certify", "Planted(k=1)", "--sequences", "1000", "--lengths", "6", "--effort", "quick")
    out = tmp_path / "certificates.csv"
    first = document(capsys, *wanted, "--seed=-1", "--seeds", "2", "--out", str(out), "--workers", "1")
    assert [row["seed"] for row in first["certificates"]] == [-1, 0]
    before = out.read_text()
    monkeypatch.setattr(certify, "certify_text", lambda *given: pytest.fail("made again"))
    again = document(capsys, *wanted, "--seed=-1", "--seeds", "2", "--out", str(out))
    assert [row["smallest_p"] for row in again["certificates"]] == [
        row["smallest_p"] for row in first["certificates"]
    ]
    assert out.read_text() == before
    other = before.replace("task,", "tisk,")
    for content in (b"something else\n1\n", b"\xff", before.encode() + b"\0", before.encode() + b'"', other.encode()):
        out.write_bytes(content)
        code, _, err = lab(capsys, *wanted, "--out", str(out))
        assert (code, err.count("\n")) == (2, 1)
        assert "was not written by this command" in err
        assert out.read_bytes() == content


OWN = """
from sparsity_lab.generators import First
from sparsity_lab.settings import register

@register
class OwnFirst(First):
    \"\"\"The first planted value, once more.\"\"\"
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory that registers a rule; forgotten after the test."""
    (tmp_path / "own_rules_for_this_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(_registry, "rule", dict(_registry["rule"]))
    monkeypatch.setitem(sys.modules, "own_rules_for_this_test", None)
    monkeypatch.delitem(sys.modules, "own_rules_for_this_test")
    return "own_rules_for_this_test"


def test_kinds_of_ones_own(capsys: pytest.CaptureFixture[str], own_module: str) -> None:
    assert "OwnFirst" not in document(capsys, "list", "rule")["rule"]
    assert "OwnFirst" in document(capsys, "list", "rule", "--import", "json", "--import", own_module)["rule"]
    assert document(capsys, "sample", "Planted(rule=OwnFirst())", "--import", own_module)["task"]


def test_worker_processes_know_them_too(own_module: str) -> None:
    command = certify.Certify(all=True, sequences=1000, modules=(own_module,))
    command.prepare()
    found = command._certificates([("Planted(rule=OwnFirst())", 0), ("Planted", 0)], Console(quiet=True))
    assert [str(certificate.task) for certificate in found] == ["Planted(rule=OwnFirst())", "Planted()"]


def test_a_module_that_registers_what_is_taken(capsys: pytest.CaptureFixture[str], own_module: str) -> None:
    Path(f"{own_module}.py").write_text(OWN.replace("OwnFirst", "Parity"))
    code, _, err = lab(capsys, "list", "--import", own_module)
    assert code == 2
    assert err.startswith("sparsity-lab: --import: cannot import")
    assert "the rule kind 'Parity' is taken" in err
    assert err.count("\n") == 1


QUICK = ("--training", "Training(steps=4)", "--evaluation", "Evaluation(lengths=[24, 48], sequences=32)")


def test_train_and_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    data = document(capsys, "train", "--task", "Planted(k=1)", *QUICK, "--seed", "3", "--out", out)
    assert data["status"] == "finished"
    assert data["config"]["data_seed"] == data["config"]["model_seed"] == 3
    assert [row["length"] for row in data["evaluation"]] == [24, 48]
    page = document(capsys, "report", out)["report"]
    assert "Planted(k=1)" in Path(page).read_text()


def test_a_run_that_diverges_is_a_bad_outcome(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    training = "Training(steps=30, learning_rate=1e30, clip=1e30, warmup=0.0, log_every=1)"
    data = document(
        capsys, "train", "--task", "Planted", QUICK[2], QUICK[3], "--training", training,
        "--out", str(tmp_path), code=1,
    )  # fmt: skip
    assert data["status"] == "diverged"
    assert data["step"] < 30


def test_a_report_that_cannot_be_written_leaves_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    document(capsys, "train", "--task", "Planted(k=1)", *QUICK, "--out", str(runs))
    before = sorted(tmp_path.rglob("*"))
    for arguments in (
        ("--picture", "/proc/p.png"),
        ("--picture", str(tmp_path / "no" / "p.png")),
        ("--out", "/proc/p.html"),
        ("--out", str(runs)),
    ):
        code, out, err = lab(capsys, "report", str(runs), *arguments)
        assert (code, out) == (2, "")
        option, file = arguments
        assert err.startswith(f"sparsity-lab: {option}: cannot write {file}: ")
        assert err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
    data = document(capsys, "report", str(runs), "--picture", str(tmp_path / "p.png"))
    assert Path(data["picture"]).read_bytes().startswith(b"\x89PNG")


def test_a_report_lists_what_is_not_finished(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path)
    first = document(capsys, "train", "--task", "Planted(k=1)", *QUICK, "--out", out)["run"]
    second = document(capsys, "train", "--task", "Planted(k=2)", *QUICK, "--out", out)["run"]
    (tmp_path / first / "finished.json").unlink()
    unfinished = document(capsys, "report", out, code=1)["unfinished"]
    assert [row["run"] for row in unfinished] == [first]
    (tmp_path / second / "finished.json").unlink()
    code, told, _ = lab(capsys, "report", out, "--picture", str(tmp_path / "p.png"))
    assert code == 1
    assert {f"{row['status']} {run}" for row in unfinished for run in (first, second)} <= set(told.splitlines())
    assert not (tmp_path / "p.png").exists()


def test_sweep_from_a_file_goes_on_where_it_was(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "sweep.TOML"
    file.write_text(
        'name = "tiny"\n'
        "[base]\n"
        f'task = "Planted"\ntraining = "{QUICK[1]}"\nevaluation = "{QUICK[3]}"\n'
        '[grid]\n"task.k" = [1, 2]\n"task.locality" = ["Uniform()", "Window(width=4)"]\nseed = [0]\n'
    )
    out = tmp_path / "runs"
    arguments = ("sweep", str(file), "--out", str(out), "--workers", "1", "--report")
    data = document(capsys, *arguments)
    assert data["runs"] == 4
    assert {row["arm"] for row in data["arms"]} == {
        f"k={k}, {law}" for k in (1, 2) for law in ("Uniform", "Window(width=4)")
    }
    assert (out / "report.html").exists()
    before = {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    document(capsys, *arguments)
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    assert len(before) == 4


def test_sweep_names_its_engine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(f'name = "one"\n[base]\ntask = "Planted"\ntraining = "{QUICK[1]}"\nevaluation = "{QUICK[3]}"\n')
    arguments = ("sweep", str(file), "--out", str(tmp_path / "runs"))
    assert document(capsys, *arguments, "--engine", "Serial()")["runs"] == 1
    for options, message in (
        (("--engine", "Seriel()"), "did you mean 'Serial'"),
        (("--engine", "RayEngine(cpus=0)"), "--engine.cpus: expected at least 0.0001, got 0"),
        (("--engine", "Serial()", "--workers", "2"), "--workers: give either --engine or --workers, not both"),
        (("--workers", "x"), "--workers: expected a whole number, got 'x'"),
        (("--workers", "0"), "workers: expected at least 1, got 0"),
    ):
        code, out, err = lab(capsys, *arguments, *options)
        assert (code, out) == (2, "")
        assert message in err


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    evaluation = {"lengths": [24, 48], "sequences": 32, "conditions": {"[/x]": "Planted(k=1)", ":x:": "Planted"}}
    file.write_text(json.dumps({"task": "Planted", "training": QUICK[1], "evaluation": evaluation}))
    code, out, err = lab(capsys, "train", str(file), "--out", str(tmp_path / "runs"))
    assert code == 0, err
    assert "[/x]" in out
    assert ":x:" in out
    code, out, err = lab(capsys, "report", str(tmp_path / "runs"))
    assert code == 0, err
    assert "[/x]" in out


def test_brackets_and_colons_in_progress_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(Console()) as progress:
        progress.console.print("[/x] [bold] :smile:")
    assert capsys.readouterr().err.strip() == "[/x] [bold] :smile:"


def test_demo_smoke(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = document(capsys, "demo", "--size", "smoke", "--out", str(tmp_path), "--workers", "1")
    assert Path(data["report"]).stat().st_size > 20_000
    assert {one["claim"] for one in data["claims"]} == {claim.statement for claim in demo.claims}
    page = Path(data["report"]).read_text(encoding="utf-8")
    assert all(claim.statement in page for claim in demo.claims)
    assert page.index("What is decided") < page.index("Extrapolation curves")


def test_bench_generators(capsys: pytest.CaptureFixture[str]) -> None:
    rows = pl.DataFrame(document(capsys, "bench", "generators")["rows"])
    assert (rows["million tokens/s"] > 0).all()
    assert rows["T"].to_list()[0] == 256


def test_help_and_the_installed_command(tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "sparsity-lab"
    environment = {**os.environ, "COLUMNS": "200"}
    told = subprocess.run([command, "--help"], capture_output=True, text=True, env=environment, check=True)
    assert "certify" in told.stdout
    told = subprocess.run(
        [command, "sample", "Planted(k=0)"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "sparsity-lab: task.k: expected a whole number of at least 1, got 0\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert lab(capsys, "--version") == (0, f"{sparsity_lab.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--count", "5000"),
        pytest.param(("--count", "5000", "--json"), marks=pytest.mark.slow),
        pytest.param(("--json",), marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_leaves_is_no_error(arguments: tuple[str, ...]) -> None:
    command = [Path(sys.executable).parent / "sparsity-lab", "sample", "Planted", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


SHOWN = [("--version",), ("--help",), *((name, "--help") for name in cli.COMMANDS)]
SHOWN += [(*command, *more) for command in [("list",), ("sample", "Planted")] for more in [(), ("--json",)]]
SHOWN += [("certify", "Planted(k=1)", "--sequences", "1000", "--lengths", "12")]


@pytest.mark.parametrize("arguments", SHOWN, ids=" ".join)
@pytest.mark.parametrize("full", [True, False], ids=["full", "closed"])
def test_output_that_cannot_be_written_is_no_success(
    arguments: tuple[str, ...], full: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full device is told in one line; a reader that left, who knows why, is told nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full" if full else writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            code: Any = cli.run(arguments)
        except SystemExit as stop:
            code = stop.code
        monkeypatch.undo()
    assert code == 1
    assert capfd.readouterr().err == ("sparsity-lab: [Errno 28] No space left on device\n" if full else "")


def test_a_full_device_ends_the_process_with_one_line() -> None:
    command = [Path(sys.executable).parent / "sparsity-lab", "list"]
    with open("/dev/full", "w") as full:
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (told.returncode, told.stderr) == (1, "sparsity-lab: [Errno 28] No space left on device\n")


def test_short_forms_of_tables_are_input_again() -> None:
    assert str(Planted(k=2)) == "Planted(k=2)"
