"""The explorer: what its page holds against the frames and maps that it is made of, its size, and a real browser."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from analysis.synthetic import SyntheticResults, results_of
from analysis.test_report import config
from browser import Opened
from training.small_runs import small_run

from sparsity_lab.analysis import Explorer, attention_map, explore, extrapolation_curve, write_report
from sparsity_lab.analysis.report import explorer
from sparsity_lab.generators import Batch, Planted, Recent, Stream, Uniform
from sparsity_lab.kernels import LSSAR, Softmax
from sparsity_lab.settings import SettingError
from sparsity_lab.sweeps import Results, Serial, Sweep, grid, run_sweep
from sparsity_lab.training import Run, UniformLength

LOCALITIES = (Uniform(), Recent(width=8))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Small runs of two values of k, two mechanisms and two seeds."""
    varied = {"task.k": [1, 2], "model.kernel": [Softmax(), LSSAR(p=3)], "seed": [0, 1]}
    runs = grid(small_run(), varied)
    return run_sweep(Sweep(name="small", runs=tuple(runs)), tmp_path_factory.mktemp("runs"), Serial())


def known(k: int, locality: Any, seed: int, values: list[float]) -> tuple[Any, list[float]]:
    return config(Planted(k=k, locality=locality), seed), values


@pytest.fixture(scope="module")
def synthetic() -> SyntheticResults:
    """Known accuracies at lengths 8, 24, 48 and 96; k=3 is never learned with Uniform, and not run with Recent."""
    runs = [known(1, locality, seed, [1, 1, 1, 1 - 0.1 * seed]) for locality in LOCALITIES for seed in (0, 1, 2)]
    runs += [known(2, locality, seed, [1, 0.95, 0.6, 0.2 + 0.1 * seed]) for locality in LOCALITIES for seed in (0, 1)]
    runs += [known(3, Uniform(), 0, [0.3, 0.2, 0.1, 0.05])]
    return results_of(runs)


