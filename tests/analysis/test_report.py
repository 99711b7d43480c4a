import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from analysis.synthetic import Failed, SyntheticResults, results_of
from training.small_runs import opened

from sparsity_lab.analysis import write_report
from sparsity_lab.generators import Anchored, Majority, Planted, Recent
from sparsity_lab.models import Decoder, RoPE
from sparsity_lab.settings import SettingError
from sparsity_lab.sweeps import Results, Serial, Sweep, grid, run_sweep
from sparsity_lab.training import Evaluation, RunConfig, Training

LENGTHS = (8, 24, 48, 96)


def config(task, seed, conditions=None):
    return RunConfig(
        task=task,
        model=Decoder(position=RoPE()),
        evaluation=Evaluation(lengths=LENGTHS, conditions=conditions or {}),
        data_seed=seed,
        model_seed=seed,
    )


def token(k, seed):
    return config(Planted(k=k), seed)


def position(locality, seed):
    return config(Planted(locality=locality, rule=Majority(), marking="position", reference_length=8), seed)


@pytest.fixture
def results():
    runs = [(token(1, seed), [1, 1, 1, 1]) for seed in (0, 1)]
    runs += [(token(2, 0), [1, 1, 0.8, 0.4]), (token(2, 1), [0, 0, 0.1, 0])]
    runs += [(position(Recent(width=8), seed), [1, 1, 0.9, 0.8 - 0.01 * seed]) for seed in (0, 1)]
    runs += [(position(Anchored(width=8), seed), [1, 1, 0.2, 0.0 + 0.01 * seed]) for seed in (0, 1)]
    return results_of(runs, [Failed(token(3, 0), "loss became <b>NaN</b>", 17)])


@pytest.fixture
def page(results, tmp_path):
    return write_report(results, tmp_path / "report.html", command="lab --out '<here>'").read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Well-formedness, ids, links and text of a page."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loads, self.links, self.text = [], [], [], [], []
        self.tags = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.loads += [attrs[name] for name in ("src", "srcset", "data") if name in attrs]
        if tag == "link":
            self.loads.append(attrs["href"])
        if tag == "a":
            self.links.append(attrs["href"])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_well_formed_and_loads_nothing(page, results, tmp_path):
    checked = Checker(page)
    assert checked.open == []
    assert len(checked.ids) == len(set(checked.ids))
    assert checked.loads == ["data:,"]
    inside = {link[1:] for link in checked.links if link.startswith("#")}
    assert inside <= set(checked.ids)
    outside = {link for link in checked.links if not link.startswith("#")}
    assert outside == {f"{os.path.relpath(results.folder, tmp_path)}/{run.id}/" for run in results.runs}
    outside = set(re.findall(r"(?:https?:)?//[^\s\"'<]+", page))
    assert outside == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "url(" not in page.replace("url(#", "")


