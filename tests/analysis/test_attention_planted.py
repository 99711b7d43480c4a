"""Planted mass and dilution of heads whose logit gap is known."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from analysis.attention_cases import TASK, batch_of, decoder_with_gap, record_of_scores
from scipy.optimize import brentq

from sparsity_lab.analysis import diluted_mass, dilution, logit_gap, planted_mass
from sparsity_lab.analysis.attention.dilution import _band, _rows, _thinned
from sparsity_lab.analysis.attention.planted_mass import Targets, targets_of
from sparsity_lab.analysis.attention.subjects import subjects_of
from sparsity_lab.generators import Planted
from sparsity_lab.kernels import LSSAR, LogNSoftmax
from sparsity_lab.models import Learned
from sparsity_lab.settings import SettingError


@pytest.mark.parametrize(
    ("k", "expected"),
    [(4, {100: 0.90, 200: 0.82, 500: 0.64, 1000: 0.47}), (12, {100: 0.89, 200: 0.79, 500: 0.60, 1000: 0.42})],
)
def test_dilution_table_of_the_sheet(k, expected):
    gap = logit_gap(0.95, k, 50)
    assert diluted_mass(gap, k, 50) == pytest.approx(0.95, abs=1e-12)
    assert {n: round(diluted_mass(gap, k, n), 2) for n in expected} == expected


def test_the_gap_that_holds_a_mass():
    assert logit_gap(0.95, 4, 500) == pytest.approx(math.log(19 * 496 / 4)) == pytest.approx(7.76, abs=5e-3)
    assert diluted_mass(0.0, 3, 12) == pytest.approx(0.25)
    for arguments in ((0.0, 1, 2), (1.0, 1, 2), (0.5, 0, 2), (0.5, 2, 2)):
        with pytest.raises(SettingError):
            logit_gap(*arguments)


def test_masses_by_hand():
    """Several targets in a sequence, with one, two and three sources; the padding of sources is no source."""
    T = 8
    scores = torch.zeros(2, T, T)
    scores[0, 5, [1, 3]] = math.log(4.0)  # row of 6 keys: sources 2 x 4, others 4 x 1
    scores[0, 7, [0, 2]] = math.log(5.0)  # row of 8 keys: source 2 and decoy 0 have 5 each, others 6 x 1
    scores[1, 6, 4] = math.log(10.0)  # row of 7 keys: all three sources have 1, a decoy 10, others 3 x 1
    batch = batch_of({(0, 5): [1, 3], (0, 7): [2], (1, 6): [0, 1, 2]}, 2, T)
    row = planted_mass([record_of_scores(scores)], batch).frame().row(0, named=True)
    assert (row["sequences"], row["targets"]) == (2, 3)
    masses = [8 / 12, 5 / 16, 3 / 16]
    decoys = [2 / 12, 5 / 16, 12 / 16]
    assert row["mass"] == pytest.approx(((masses[0] + masses[1]) / 2 + masses[2]) / 2)
    assert row["decoy_mass"] == pytest.approx(((decoys[0] + decoys[1]) / 2 + decoys[2]) / 2)
    assert row["uniform"] == pytest.approx(((2 / 6 + 1 / 8) / 2 + 3 / 7) / 2)

    def support(*weights):
        total = sum(weights)
        return math.exp(-sum(w / total * math.log(w / total) for w in weights)) / len(weights)

    supports = [1.0, support(5, *[1] * 6), support(10, 1, 1, 1)]
    assert row["wrong_support"] == pytest.approx(((supports[0] + supports[1]) / 2 + supports[2]) / 2)
    assert row["mass_se"] == pytest.approx(abs((masses[0] + masses[1]) / 2 - masses[2]) / 2)


def test_targets_without_sources_or_without_other_keys_are_left_out():
    batch = batch_of({(0, 0): [0], (0, 3): [-1], (0, 4): [1]}, 1, 6)
    record = record_of_scores(torch.zeros(1, 6, 6))
    row = planted_mass([record], batch).frame().row(0, named=True)
    assert (row["targets"], row["mass"]) == (1, pytest.approx(0.2))
    with pytest.raises(SettingError, match="data: no scored target at length .* has both a source and another key"):
        planted_mass([record], batch_of({(0, 0): [0]}, 1, 6))


def test_all_on_the_sources_leaves_nothing_wrong():
    scores = torch.zeros(1, 6, 6)
    scores[0, 5, [1, 2]] = 2000.0
    row = planted_mass([record_of_scores(scores)], batch_of({(0, 5): [1, 2]}, 1, 6)).frame().row(0, named=True)
    assert (row["mass"], row["decoy_mass"], row["wrong_support"]) == (1.0, 0.0, None)


@pytest.mark.parametrize("k", [1, 3])
def test_a_constant_gap_is_recovered_and_its_decay_is_all_dilution(k):
    lengths, task = (16, 64, 256, 1024), Planted(k=k)
    frame = dilution(decoder_with_gap(4.0, task), task, lengths, sequences=4).frame()
    masses = [diluted_mass(4.0, k, length + 2) for length in lengths]
    assert frame["length"].to_list() == list(lengths)
    for column in ("mass", "predicted_low", "predicted_high"):
        assert frame[column].to_list() == pytest.approx(masses, rel=1e-4)
    assert frame["gap"].to_list() == pytest.approx([4.0] * 4, abs=1e-4)
    assert frame["gap_here"].to_list() == pytest.approx([4.0] * 4, abs=1e-4)
    assert frame["diluted"].to_list() == pytest.approx([masses[0] - mass for mass in masses], abs=1e-5)
    assert frame["misplaced"].to_list() == pytest.approx([0.0] * 4, abs=1e-5)
    assert frame["wrong_support"].to_list() == pytest.approx([1.0] * 4, rel=1e-5)


def test_a_wrong_place_is_told_from_dilution():
    """From length 64 on, position 40 scores beyond the planted tokens: mass goes there, and not to background."""
    model = decoder_with_gap(4.0, position=Learned(size=300))
    with torch.no_grad():
        model.position_embedding.weight.zero_()
        model.position_embedding.weight[40, 3] = 2.0
    rows = dilution(model, TASK, (16, 32, 64, 256), sequences=16).frame()
    assert rows["misplaced"].to_list()[:2] == pytest.approx([0, 0], abs=1e-5)
    far = rows.filter(pl.col("length") >= 64)
    assert far["misplaced"].min() > 0.2
    assert far["decoy_mass"].min() > 0.5
    assert far["wrong_support"].max() < 0.2
    assert (rows["diluted"] + rows["misplaced"]).to_list() == pytest.approx(
        [rows["mass"][0] - mass for mass in rows["mass"]]
    )


def test_a_gap_that_grows_with_length_is_no_dilution():
    constant, growing = (
        dilution(decoder_with_gap(1.0, kernel=kernel), TASK, (16, 64, 256), sequences=4).frame()
        for kernel in (None, LogNSoftmax())
    )
    assert constant["misplaced"].to_list() == pytest.approx([0, 0, 0], abs=1e-5)
    assert growing["misplaced"].is_sorted(descending=True)
    assert growing["misplaced"][-1] < -0.1
    # ln(n) times the scores, so the gap is ln(n) too.
    assert growing["gap_here"].to_list() == pytest.approx([math.log(n) for n in (18, 66, 258)], rel=1e-3)


def test_a_head_that_finds_half_its_targets_lies_between_the_two_predictions():
    """Half of the sequences have a gap of 12, half of 0: one gap for the mean mass would promise a steep fall."""
    few, many = 20, 200
    found = []
    for T in (few, many):
        scores = torch.zeros(2, T, T)
        scores[0, -1, 1] = 12.0
        found.append((record_of_scores(scores), batch_of({(0, T - 1): [1], (1, T - 1): [1]}, 2, T)))
    there, here = (next(targets_of(subjects_of([r]), b, None, 1, 0))[1] for r, b in found)
    row = _rows(here, few, there, 0)[0]
    each = (diluted_mass(12.0, 1, many) + 1 / many) / 2
    assert row["mass"] == pytest.approx(each)
    assert row["predicted_high"] == pytest.approx(each)
    mean = (diluted_mass(12.0, 1, few) + 1 / few) / 2
    assert row["predicted_low"] == pytest.approx(diluted_mass(logit_gap(mean, 1, few), 1, many), rel=1e-6)
    assert row["misplaced"] == 0.0
    assert row["gap"] == pytest.approx(logit_gap(mean, 1, few))


def drawn_targets(gap: float, spread: float, n: int, seed: int, sequences: int = 64) -> Targets:
    """Targets with three sources that score ``gap`` and n - 3 other keys that score N(0, spread²)."""
    k, generator = 3, np.random.default_rng([seed, n])
    wrong = np.exp(spread * generator.standard_normal((sequences, n - k))).sum(1)
    mass = k * math.exp(gap) / (k * math.exp(gap) + wrong)
    values = torch.from_numpy(np.stack([mass, mass, mass], -1))[:, None]
    whole = torch.ones(sequences, dtype=torch.int64)
    return Targets(values, torch.arange(sequences), k * whole, n * whole)


def split(gap_there: float, gap_here: float, spread: float, seed: int) -> dict[str, float]:
    there, here = drawn_targets(gap_there, spread, 26, seed), drawn_targets(gap_here, spread, 194, seed)
    return _rows(here, 26, there, 0)[0]


@pytest.mark.parametrize(("spread", "bias"), [(1.0, 0.002), (2.0, 0.02)])
def test_a_constant_gap_on_an_uneven_background(spread, bias):
    """Scores of the wrong keys with this standard deviation, 40 times 64 sequences: what is misplaced then is the
    bias that the module names, and beyond it noise."""
    rows = [split(4.0, 4.0, spread, seed) for seed in range(40)]
    distance = np.array([row["predicted_low"] - row["mass"] for row in rows])
    # The mean of 40 distances is known to 0.002.
    assert distance.mean() == pytest.approx(bias, abs=0.006)
    error = np.array([row["misplaced_se"] for row in rows])
    found = np.array([row["misplaced"] for row in rows])
    assert np.count_nonzero(np.abs(found) > 2 * error + bias) <= 4
    if spread == 2.0:
        # Without the bias in mind the standard error alone would find a change too often: that is why it is named.
        assert np.count_nonzero(np.abs(found) > 2 * error) > 8


def test_the_standard_error_of_what_is_misplaced():
    """Against the spread over 40 draws; a gap that falls from 4 to 3 is found, and stands out."""
    rows = [split(4.0, 3.0, 1.0, seed) for seed in range(40)]
    values = np.array([row["misplaced"] for row in rows])
    assert (values > 0.1).all()
    error = np.sqrt(np.mean([row["misplaced_se"] ** 2 for row in rows]))
    # The standard deviation of 40 values is known to 11 %.
    assert error == pytest.approx(values.std(ddof=1), rel=0.35)
    # The error of the mass alone, as if the prediction had none, is too small.
    assert np.mean([row["mass_se"] for row in rows]) < 0.6 * error
    assert values.mean() / error > 5


def test_many_targets_are_represented_by_quantiles():
    """2000 targets in 40 sequences of unequal size, beside the sums over all of them."""
    generator = np.random.default_rng(0)
    sequence = np.sort(generator.integers(40, size=2000) ** 2 // 40)
    # Sequences with fewer targets have less mass, so that it matters what a sequence counts.
    mass = torch.from_numpy(generator.beta(2, 1 + sequence / 10)[:, None, None])
    k = torch.from_numpy(generator.integers(1, 4, size=2000))
    n = torch.from_numpy(generator.integers(20, 30, size=2000))
    there = Targets(mass.expand(-1, 1, 3), torch.from_numpy(sequence), k, n)
    here = Targets(mass[:40].expand(-1, 1, 3), torch.arange(40), k[:40], 10 * n[:40])
    low, high = _band(there, here, 0)
    share = 1 / np.bincount(sequence)[sequence]
    share /= share.sum()
    m, own_k = (here.n - here.k).numpy(), here.k.numpy()
    x = ((1 - mass) / mass)[:, 0, 0].numpy() * (k / (n - k)).numpy()  # e^-G
    each = own_k[:, None] / (own_k[:, None] + m[:, None] * x)
    one = brentq(lambda x: share @ (k / (k + (n - k) * x)).numpy() - share @ mass[:, 0, 0].numpy(), 1e-9, 1e9)
    expected = [(own_k / (own_k + m * one)).mean(), (each @ share).mean()]
    assert (low, high) == pytest.approx(sorted(expected), abs=1e-4)
    # Mutants: targets for sequences as the unit, the first 512 gaps for as many quantiles.
    assert abs(each.mean() - high) > 0.01
    assert abs(each[:, np.argsort(x)[:512]].mean() - high) > 0.1


def test_quantiles_keep_what_is_equal_and_stand_in_for_the_rest():
    joined, weights = _thinned(np.array([3.0, 1.0, 1.0, 2.0]), np.array([0.1, 0.2, 0.3, 0.4]))
    assert joined.tolist() == [1, 2, 3]
    assert weights.tolist() == pytest.approx([0.5, 0.4, 0.1])
    many = np.random.default_rng(0).permutation(np.arange(1024.0))
    chosen, weights = _thinned(many, np.full(1024, 1 / 1024))
    assert chosen.tolist() == list(range(0, 1024, 2))
    assert weights.tolist() == [1 / 512] * 512
    # A value with half of the weight stands for half of the quantiles.
    heavy = np.where(many == 700, 1023.0, 1.0)
    assert np.count_nonzero(_thinned(many, heavy / heavy.sum())[0] == 700) == 256


def test_masses_of_zero_and_one_have_infinite_gaps():
    sharp = dilution(decoder_with_gap(200.0), TASK, (16, 64), sequences=2).frame()
    assert sharp["gap"].to_list() == [math.inf] * 2
    assert sharp["predicted_low"].to_list() == [1.0, 1.0]
    blind = dilution(decoder_with_gap(-8.0, kernel=LSSAR(p=3)), TASK, (16, 64), sequences=2).frame()
    assert blind["gap"].to_list() == [-math.inf] * 2
    assert blind["mass"].to_list() == blind["predicted_high"].to_list() == [0.0, 0.0]


def test_the_reference_can_be_chosen():
    frame = dilution(decoder_with_gap(4.0), TASK, (16, 64), reference=64, sequences=2).frame()
    assert frame["reference"].to_list() == [64, 64]
    assert frame["diluted"][1] == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(SettingError, match="reference: expected a measured length"):
        dilution(decoder_with_gap(4.0), TASK, (16, 64), reference=32, sequences=2)


def test_the_figures_show_the_numbers():
    models = {"gap 2": decoder_with_gap(2.0), "gap 5": decoder_with_gap(5.0)}
    masses = planted_mass(models, TASK, (16, 64), sequences=2)
    ax = masses.plot()
    assert ax.get_ylabel() == "mass on the true sources\n(share of a scored target's row)"
    assert [line.get_label() for line in ax.lines] == ["gap 2, layer 0", "gap 5, layer 0", "uniform attention, k / n"]
    assert list(ax.lines[0].get_ydata()) == masses.frame().filter(arm="gap 2")["mass"].to_list()
    assert list(ax.lines[2].get_ydata()) == pytest.approx([3 / 18, 3 / 66])
    found = dilution(models, TASK, (16, 64), sequences=2)
    ax = found.plot()
    assert ax.lines[0].get_label() == "gap 2, layer 0 head 0, gap 2.0 at 16"
    assert "standard error" in repr(found)
    assert found.summary()["arm"].to_list() == ["gap 2", "gap 2", "gap 5", "gap 5"]
    with pytest.raises(SettingError, match="head: expected a layer and head that were measured"):
        found.plot(layer=0, head=1)
    with pytest.raises(SettingError, match="both a layer and a head"):
        found.plot(layer=0)