def numbers(explorer: Explorer) -> dict[str, Any]:
    found = re.search(r'id="numbers">(.*?)</script>', explorer.page(), flags=re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_holds_the_values_of_every_run(synthetic: SyntheticResults) -> None:
    found = explore(synthetic)
    assert found.by == ("task.k", "task.locality")
    data = numbers(found)
    assert [(menu["name"], menu["values"]) for menu in data["menus"]] == [
        ("k", ["k=1", "k=2", "k=3"]),
        ("locality", ["Recent(width=8)", "Uniform"]),
    ]
    assert data["seeds"] == ["seed 0", "seed 1", "seed 2"]
    assert data["lengths"] == [8, 24, 48, 96]
    held = {
        (*arm["at"], run["seed"], int(length)): value
        for arm in data["arms"]
        for run in arm["runs"]
        for length, value in run["values"].items()
    }
    rows = found.frame().select("task.k", "task.locality", "data_seed", "length", "normalized_accuracy")
    assert held == {
        (k - 1, int("Uniform" in locality), seed, length): pytest.approx(value)
        for k, locality, seed, length, value in rows.iter_rows()
    }
    assert [run["learned"] for arm in data["arms"] for run in arm["runs"]] == [True] * 10 + [False]
    assert found.maps == ()
    assert found.left_out == (
        "Runs without an attention map: no weights, not a Decoder, or sequences too long or from files: 11.",
    )


def test_maps_are_those_of_the_runs(results: Results) -> None:
    found = explore(results)
    assert found.by == ("task.k", "model.kernel")
    assert found.left_out == ()
    assert set(found.maps) == {run.id for run in results.runs}
    (held,) = (run for arm in numbers(found)["arms"] for run in arm["runs"] if run["id"] == results.runs[5].id)
    alone = attention_map(Run.load(results.folder / results.runs[5].id))
    assert [view["tokens"] for view in held["map"]["views"]] == [
        [t.name for t in view.tokens] for view in alone.views
    ]
    packed = np.frombuffer(base64.b64decode(held["map"]["views"][1]["maps"][0]["shares"]), "<i2")
    seen = alone.views[1].weights[0, 0]
    assert packed / 32767 == pytest.approx(seen[~np.isnan(seen)], abs=2e-5)
    # The first of the sample sequences is the one that the map reads.
    sample = re.findall(r'<div class="sequence">(.*?)</div>', found.page())[2 * held["sample"]]
    names = [re.sub("<.*?>", "", chip) for chip in re.findall("<span.*?</span>", sample)]
    assert names[: len(alone.views[0].tokens)] == [token.name for token in alone.views[0].tokens]


def test_runs_without_readable_weights_are_counted(results: Results, tmp_path: Path) -> None:
    sweep = Sweep(name="few", runs=tuple(grid(small_run(), {"seed": [0, 1, 2]})))
    few = run_sweep(sweep, tmp_path, Serial())
    (tmp_path / few.runs[0].id / "model.safetensors").write_bytes(b"no weights")
    found = explore(few)
    assert set(found.maps) == {run.id for run in few.runs[1:]}
    words = "Runs without an attention map: no weights, not a Decoder, or sequences too long or from files: 1."
    assert words in found.left_out
    assert words.replace("'", "&#39;") in found.page()


def test_sequences_that_are_too_long_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store can name any length. Of these two, one is trained on lengths of which the shortest can be shown."""
    training = [
        small_run().training.replace(curriculum=UniformLength(low=low, high=4500), batch_size=1, steps=0)
        for low in (8, 4400)
    ]
    evaluation = small_run().evaluation.replace(lengths=(8, 4500), sequences=2)
    runs = tuple(small_run(training=one, evaluation=evaluation) for one in training)
    results = run_sweep(Sweep(name="long", runs=runs), tmp_path, Serial())
    sampled, sample = [], Planted.sample

    def counted(self: Planted, stream: Stream, start: int, count: int, length: int) -> Batch:
        sampled.append(length)
        return sample(self, stream, start, count, length)

    monkeypatch.setattr(Planted, "sample", counted)
    found = explore(results)
    write_report(results, tmp_path / "report.html")
    assert set(sampled) == {8}
    assert found.maps == (runs[0].id,)
    assert [words for words in found.left_out if "too long" in words] == [
        "Tasks whose sample sequences do not fit, or are too long or from files: 1.",
        "Runs without an attention map: no weights, not a Decoder, or sequences too long or from files: 1.",
    ]


@pytest.mark.parametrize("megabytes", [0.06, 0.08, 0.3])
def test_the_page_is_no_larger_than_asked(results: Results, megabytes: float) -> None:
    """It holds a run of every arm before a second one of any, and says what is left out."""
    found = explore(results, megabytes=megabytes)
    assert len(found.page().encode()) <= megabytes * 1e6
    runs = sum(len(arm["runs"]) for arm in numbers(found)["arms"])
    assert (len(found.maps) < runs) == any("attention maps do not fit" in words for words in found.left_out)
    firsts = {run.id for run in results.runs if run.data_seed == 0}
    assert set(found.maps) <= firsts or set(found.maps) >= firsts
    assert megabytes < 0.3 or len(found.maps) == len(results.runs)


def test_by_default_a_page_has_at_most_three_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sweep whose attention maps alone would need more."""
    monkeypatch.setattr(explorer, "_attention", lambda *_: {"views": ["<" * 30_000]})
    runs = [known(k, Uniform(), seed, [1, 1, 0.5, 0.1]) for k in range(1, 9) for seed in range(25)]
    found = explore(results_of(runs))
    assert 2.7e6 < len(found.page("A title" * 50).encode()) <= 3e6
    assert 0 < len(found.maps) < len(runs)
    assert found.left_out == (f"Runs whose attention maps do not fit: {len(runs) - len(found.maps)}.",)


def test_of_a_large_sweep_the_first_seeds_are_kept() -> None:
    runs = [known(k, Uniform(), seed, [1, 1, 0.5, 0.1]) for k in range(1, 9) for seed in range(40)]
    found = explore(results_of(runs), megabytes=0.07)
    arms = numbers(found)["arms"]
    kept = [len(arm["runs"]) for arm in arms]
    assert len(arms) == 8
    assert max(kept) - min(kept) <= 1
    assert f"Runs that do not fit into 0.07 MB: {320 - sum(kept)}." in found.left_out
    assert 8 <= sum(kept) < 320
    with pytest.raises(SettingError, match="megabytes: expected room for at least one run, got 0.01"):
        explore(results_of(runs), megabytes=0.01)


def test_names_that_would_close_the_script(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\x1b\u202e"
    conditions = {evil: Planted(k=1), "plain": Planted(k=2)}
    rows = results_of([known(1, Uniform(), 0, [1, 1, 1, 1])]).evaluation
    both = pl.concat([rows.with_columns(condition=pl.lit(name)) for name in conditions])
    run = config(Planted(k=1), 0, conditions)
    found = explore(SyntheticResults(both.with_columns(run=pl.lit(run.id)), [run]))
    page = found.page(title=evil)
    assert page.count("<script") == 2
    assert not {"\x1b", "\u202e"} & set(page)
    assert not {"\x1b", "\u202e"} & set(json.dumps(numbers(found), ensure_ascii=False))
    assert {*numbers(found)["menus"][0]["values"]} == {"plain", "</script><script>alert(1)</script>\\x1b\\u202e"}
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_one_model_on_one_k_is_named_by_it() -> None:
    found = explore(results_of([known(2, Uniform(), seed, [1, 1, 0.9, 0.4]) for seed in (0, 1)]))
    assert found.by == ("task.k",)
    assert numbers(found)["menus"] == [{"name": "k", "values": ["k=2"]}]
    assert '<img alt="k=2 holds to 48"' in found._repr_html_()


def test_a_task_without_an_optimum_shows_accuracy() -> None:
    runs = [known(k, Uniform(), 0, [1, 1, 0.9, 0.4]) for k in (1, 2)]
    found = explore(results_of(runs, judged=False))
    assert found.measure.name == "accuracy"
    assert numbers(found)["arms"][0]["runs"][0]["learned"] is None


def test_in_a_notebook_a_figure_stands_above_the_page(synthetic: SyntheticResults) -> None:
    shown = explore(synthetic)._repr_html_()
    assert shown.index('<img alt="k=1 holds to 96 or more') < shown.index("<iframe")
    assert "<code>.write(&quot;explorer.html&quot;)</code>" in shown
    assert "11 runs by task.k, task.locality; attention of 0" in repr(explore(synthetic))


def test_the_report_links_to_the_explorer_and_to_each_map(results: Results, tmp_path: Path) -> None:
    page = write_report(results, tmp_path / "the report.html", explorer=True).read_text()
    assert (tmp_path / "the report_explorer.html").read_text() == explore(results).page(
        "Explorer: Extrapolation in length"
    )
    assert '<a href="the%20report_explorer.html">Explorer</a>' in page
    for run in results.runs:
        assert f'<a href="the%20report_explorer.html#{run.id}">attention map</a>' in page


# --- in a browser


@pytest.fixture(scope="module")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explore(results).write(tmp_path_factory.mktemp("page") / "explorer.html")


@pytest.fixture
def opened(browser: Any, synthetic: SyntheticResults, tmp_path: Path) -> Iterator[Opened]:
    found = Opened(browser, explore(synthetic).write(tmp_path / "explorer.html"), 1000)
    yield found
    assert found.said == []
    found.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(400, True), (1000, False), (1600, True)])
