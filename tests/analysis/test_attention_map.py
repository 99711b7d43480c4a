"""Attention maps: cells against weights that are known, and the page in a real browser."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from analysis.attention_cases import batch_of, decoder_with_gap, random_record, record_of, record_of_scores
from browser import Opened
from training.small_runs import small_run

from sparsity_lab.analysis import AttentionMap, attention_map, diluted_mass
from sparsity_lab.analysis.attention.map_view import MASKED, ROLE_COLORS, ZERO, _painted, color_table
from sparsity_lab.generators import Planted
from sparsity_lab.kernels import LSSAR, Softmax
from sparsity_lab.models import Decoder, NoPE, RoPE
from sparsity_lab.settings import SettingError, kinds
from sparsity_lab.training import train


@pytest.fixture(scope="module")
def known() -> AttentionMap:
    """Two sequences of six tokens; in the second, row 4 looks at its sources 1 and 3 four times as much."""
    scores = torch.zeros(2, 6, 6)
    scores[1, 4, [1, 3]] = np.log(4.0)
    return attention_map([record_of_scores(scores)], 1, batch_of({(0, 2): [0], (1, 4): [1, 3]}, 2, 6))


def test_cells_are_the_weights(known: AttentionMap) -> None:
    frame = known.frame()
    assert frame.height == 6 * 7 / 2  # what comes later is no cell
    assert frame.filter(pl.col("row") == 4)["share"].to_list() == pytest.approx(
        [1 / 11, 4 / 11, 1 / 11, 4 / 11, 1 / 11]
    )
    assert frame.filter("source").select("row", "key", "distance").rows() == [(4, 1, 3), (4, 3, 1)]
    assert frame.group_by("row").agg(pl.col("share").sum())["share"].to_list() == pytest.approx([1] * 6)
    assert known.summary().row(0)[4:] == pytest.approx((8 / 11, 2 / 5))
    assert known.finding == "No head gives the sources twice what uniform attention would"


def test_trained_and_longer_sequences_side_by_side() -> None:
    """A head whose gap is known: what it keeps of its mass is the formula's, and the title says it."""
    task = Planted(k=3)
    found = attention_map(decoder_with_gap(4.0), 0, task, (16, 64))
    masses = found.summary()["mass"].to_list()
    # The query is BOS, the tokens and itself: n = length + 2 keys.
    assert masses == pytest.approx([diluted_mass(4.0, 3, n + 2) for n in (16, 64)], abs=1e-5)
    assert found.finding == (
        f"Share of layer 0, head 0 on the sources: {masses[0]:.2f} at length 16, {masses[1]:.2f} at length 64"
    )
    figure = found.figure()
    figure.draw_without_rendering()
    assert figure.get_suptitle().replace("\n", " ") == found.finding
    assert found.finding in found._repr_html_()
    assert f"<title>{found.finding}</title>" in found.page()


def test_what_is_not_seen_is_not_zero() -> None:
    weights = np.array([[1.0, np.nan, np.nan], [0.0, 1.0, np.nan], [1e-9, 0.25, 0.75]])
    painted = _painted(weights, 1.0)
    colors = ["#%02x%02x%02x" % tuple(cell) for row in painted for cell in row]  # noqa: UP031
    assert colors[1] == colors[2] == colors[5] == MASKED
    assert colors[3] == ZERO
    assert tuple(painted[2, 0]) == color_table()[0]
    assert len({MASKED, ZERO, "#%02x%02x%02x" % color_table()[0]}) == 3  # noqa: UP031
    # Of keys that share a column of the picture the largest is shown.
    long = np.full((1, 1000), 0.0)
    long[0, 700] = 1.0
    assert (_painted(long, 1.0) == color_table()[-1]).all(-1).sum() == 1


