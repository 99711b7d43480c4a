"""Entropy and sinks of rows whose weights are known."""

import math

import polars as pl
import pytest
import torch
from analysis.attention_cases import TASK, batch_of, decoder_with_gap, random_record, record_of, record_of_scores
from matplotlib.figure import Figure

from sparsity_lab.analysis import attention_entropy, attention_sink, norm_sensitivity
from sparsity_lab.kernels import LSSA, RotaryPosition, Softmax
from sparsity_lab.settings import SettingError


def uniform(T, count=2):
    return record_of_scores(torch.zeros(count, T, T))


def test_uniform_attention_has_entropy_ln_n():
    frame = attention_entropy([uniform(30)]).frame()
    assert frame["keys"].to_list() == list(range(1, 31))
    assert frame["entropy"].to_list() == pytest.approx([math.log(n) for n in range(1, 31)], abs=1e-12)
    assert frame["normalized_entropy"].to_list() == [None, *[pytest.approx(1.0)] * 29]
    assert frame["effective_support"].to_list() == pytest.approx([1.0] * 30)
    assert frame.select("row_sum", "negative_share", "empty_share").row(7) == (pytest.approx(1.0), 0.0, 0.0)


def test_one_key_has_entropy_zero():
    frame = attention_entropy([record_of_scores(2000 * torch.eye(30)[None])]).frame()
    assert frame["entropy"].to_list() == [0.0] * 30
    assert frame["effective_support"].to_list() == pytest.approx([1 / n for n in range(1, 31)])


@pytest.mark.parametrize(
    ("direction", "entropies"),
    [
        (
            (0.6, 0.8),
            {0.1: 1.385289728588, 0.5: 1.358207337707, 1: 1.263710718741, 2: 0.903285356203, 4: 0.247762562645},
        ),
        ((0.8, 0.6), {0.1: 1.385733803029, 4: 0.510714472990}),
    ],
)
def test_softmax_norm_sweep_of_the_sheet(direction, entropies):
    """Four keys in the plane; the last of four causal rows sees them all."""
    keys = torch.tensor([[1, 2], [1, 0.2], [1, 0.2], [1, 0.2]], dtype=torch.float64)
    q = torch.stack([r * torch.tensor(direction, dtype=torch.float64).expand(4, 2) for r in entropies])[:, None]
    record = record_of(q, keys.expand(len(entropies), 1, 4, 2))
    found = [
        attention_entropy([record_of(record.q[i : i + 1], record.k[:1])]).frame()["entropy"][-1]
        for i in range(len(q))
    ]
    assert found == pytest.approx(list(entropies.values()), abs=1e-11)


def test_means_are_over_sequences_and_the_summary_over_rows():
    # The first sequence looks everywhere, the second at its own token only.
    T = 12
    record = record_of_scores(torch.stack([torch.zeros(T, T), 2000 * torch.eye(T)]))
    entropy = attention_entropy([record])
    assert entropy.frame()["entropy"].to_list() == pytest.approx([math.log(n) / 2 for n in range(1, T + 1)])
    assert entropy.frame()["sequences"].to_list() == [2] * T
    row = entropy.summary().row(0, named=True)
    assert row["normalized_entropy"] == pytest.approx(0.5)
    assert row["entropy"] == pytest.approx(sum(math.log(n) for n in range(2, T + 1)) / 2 / (T - 1))


def test_scored_rows_only():
    T = 12
    record = record_of_scores(torch.stack([torch.zeros(T, T), 2000 * torch.eye(T)]))
    batch = batch_of({(0, 4): [1], (0, 7): [1], (1, 7): [2]}, 2, T)
    frame = attention_entropy([record], batch, rows="scored").frame()
    assert frame.select("row", "sequences").rows() == [(4, 1), (7, 2)]
    assert frame["entropy"].to_list() == pytest.approx([math.log(5), math.log(8) / 2])


def test_rotations_can_be_left_out():
    angles = torch.arange(9, dtype=torch.float64)[None, :, None] * torch.tensor([1.0, 0.3])
    turned = random_record(2, 1, 9, 4, position=RotaryPosition(angles, torch.float64))
    plain = record_of(turned.q, turned.k)
    of_turned, without, of_plain = (
        attention_entropy([record], positions=positions).frame()["entropy"]
        for record, positions in ((turned, True), (turned, False), (plain, True))
    )
    assert without.to_list() == of_plain.to_list()
    assert (of_turned - of_plain).abs().max() > 0.01


def test_a_head_with_constant_gap_dilutes_and_one_with_log_n_scale_less_so():
    """The entropy of the query's row, from the two values that its weights have."""
    lengths = (16, 64, 256)
    entropy = attention_entropy(decoder_with_gap(4.0), TASK, lengths, rows="scored").summary()
    for row in entropy.iter_rows(named=True):
        n = row["length"] + 2
        z = 3 * math.exp(4.0) + n - 3
        expected = -3 * math.exp(4.0) / z * (4.0 - math.log(z)) + (n - 3) / z * math.log(z)
        assert row["entropy"] == pytest.approx(expected, rel=1e-5)
    invariant = attention_entropy(decoder_with_gap(4.0, kernel=LSSA()), TASK, lengths, rows="scored").summary()
    assert invariant["entropy"].is_sorted()
    assert entropy["normalized_entropy"].is_sorted()