def rows_after(page, heading):
    """The rows of the first table after a heading, as lists of texts."""
    table = page[page.index(f"<h3>{heading}") :].partition("<tbody>")[2].partition("</tbody>")[0]
    return [[re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?>(.*?)</td>", row)] for row in table.split("\n")]


def pairs(page):
    """The rows of all tables of pairs."""
    tables = re.findall(r"expected to drop less</th>.*?<tbody>(.*?)</tbody>", page, flags=re.DOTALL)
    return [re.findall("<td.*?>(.*?)</td>", row) for table in tables for row in table.split("\n")]


def test_the_summary_comes_first_with_counts_drops_and_pairs(page):
    text = " ".join("".join(Checker(page).text).split())
    assert "9 runs: 8 finished, 1 failed, 0 not finished. 7 of 8 learned the task" in text
    assert "is at least 0.9 at every evaluated trained length" in text
    assert "Runs that did not learn are left out" in text
    assert text.count("Trained lengths: 8 to 24. Measure: normalized accuracy.") == 2
    token, position = (rows_after(page, f"{rule}, {marking} marking") for rule, marking in
                       (("Parity", "token"), ("Majority", "position")))  # fmt: skip
    assert token[1] == ["k=2", "0.60", "no interval", "1 of 2", "24", "96", "4 x"]
    assert position[1][:4] == ["Recent(width=8)", "0.20", "[0.14, 0.27]", "2 of 2"]
    assert pairs(page) == [
        ["k=1", "k=2", "k=1", "0.60", "no interval", "1", "undecided"],
        ["Recent(width=8)", "Anchored(width=8)", "Recent(width=8)", "0.79", "[0.66, 0.92]", "2", "as expected"],
    ]
    order = ["Summary", "Extrapolation curves", "k by locality", "Reach", "All measurements", "Sample sequences",
             "Configurations", "Environment and commands"]  # fmt: skip
    places = [page.index(f"<h2>{heading}") for heading in order]
    assert places == sorted(places)


def test_the_page_holds_figures_tables_samples_and_configurations(page, results):
    assert page.count("<svg") == 4  # two panels, a curve and a heat map each
    assert "≥ 96" in page
    for config in results.runs:
        assert config.id in page
        assert str(config).replace("'", "&#39;") in page
    found = re.findall(r"<pre>(\{.*?\})</pre>", page, flags=re.DOTALL)
    assert len(found) == len(results.runs)
    assert json.loads(found[0].replace("&#34;", '"'))["task"]["k"] == 1
    # But for the task of the run that failed.
    assert page.count('class="sequence"') == 3 * (len({str(config.task) for config in results.runs}) - 1)
    assert "lab --out &#39;&lt;here&gt;&#39;" in page


def test_failures_are_listed_and_escaped(page):
    assert '<td>loss became &lt;b&gt;NaN&lt;/b&gt;</td><td class="number">17</td>' in page


def test_the_same_results_give_the_same_bytes(results, tmp_path):
    pages = [write_report(results, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_names_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    task = Planted(k=1)
    config_ = config(task, 0, {evil: task, "plain": Planted(k=2)})
    rows = results_of([(config_, [1, 1, 1, 1])]).evaluation
    both = pl.concat([rows.with_columns(condition=pl.lit(evil)), rows.with_columns(condition=pl.lit("plain"))])
    page = write_report(SyntheticResults(both, [config_]), tmp_path / "r.html", title=evil).read_text()
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;" in page


def test_a_sweep_without_a_finished_run_still_has_a_page(tmp_path):
    results = SyntheticResults(pl.DataFrame(), [token(1, 0), token(1, 1)], [Failed(token(1, 0), "diverged", 3)])
    page = write_report(results, tmp_path / "r.html").read_text()
    assert "2 runs: 0 finished, 1 failed, 1 not finished." in page
    assert "diverged" in page
    assert "Sample sequences" in page


def test_an_unwritable_path_is_one_readable_error(results, tmp_path):
    with pytest.raises(SettingError, match=r"path: cannot write"):
        write_report(results, tmp_path / "missing" / "r.html")


def test_real_results_with_environment(tmp_path):
    tiny = Decoder(num_layers=1, num_heads=1, d_model=8, position=RoPE())
    run = RunConfig(
        task=Planted(k=1),
        model=tiny,
        training=Training(steps=2, batch_size=4),
        evaluation=Evaluation(lengths=(8, 24, 96), sequences=8),
    )
    run_sweep(Sweep(name="tiny", runs=(run,)), tmp_path / "out", engine=Serial())
    page = write_report(Results(tmp_path / "out"), tmp_path / "r.html").read_text()
    assert "1 run: 1 finished, 0 failed, 0 not finished." in page
    assert "0 of 1 learned the task" in page
    assert "Trained lengths: 8 to 24." in page
    assert "nothing to draw" in page
    assert "packages: torch" in page


def test_neighboring_k_are_compared_seed_by_seed(tmp_path):
    values = {1: 0.9, 2: 0.7, 3: 0.5}
    runs = [(token(k, seed), [1, 1, 1, value + 0.01 * seed]) for k, value in values.items() for seed in (0, 1)]
    page = write_report(results_of(runs), tmp_path / "r.html").read_text()
    assert [row[:4] for row in pairs(page)] == [["k=1", "k=2", "k=1", "0.20"], ["k=2", "k=3", "k=2", "0.20"]]


def test_a_pair_with_the_opposite_order_has_its_signs_turned(tmp_path):
    runs = [(token(k, seed), [1, 1, 1, k / 4 + k * 0.01 * seed]) for k in (1, 2) for seed in (0, 1)]
    (row,) = pairs(write_report(results_of(runs), tmp_path / "r.html").read_text())
    assert row[:4] == ["k=2", "k=1", "k=1", "0.26"]
    assert row[4:] == ["[0.19, 0.32]", "2", "the opposite of what is expected"]


def test_a_sweep_over_fixed_sets_and_seeds_has_a_page(tmp_path):
    task = Planted(locality=Recent(width=8), rule=Majority(), marking="position", reference_length=8)
    runs = [
        (config(task.replace(position_seed=place), seed), [1, 1, 0.9, 0.5]) for place in (0, 1) for seed in (0, 1)
    ]
    page = write_report(results_of(runs), tmp_path / "r.html").read_text()
    assert "<td>4 of 4</td>" in page
    assert '<th scope="col" class="number">position seed</th>' in page


def test_parents_that_differ_in_their_seed_are_replicates(tmp_path):
    runs = [(token(1, 0).replace(parent=token(2, seed)), [1, 1, 0.9, 0.5]) for seed in (5, 6)]
    page = write_report(results_of(runs), tmp_path / "r.html").read_text()
    (row,) = rows_after(page, "Parity")
    assert row[:4] == ["k=1", "0.50", "[0.50, 0.50]", "2 of 2"]


def test_tasks_without_an_optimum_are_not_judged_and_their_accuracy_is_drawn(tmp_path):
    runs = [(token(k, seed), [1, 1, 0.9, 0.4]) for k in (1, 2) for seed in (0, 1)]
    results = results_of(runs, judged=False)
    page = write_report(results, tmp_path / "r.html").read_text()
    assert "Whether they learned the task is not known: no optimum is declared." in page
    assert "did not learn" not in page
    assert "nothing to draw" not in page
    assert rows_after(page, "Parity")[0][:4] == ["k=1", "0.30", "[0.30, 0.30]", "not judged (no optimum declared)"]
    assert "Measure: accuracy." in page
    assert "2 not judged" in page
    assert "</code> not judged (no optimum declared): " in page


def test_damaged_environments_are_passed_over(results, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(type(results), "environment", lambda _, run: asked.append(run))
    page = write_report(results, tmp_path / "r.html").read_text()
    assert "The environment was not recorded." in page
    assert asked == list(results.runs)


def test_a_report_opens_each_file_of_a_run_once(tmp_path):
    """A page and its figures ask for the same numbers many times."""
    tiny = Decoder(num_layers=1, num_heads=1, d_model=8, position=RoPE())
    training, evaluation = Training(steps=2, batch_size=4), Evaluation(lengths=(8, 24, 96), sequences=8)
    base = RunConfig(task=Planted(k=1), model=tiny, training=training, evaluation=evaluation)
    runs = tuple(grid(base, {"task.k": [1, 2], "seed": [0, 1]}))
    out = tmp_path / "out"
    run_sweep(Sweep(name="before", runs=runs[3:]), out, engine=Serial())
    results = run_sweep(Sweep(name="now", runs=runs[:3]), out, engine=Serial())
    with opened(out) as files:
        write_report(results, tmp_path / "r.html")
    assert {file for file in files if files[file] > 1} == set()
    per_run = {"finished.json", "config.json", "metrics.parquet", "environment.json"}
    assert {f"{run.id}/{name}" for run in runs[:3] for name in per_run} <= set(files)
    with opened(out) as files:
        results.frame("runs")
        results.frame("runs")
    assert set(files.values()) == {2}  # without a snapshot, what is there now


def test_runs_of_other_sweeps_are_named(results, tmp_path):
    page = write_report(replace(results, others=("a", "b")), tmp_path / "r.html").read_text()
    assert "Finished runs of other sweeps in this folder, which are not shown: 2." in page
    assert "other sweeps" not in write_report(results, tmp_path / "r.html").read_text()


def test_half_a_surrogate_pair_is_written_out(results, tmp_path):
    page = write_report(results, tmp_path / "r.html", title="a \udcff b", command="\udcff")
    assert "<h1>a \\udcff b</h1>" in page.read_text(encoding="utf-8")


def test_a_report_is_written_whole_or_not_at_all(results, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("before")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SettingError, match=r"path: cannot write"):
        write_report(results, tmp_path / "folder")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SettingError, match="No space left"):
        write_report(results, path)
    assert path.read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "r.html"]


def test_one_cell_is_no_map(tmp_path):
    one = write_report(results_of([(token(1, seed), [1, 1, 0.9, 0.4]) for seed in (0, 1)]), tmp_path / "r.html")
    assert one.read_text().count("<svg") == 1
    assert "k by locality" not in one.read_text()
