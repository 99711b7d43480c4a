"""Runs on a text: its hash is a field from the plan on, and nothing that reads a store opens it."""

import shutil
from pathlib import Path

import pytest

from sparsity_lab.analysis import explore, write_report
from sparsity_lab.generators import TextBytes
from sparsity_lab.models import Decoder
from sparsity_lab.settings import SettingError, canonical_json
from sparsity_lab.studies import Arm, seeded
from sparsity_lab.sweeps import Results, Serial, Sweep, grid, run_sweep
from sparsity_lab.training import Evaluation, FixedLength, Run, RunConfig, Training, status, train

BOOK = "".join(f"Line {i} of a book, and {i * i % 97}.\n" for i in range(400))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "book.txt").write_text(BOOK)
    return tmp_path / "book.txt"


def small(path: Path) -> RunConfig:
    return RunConfig(
        task=TextBytes(path=path),
        model=Decoder(num_layers=1, num_heads=2, d_model=8),
        training=Training(steps=2, batch_size=2, curriculum=FixedLength(length=8)),
        evaluation=Evaluation(lengths=(8, 16), sequences=4),
    )


def test_a_config_of_a_text_that_is_nowhere_is_made_and_read() -> None:
    sweep = Sweep(name="gone", runs=grid(small(Path("/nowhere")), {"task.path": ["/a", "/b"], "seed": [0, 1]}))
    assert len({run.id for run in sweep.runs}) == 4
    assert not sweep.is_planned
    with pytest.raises(SettingError, match="path: expected a file, .* got '/a'"):
        sweep.planned()


def test_the_run_has_the_hash_and_is_found_wherever_the_text_lies(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    typed = small(book)
    run = train(typed, out)
    assert run.config == typed.planned()
    assert run.config.task == typed.task.planned()
    assert (out / run.id / "config.json").read_text() == canonical_json(run.config)
    assert status(typed, out).value == "finished"
    before = (out / run.id / "finished.json").stat().st_mtime_ns
    other = tmp_path / "elsewhere.txt"
    book.rename(other)
    assert train(small(other), out).id == run.id
    assert (out / run.id / "finished.json").stat().st_mtime_ns == before
    # With the hash in the config, nothing is opened.
    other.unlink()
    assert train(run.config, out).id == run.id
    assert Run.load(out / run.id).model() is not None


def test_the_pages_of_a_store_open_no_text(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store from elsewhere can name any file of its reader, and an honest one a text that is not here."""
    out = tmp_path / "out"
    run_sweep(Sweep(name="text", runs=(small(book),)), out, Serial())
    book.unlink()
    results = Results(out)
    write_report(results, out / "report.html")
    assert "too long or from files: 1." in explore(results).page()
    monkeypatch.setattr(TextBytes, "reads_files", False)
    with pytest.raises(SettingError, match="expected a file"):
        write_report(Results(out), out / "report.html")


def test_a_store_is_read_though_the_text_of_one_run_has_moved(book: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other.txt"
    other.write_text(BOOK[::-1])
    sweep = Sweep(name="two", runs=grid(small(book), {"task.path": [str(book), str(other)]}))
    assert run_sweep(sweep, out, Serial()).failures == ()
    frame = Results(out).frame()
    assert frame["task.corpus_hash"].n_unique() == 2
    shutil.copy(book, tmp_path / "kept.txt")
    book.unlink()
    assert Results(out).frame().equals(frame)
    assert Results(out, sweep).frame().equals(frame)  # as typed, the texts are those that the folder names
    (out / "sweep.json").unlink()
    assert Results(out, sweep).frame().equals(frame)
    assert len(Results(out).runs) == 2
    # A changed text is another run, and what is planned for the old one says so.
    planned = Results(out, sweep).sweep
    assert planned is not None
    other.write_text(BOOK)
    again = run_sweep(planned.replace(runs=[run.replace(data_seed=5) for run in planned.runs]), out, Serial())
    assert [failure.reason.partition(":")[0] for failure in again.failures] == ["SettingError", "SettingError"]
    assert "corpus_hash" in again.failures[1].reason


@pytest.mark.parametrize(("field", "message"), [("evaluation", r"evaluation.lengths\[1\]: expected from 1 to")])
def test_a_text_that_is_too_short_is_said_before_anything_is_written(
    book: Path, tmp_path: Path, field: str, message: str
) -> None:
    config = small(book).replace(**{field: Evaluation(lengths=(8, 100_000), sequences=4)})
    with pytest.raises(SettingError, match=message):
        train(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_names_its_text(book: Path) -> None:
    with pytest.raises(SettingError, match="task: expected a corpus with its hash, TextBytes"):
        _ = Arm(seeded(small(book)), 2).runs
    assert len(Arm(seeded(small(book).planned()), 2).runs) == 2