def test_models_are_compared_on_the_same_sequences():
    models = {"a": decoder_with_gap(4.0), "b": decoder_with_gap(4.0)}
    frame = attention_entropy(models, TASK, (16,)).frame()
    assert frame["arm"].unique(maintain_order=True).to_list() == ["a", "b"]
    assert frame.filter(arm="a")["entropy"].to_list() == frame.filter(arm="b")["entropy"].to_list()
    assert attention_entropy(decoder_with_gap(1.0), TASK, (16,)).frame()["arm"][0] == "Softmax"


def test_the_figure_is_by_length_or_else_by_n():
    several = attention_entropy({"a": decoder_with_gap(4.0)}, TASK, (16, 64))
    ax = several.plot(measure="entropy")
    assert ax.get_xlabel() == "length (tokens; mean over rows; log scale)"
    assert ax.get_ylabel() == "entropy H (nats)"
    assert [text.get_text() for text in ax.texts] == ["a, layer 0"]
    assert list(ax.lines[0].get_ydata()) == several.summary()["entropy"].to_list()
    one = attention_entropy([uniform(40)])
    ax = one.plot(Figure().subplots())
    assert ax.get_xlabel() == "visible keys n (log scale)"
    assert list(ax.lines[0].get_ydata()) == pytest.approx([1.0] * len(ax.lines[0].get_xdata()))
    with pytest.raises(SettingError, match="layer"):
        one.plot(layer=1)
    assert "<img" in one._repr_html_()
    assert "entropy" in repr(one)


@pytest.mark.parametrize("T", [1, 2])
def test_the_smallest_sequences_have_figures(T):
    """A row of one key has nothing to distribute; one of two has a single point."""
    found = attention_entropy([uniform(T)])
    ax = found.plot()
    words = ["no row with weight on two keys" if T == 1 else "Softmax, layer 0"]
    assert [text.get_text() for text in ax.texts] == words
    assert [list(line.get_ydata()) for line in ax.lines] == [[pytest.approx(1.0)]] * (T == 2)
    assert found.summary().height == (T == 2)
    assert "<img" in found._repr_html_()
    norms = norm_sensitivity([uniform(T)])
    assert [text.get_text() for text in norms.plot().texts] == words
    assert norms.frame()["entropy"].to_list() == [None if T == 1 else pytest.approx(math.log(2))]


# --- the sink


@pytest.mark.parametrize("first", [1, 3])
def test_uniform_attention_gives_the_first_tokens_their_share(first):
    T = 20
    row = attention_sink([uniform(T)], first=first).frame().row(0, named=True)
    expected = sum(first / n for n in range(first + 1, T + 1)) / (T - first)
    assert row["mass"] == pytest.approx(expected)
    assert (row["uniform"], row["ratio"]) == (pytest.approx(expected), pytest.approx(1.0))


def test_a_sink_is_found_by_head_and_only_in_rows_that_see_more():
    T = 10
    scores = torch.zeros(2, T, T)
    scores[0, :, 1] = 2000.0  # all on the second token, in one of two sequences
    record = record_of_scores(scores)
    one, two = (attention_sink([record], first=first).frame().row(0, named=True) for first in (1, 2))
    evenly = [sum(m / n for n in range(m + 1, T + 1)) / (T - m) for m in (1, 2)]
    assert one["mass"] == pytest.approx(evenly[0] / 2)
    assert two["mass"] == pytest.approx((1 + evenly[1]) / 2)
    assert two["mass_se"] == pytest.approx((1 - evenly[1]) / 2)
    batch = batch_of({(0, 5): [1], (1, 1): [0]}, 2, T)
    scored = attention_sink([record], batch, first=2, rows="scored").frame().row(0, named=True)
    assert (scored["sequences"], scored["mass"], scored["uniform"]) == (1, 1.0, pytest.approx(2 / 6))


def test_a_sink_needs_rows_that_see_more():
    with pytest.raises(SettingError, match="first: expected fewer tokens"):
        attention_sink([uniform(4)], first=4)
    with pytest.raises(SettingError, match="first: expected at least 1"):
        attention_sink([uniform(4)], first=0)


def test_the_figure_of_the_sink_shows_the_uniform_share():
    ax = attention_sink(decoder_with_gap(4.0), TASK, (16, 64), first=2).plot()
    assert ax.get_ylabel() == "mass on the first 2 tokens\n(share of a row)"
    assert [line.get_label() for line in ax.lines] == ["Softmax, layer 0", "uniform attention, m / n"]
    assert len(ax.lines) == 2


def test_kernels_that_do_not_normalize_are_marked():
    kernels = pytest.importorskip("sparsity_lab.kernels")
    kernel = kernels.ReLUAttention()
    record = random_record(16, 1, 20, 4, kernel=kernel)
    frame = attention_entropy([record]).frame().filter(pl.col("keys") == 2)
    assert 0 < frame["empty_share"][0] < 1
    assert frame["row_sum"][0] != pytest.approx(1.0)
    assert frame["negative_share"][0] == 0.0
    assert Softmax() != kernel
