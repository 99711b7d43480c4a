"""Tiles: every counted row once, a bounded number of weights at a time, and the same numbers whatever the tile."""

import dataclasses

import polars as pl
import pytest
import torch
from analysis.attention_cases import TASK, batch_of, decoder_with_gap, random_record, record_of, record_of_scores
from polars.testing import assert_frame_equal

from sparsity_lab.analysis import (
    attention_entropy,
    attention_sink,
    dilution,
    distractor_robustness,
    norm_sensitivity,
    planted_mass,
)
from sparsity_lab.analysis.attention import subjects, tiles
from sparsity_lab.analysis.attention.tiles import row_tiles
from sparsity_lab.analysis.memory import peak_memory
from sparsity_lab.generators import Batch
from sparsity_lab.kernels import LSSAR, Kernel, Softmax
from sparsity_lab.models import Decoder
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError

MEASURES = {
    "entropy": attention_entropy,
    "sink": attention_sink,
    "planted_mass": planted_mass,
    "dilution": dilution,
    "norm_sensitivity": lambda *arguments, **options: norm_sensitivity(*arguments, factors=(2.0,), **options),
    "distractors": lambda *arguments, **options: distractor_robustness(*arguments, strengths=(0.5, 1.0), **options),
}


def test_every_row_comes_once_and_in_order():
    record = random_record(2, 3, 40, 4)
    pieces = list(row_tiles(record))
    assert torch.cat([torch.arange(40)[piece.rows] for piece in pieces]).tolist() == list(range(40))
    for piece in pieces:
        assert torch.equal(piece.weights, record.weights(piece.rows.start, piece.rows.stop)[..., : piece.rows.stop])


