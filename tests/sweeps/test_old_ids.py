"""Stores of an earlier release, which gave the same runs other ids: that is said in one line; nothing is trained."""

from pathlib import Path

import pytest
from training.small_runs import small_run

from sparsity_lab import cli
from sparsity_lab.settings import SettingError, canonical_json
from sparsity_lab.sweeps import Results, Serial, Sweep, grid, run_sweep
from sparsity_lab.training import train

OLD, OTHER = "0123456789abcdef", "0123456789abcdff"


def test_a_sweep_in_an_old_store_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(name="old", runs=grid(small_run(), {"seed": [0, 1]}))
    out, file = tmp_path / "out", tmp_path / "sweep.json"
    file.write_text(canonical_json(sweep))
    run_sweep(sweep, out, Serial())
    first, second = (out / run.id for run in sweep.runs)
    first.rename(out / OLD)
    second.rename(out / OTHER)
    told = (
        f"sparsity-lab: {out / OLD}: an earlier release named this run; its id is now {first.name}. "
        f"`sparsity-lab report {out} --relabel` renames all 2 such runs and keeps their weights\n"
    )
    for command in (
        ("sweep", str(file), "--out", str(out), "--engine", "Serial()"),
        ("sweep", "--status", str(out)),
        ("report", str(out)),
    ):
        assert cli.run(command) == 2
        assert capsys.readouterr().err == told
    assert not first.exists()
    (out / "sweep.json").unlink()
    with pytest.raises(SettingError, match=f"expected the id of the run in it, {first.name}, got '{OLD}'"):
        Results(out)
    (out / "0000000000000000").mkdir()
    assert cli.run(("report", str(out), "--relabel")) == 0
    assert capsys.readouterr().out == f"{OLD} is now {first.name}\n{OTHER} is now {second.name}\n"
    events: list[str] = []
    run_sweep(sweep, out, Serial(), lambda event: events.append(event.status))
    assert events == ["skipped", "skipped"]


def test_runs_of_others_in_the_folder_are_no_matter(tmp_path: Path) -> None:
    train(small_run(data_seed=9), tmp_path)
    run_sweep(Sweep(name="mine", runs=[small_run()]), tmp_path, Serial())
    (tmp_path / OLD).mkdir()
    (tmp_path / OLD / "config.json").write_text("damaged")
    assert (
        Results(tmp_path, Sweep(name="more", runs=[small_run(data_seed=1)])).frame("runs")["status"].item()
        == "missing"
    )