def test_the_page_holds_the_numbers(known: AttentionMap) -> None:
    page = known.page()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    data = json.loads(re.search(r'id="numbers">(.*?)</script>', page, flags=re.DOTALL)[1])  # type: ignore[index]
    shares = np.frombuffer(base64.b64decode(data["views"][0]["maps"][0]["shares"]), "<i2")
    assert len(shares) == 21  # what each row may see, row by row
    assert shares[10:15] / 32767 == pytest.approx([1 / 11, 4 / 11, 1 / 11, 4 / 11, 1 / 11], abs=2e-5)
    assert data["views"][0]["sources"] == [[4, 1], [4, 3]]


def test_names_that_would_close_the_script() -> None:
    batch = batch_of({(0, 2): [0]}, 1, 4)
    found = attention_map([random_record(1, 2, 4, 8)], 0, batch, names=["</script><b>"])
    assert "</script><b>" not in found.page()
    assert found.frame()["token"].unique().to_list() == ["</script><b>"]


def test_long_sequences_and_many_heads_are_picked() -> None:
    scored = {(0, row): [row // 2] for row in range(100, 700, 300)}
    found = attention_map([random_record(1, 20, 800, 4)], 0, batch_of(scored, 1, 800))
    (view,) = found.views
    assert len(view.rows) <= 48
    assert {100, 400, 799} <= set(view.rows)
    assert (len(view.heads), found.left_out) == (16, 4)
    everything = attention_map([random_record(1, 20, 800, 4)], 0, batch_of(scored, 1, 800), heads=range(20))
    masses = everything.summary().sort("mass", descending=True)["head"].to_list()
    assert sorted(masses[:16]) == [head for _, head in view.heads]
    assert "4 more heads are not shown" in found.page()
    # Without sources, the heads that look at few places.
    flat, sharp = torch.zeros(1, 17, 8, 8), torch.eye(8).expand(1, 1, 8, 8) * 50
    keys = torch.eye(8).expand(1, 18, 8, 8)
    picked = attention_map([record_of(torch.cat([flat, sharp], 1), keys)])
    assert (0, 17) in picked.views[0].heads


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": [1]}, "layers: expected numbers from 0 to 0, got 1"),
        ({"heads": [0, 7]}, "heads: expected numbers from 0 to 0, got 7"),
        ({"rows": [6]}, "rows: expected numbers from 0 to 5, got 6"),
        ({"rows": []}, "rows: give at least one number"),
        ({"sequence": 2}, "sequence: expected a sequence of the batch, got 2"),
        ({"sequence": -1}, "sequence: expected at least 0, got -1"),
        ({"names": []}, "names: expected a name for each token up to 0"),
        ({"lengths": (6,)}, "lengths: expected None"),
    ],
)
def test_what_is_out_of_range_is_said_in_one_line(arguments: dict[str, Any], words: str) -> None:
    batch = batch_of({(0, 2): [0], (1, 4): [1, 3]}, 2, 6)
    with pytest.raises(SettingError, match=re.escape(words)):
        attention_map([record_of_scores(torch.zeros(2, 6, 6))], **{"data": batch} | arguments)


def test_one_head_on_axes_of_its_own(known: AttentionMap) -> None:
    ax = known.plot()
    assert ax.get_title(loc="left") == "over 6 tokens\nlayer 0, head 0: 0.73 on the sources"
    names = ax.get_xticklabels()
    assert [name.get_text().rpartition(" ")[2] for name in names] == [str(place) for place in range(6)]
    colors = [name.get_color() for name in names]
    assert [place for place, color in enumerate(colors) if color == ROLE_COLORS["planted"]] == [1, 3]
    with pytest.raises(SettingError, match="layer and head: expected a pair that is in the map"):
        known.plot(head=3)
    with pytest.raises(SettingError, match="view: expected 0 to 0"):
        known.plot(view=1)


def test_a_run_that_did_not_learn_says_so(tmp_path: Path) -> None:
    run = train(small_run(), tmp_path)
    found = attention_map({"softmax": run, "sharper": run.with_kernel(LSSAR(p=3))}, 3)
    each = [(view.arm, view.length) for view in found.views]
    assert each == [("softmax", 8), ("softmax", 16), ("sharper", 8), ("sharper", 16)]
    worst = run.evaluation.filter("trained")["accuracy"].min()
    assert found.finding.endswith(f"(the run did not learn: accuracy {worst:.2f} at the trained lengths)")
    assert [view.name for view in found.views][:2] == [
        "at length 8 (trained) with softmax",
        "at length 16 with softmax",
    ]
    (run.folder / "model.safetensors").unlink()
    with pytest.raises(SettingError, match="folder: expected a finished run"):
        type(run).load(run.folder)