def test_only_stretches_with_counted_rows_are_computed(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_WEIGHTS", 2 * 3 * 40 * 2)  # two rows a tile
    counted = torch.zeros(2, 40, dtype=torch.bool)
    counted[0, [3, 4, 5, 17]] = True
    counted[1, [4, 39]] = True
    pieces = list(row_tiles(random_record(2, 3, 40, 4), counted))
    assert [(piece.rows.start, piece.rows.stop) for piece in pieces] == [(3, 5), (5, 6), (17, 18), (39, 40)]
    assert pieces[0].counted.tolist() == [[True, True], [False, True]]


def test_weights_that_are_no_numbers_are_refused():
    record = random_record(2, 3, 40, 4)
    q = record.q.clone()
    q[1, 0, 7] = torch.nan
    broken = dataclasses.replace(record, q=q, rotated_q=q)
    with pytest.raises(SettingError, match=r"models: expected finite attention weights, got NaN or infinity in rows"):
        list(row_tiles(broken))
    counted = torch.ones(2, 40, dtype=torch.bool)
    counted[1, 7] = False
    assert list(row_tiles(broken, counted)), "a row that is not measured may be anything"


def test_shares_of_rows_that_are_no_distribution():
    tile = tiles.RowTile(
        0, torch.tensor([[[[2.0, 0, 0], [3.0, -1, 0], [0.0, 0, 0]]]]), torch.ones(1, 3, dtype=torch.bool)
    )
    assert tile.total.flatten().tolist() == [2, 4, 0]
    assert tile.measured.flatten().tolist() == [True, True, False]
    # -3/4 ln 3/4 - 1/4 ln 1/4
    assert tile.entropy.flatten().tolist() == pytest.approx([0, 0.5623351446, 0], abs=1e-7)


@pytest.mark.parametrize("name", MEASURES)
def test_no_measure_holds_more_than_a_tile(name, monkeypatch):
    """T = 300 with 20 rows a tile at most, for every call of a kernel's weights and whatever is scaled or altered."""
    T, sizes = 300, []
    weights = Kernel.weights
    count_of_tile = 2 * T * 20

    def spied(self, q_rows, k, **options):
        result = weights(self, q_rows, k, **options)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(Kernel, "weights", spied)
    monkeypatch.setattr(tiles, "TILE_WEIGHTS", count_of_tile)
    monkeypatch.setattr(subjects, "_TOKENS_TOGETHER", T)
    model = Decoder(num_layers=2, num_heads=2, d_model=16).build(0)
    MEASURES[name](model, TASK, (T - 2,), sequences=2)
    assert sizes
    # The distractor looks at one row of two sequences, partners, at a time.
    assert max(sizes) <= count_of_tile


@pytest.mark.parametrize("name", MEASURES)
def test_neither_tiles_nor_batches_change_a_number(name, monkeypatch):
    model = Decoder(num_layers=2, num_heads=2, d_model=16, kernel=(Softmax(), LSSAR(p=3))).build(0)
    whole = MEASURES[name](model, TASK, (12, 30), sequences=6).frame()
    monkeypatch.setattr(tiles, "TILE_WEIGHTS", 2 * 32 * 7)
    monkeypatch.setattr(subjects, "_TOKENS_TOGETHER", 64)
    pieces = MEASURES[name](model, TASK, (12, 30), sequences=6).frame()
    # A slope is a difference of float32 entropies, divided by 0.1.
    assert_frame_equal(whole, pieces, abs_tol=3e-5, rel_tol=1e-4)


@pytest.mark.parametrize("name", ["entropy", "sink", "planted_mass", "norm_sensitivity"])
def test_records_and_decoder_agree(name):
    model = Decoder(num_layers=2, num_heads=2, d_model=16).build(0)
    batch = TASK.sample(subjects.Stream(seed=0, name="analysis"), 0, 8, 20)
    columns = pl.exclude("arm", "length")
    by_record = MEASURES[name](model.record(batch.tokens), batch).frame()
    assert_frame_equal(by_record.select(columns), MEASURES[name](model, batch).frame().select(columns))
    by_task = MEASURES[name](model, TASK, (20,), sequences=8).frame()
    assert_frame_equal(by_record.select(columns), by_task.select(columns))


def test_long_sequences_fit_into_little_memory():
    """All rows of 4 heads at T = 4096: their weights would be 256 MiB, and softmax makes some copies of a tile."""
    model = Decoder(num_layers=1).build(0).eval()
    assert peak_memory(lambda: attention_entropy(model, TASK, (4094,), sequences=1)) < 100 * 2**20


def test_layer_records_are_the_records():
    model = Decoder(num_layers=3, num_heads=2, d_model=16).build(0)
    tokens = torch.arange(12)[None] % 16
    for one, other in zip(model.layer_records(tokens), model.record(tokens), strict=True):
        assert isinstance(one, LayerRecord)
        for field in ("q", "k", "rotated_q", "rotated_k"):
            assert torch.equal(getattr(one, field), getattr(other, field))
            assert not getattr(one, field).requires_grad


def test_heads_that_share_keys_are_measured():
    record = random_record(2, 4, 12, 4)
    shared = record_of(record.q, record.k[:, ::2])
    repeated = record_of(record.q, record.k[:, ::2].repeat_interleave(2, dim=1))
    for measure in (attention_entropy, norm_sensitivity):
        assert_frame_equal(measure([shared]).frame(), measure([repeated]).frame())


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (lambda: ([],), {}, "models: expected at least one"),
        (lambda: ({},), {}, "models: expected at least one"),
        (lambda: ([decoder_with_gap(1.0)],), {}, "or a mapping from names to models"),
        (lambda: ("run",), {}, "models"),
        (lambda: (decoder_with_gap(1.0),), {}, "data: missing; a decoder on its own needs a task or a batch"),
        (lambda: (decoder_with_gap(1.0), TASK), {}, "lengths: expected at least one length"),
        (lambda: (decoder_with_gap(1.0), TASK, (8,)), {"sequences": 0}, "sequences"),
        (lambda: (decoder_with_gap(1.0), TASK, (1,)), {}, "length: expected at least 3"),
        (lambda: (decoder_with_gap(1.0), TASK, (8,)), {"rows": "score"}, r"rows: .*did you mean 'scored'"),
        (lambda: ([random_record(1, 1, 8, 4)],), {"rows": "scored"}, "data: .*the batch that the records come from"),
        (lambda: ([random_record(1, 1, 8, 4)], TASK), {}, "data: .*the batch that the records come from"),
        (
            lambda: ([random_record(1, 1, 8, 4)], batch_of({(0, 5): [1]}, 2, 8)),
            {},
            "data: .*the batch that the records come from",
        ),
        (lambda: ([random_record(1, 1, 8, 4)], None, (8,)), {}, "lengths: expected None"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, options, words):
    with pytest.raises(SettingError, match=words):
        attention_entropy(*arguments(), **options)


def test_measures_that_need_more_than_records_say_so():
    record = record_of_scores(torch.zeros(2, 8, 8))
    batch = batch_of({(0, 5): [1], (1, 5): [1]}, 2, 8)
    with pytest.raises(SettingError, match="data: .*the batch that the records come from"):
        planted_mass([record])
    with pytest.raises(SettingError, match="models: records cannot be evaluated again"):
        distractor_robustness([record], batch)
    text = dataclasses.replace(record)
    batch = Batch(batch.tokens, batch.targets)
    with pytest.raises(SettingError, match="data: the task does not declare the sources"):
        planted_mass([text], batch)