def test_the_page_is_whole(browser: Any, page: Path, results: Results, width: int, dark: bool) -> None:
    run = results.runs[5]
    opened = Opened(browser, f"{page.as_uri()}#{run.id}", width, dark=dark)
    opened.check()
    assert run.id in opened.page.locator("#whose").text_content()
    assert opened.page.locator(".maps canvas").count() == 4
    assert opened.page.locator(".sample:visible").count() == 1
    opened.close()


@pytest.mark.slow
def test_menus_cells_and_keys_change_one_choice(opened: Opened, synthetic: SyntheticResults) -> None:
    page = opened.page
    said = page.locator("#choice")
    # More arms differ from this one in one menu alone than from any other.
    assert said.text_content() == (
        "k=1, Uniform: median normalized accuracy 0.90 at length 96, 4 x the longest trained one (3 of 3 learned)."
    )
    # The cells are the medians of the curves' own frame.
    for locality in range(2):
        curve = extrapolation_curve(
            synthetic.evaluation.filter(pl.col("task.locality").str.starts_with("Uniform") == bool(locality))
        )
        wanted = curve.frame().filter(pl.col("length") == 96)["median"].drop_nulls().to_list()
        for k, value in enumerate(wanted):
            assert page.locator("#cells td button").nth(2 * k + locality).text_content().startswith(f"{value:.2f}")
    page.get_by_role("combobox", name="locality", exact=True).select_option(label="Uniform")
    page.locator("#cells td button").nth(5).click()
    assert said.text_content().startswith("k=3, Uniform: normalized accuracy 0.05 at length 96")
    assert page.locator("#cells td button").nth(5).get_attribute("class") == "unlearned"
    assert page.locator("#cells td button").nth(4).text_content() == "not run"
    assert page.locator("#cells td button").nth(4).is_disabled()
    # No run has k=3 and Recent: another k is shown, and that is said.
    page.get_by_role("combobox", name="locality", exact=True).select_option(label="Recent(width=8)")
    assert said.text_content().startswith("No run has all of that, so this is another one: k=1. k=1, Recent(width=8)")
    page.get_by_role("combobox", name="seed", exact=True).select_option(label="seed 1")
    assert "seed 1: normalized accuracy 0.90" in said.text_content()
    page.locator("#curves svg").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    assert said.text_content().startswith("k=2, Recent(width=8), seed 1: normalized accuracy 0.60 at length 48")
    page.locator("#curves circle").nth(3).hover()
    assert page.locator(".value").text_content() == "k=1, length 96: 0.90, 1 of 1 learned"
    page.get_by_role("combobox", name="a line for each", exact=True).select_option(label="seed")
    assert page.locator("#curves circle").count() == 8
    page.get_by_role("combobox", name="columns", exact=True).select_option(label="length")
    assert page.locator("#cells th[scope=col]").all_text_contents() == [f"length {n}" for n in (8, 24, 48, 96)]