EXAMPLES = [example for kind in kinds("kernel").values() for example in kind.examples()]


@pytest.mark.parametrize("kernel", EXAMPLES, ids=str)
def test_every_registered_mechanism_has_a_map(kernel: Any) -> None:
    """Shares of a row add up to one, whatever the weights are."""
    position = RoPE() if "rotate" in kernel.positions else NoPE()
    model = Decoder(num_layers=1, num_heads=2, d_model=16, kernel=kernel, position=position).build(0)
    frame = attention_map(model, 0, Planted(k=2), (20,)).frame()
    sums = frame.group_by("head", "row").agg(pl.col("share").abs().sum())["share"].to_list()
    assert all(total == pytest.approx(1, abs=1e-4) or total == 0 for total in sums)
    assert frame["distance"].min() == 0


# --- in a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = Planted(k=2)
    model = Decoder(num_layers=2, num_heads=2, d_model=16, kernel=Softmax(), position=NoPE()).build(0, vocab_size=18)
    return attention_map(model, 0, task, (16, 96)).write(tmp_path_factory.mktemp("map") / "map.html")


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Opened]:
    found = Opened(browser, page, 1000)
    yield found
    found.close()


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1000, True), (1600, False)])
def test_the_page_is_whole(browser: Any, page: Path, width: int, dark: bool) -> None:
    opened = Opened(browser, page, width, dark=dark)
    opened.check()
    assert opened.page.locator(".maps canvas").count() == 8
    assert opened.page.locator(".large canvas").count() == 2
    opened.close()


def test_cells_tell_what_they_are(opened: Opened, page: Path) -> None:
    """By keys and by pointer."""
    data = json.loads(re.search(r'id="numbers">(.*?)</script>', page.read_text(), flags=re.DOTALL)[1])  # type: ignore[index]
    view = data["views"][0]
    tokens, (row, key) = view["tokens"], view["sources"][0]
    told = opened.page.locator(".value")
    opened.page.keyboard.press("Tab")
    assert told.text_content().startswith(f"= at {row} looks at BOS at 0: share ")
    for _ in range(key):
        opened.page.keyboard.press("ArrowRight")
    (large,) = (one for one in view["maps"] if [one["layer"], one["head"]] == data["head"])
    shares = np.frombuffer(base64.b64decode(large["shares"]), "<i2")
    share = f"{shares[row * (row + 1) // 2 + key] / 32767:.3f}"
    assert (
        told.text_content()
        == f"= at {row} looks at {tokens[key]} at {key}: share {share}, distance {row - key}, a source"
    )
    opened.page.keyboard.press("PageUp")
    assert told.text_content() == f"{tokens[key]} at {key} comes later than BOS at 0: not seen"
    opened.page.keyboard.press("Escape")
    assert told.is_hidden()
    canvas = opened.page.locator(".maps canvas").first
    box = canvas.bounding_box()
    canvas.hover(position={"x": 8 + (box["width"] - 8) * 0.5 / len(tokens), "y": 2})
    assert told.text_content() == "BOS at 0 looks at BOS at 0: share 1.000, distance 0, no source"


def test_a_small_map_becomes_the_large_one(opened: Opened) -> None:
    """By a click, and by Enter."""
    large = opened.page.locator(".large figcaption").first
    names = opened.page.locator(".maps figcaption").all_text_contents()[:4]
    assert len({*names}) == 4
    opened.page.locator(".maps canvas").nth(1).click()
    assert large.text_content() == names[1]
    opened.page.locator(".maps canvas").nth(2).focus()
    opened.page.keyboard.press("Enter")
    assert large.text_content() == names[2]
