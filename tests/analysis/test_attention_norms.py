"""Entropy against norms: the tables of the norm-aware sheet, the exact law of softmax, and the interventions."""

import copy
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from analysis.attention_cases import TASK, batch_of, decoder_with_gap, random_record, record_of, record_of_scores
from polars.testing import assert_frame_equal
from scipy.stats import rankdata, spearmanr

from sparsity_lab.analysis import attention_entropy, norm_sensitivity, softmax_entropy_slope
from sparsity_lab.analysis.attention.norm_sensitivity import _ranks, _within_columns
from sparsity_lab.generators import SparseMarkov, Stream
from sparsity_lab.kernels import LSSA, Kernel, Linear, NormAwareLinear, RotaryPosition, Softmax
from sparsity_lab.models import ALiBi, Decoder, NoPE, RoPE
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError


def entropy_of(p):
    return -torch.xlogy(p, p).sum(-1)


# --- the law


def test_the_softmax_law_is_the_derivative():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    r = torch.rand(50, generator=generator, dtype=torch.float64) * 4 + 0.1
    step = 1e-5
    up, down = (entropy_of(((r + sign * step)[:, None] * a).softmax(-1)) for sign in (1, -1))
    slope = softmax_entropy_slope(a, r)
    assert torch.allclose(slope, (up - down) / (2 * step), rtol=0, atol=1e-9)
    assert (slope < 0).all()
    assert softmax_entropy_slope(torch.ones(20, dtype=torch.float64), r[0]).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("position", [NoPE(), RoPE(), ALiBi()], ids=lambda p: p.kind)
def test_the_measured_slope_is_the_law(position):
    """Also with a rotation, which keeps norms, and with a bias, which does not scale with them."""
    made = position.kernel_position(torch.arange(24)[None], 2, 8, torch.float64)
    record = random_record(3, 2, 24, 8, position=made)
    frame = norm_sensitivity([record], factors=()).frame()
    for measured, exact in frame.select("query_slope", "exact_query_slope").iter_rows():
        assert exact < -0.1
        assert measured == pytest.approx(exact, rel=2e-3)
    # Without a bias, scaling all keys is the same as scaling all queries.
    alike = frame["key_slope"].to_list() == pytest.approx(frame["query_slope"].to_list(), rel=1e-9)
    assert alike


def test_the_law_by_hand():
    """Two keys with scores ±s: Var_p = s² / cosh(s)², in the second of two rows."""
    s = 0.7
    record = record_of_scores(torch.tensor([[[0.0, 0.0], [s, -s]]], dtype=torch.float64))
    row = norm_sensitivity([record], factors=()).frame().row(0, named=True)
    assert row["exact_query_slope"] == pytest.approx(-((s / math.cosh(s)) ** 2), rel=1e-9)
    assert row["query_slope"] == pytest.approx(-((s / math.cosh(s)) ** 2), rel=1e-3)
    assert row["query_norm"] == pytest.approx(2 * s)  # sqrt(T) sqrt(s² + s²), T = 2


@pytest.mark.parametrize("kernel", [LSSA(), Linear(feature="relu")], ids=lambda k: k.kind)
def test_mechanisms_that_do_not_see_the_query_norm(kernel):
    frame = norm_sensitivity([random_record(64, 1, 30, 8, kernel=kernel)], factors=()).frame()
    assert frame["query_slope"].to_list() == pytest.approx([0.0], abs=1e-9)
    assert frame["exact_query_slope"].to_list() == [None]
    # 63 x 29 pairs of ranks: a standard error of 0.023
    assert frame["query_spearman"][0] == pytest.approx(0.0, abs=0.1)


def test_norm_aware_attention_sees_query_norms_and_not_key_norms():
    record = random_record(4, 1, 30, 8, kernel=NormAwareLinear())
    record = replace(record, q=0.3 * record.q)
    row = norm_sensitivity([record], factors=()).frame().row(0, named=True)
    assert abs(row["query_slope"]) > 0.02
    assert row["key_slope"] == pytest.approx(0.0, abs=1e-9)


# --- the tables of the sheet


@pytest.mark.parametrize(
    ("direction", "entropies"),
    [
        ((0.6, 0.8), [0.653578811520, 0.548040931785, 0.468415750045, 0.419158510811, 0.410965265237]),
        ((0.8, 0.6), [1.020230816014, 1.114740620126, 1.181082447205, 1.219328522203, 1.225447762820]),
    ],
    ids=["falls", "rises"],
)
def test_norm_sweep_of_norm_aware_attention(direction, entropies):
    keys = torch.tensor([[1, 2], [1, 0.2], [1, 0.2], [1, 0.2]], dtype=torch.float64).expand(1, 1, 4, 2)
    found = {}
    for kernel in (NormAwareLinear(), Linear(feature="relu")):
        records = [
            record_of(r * torch.tensor(direction, dtype=torch.float64).expand(1, 1, 4, 2), keys, kernel)
            for r in (0.1, 0.5, 1.0, 2.0, 4.0)
        ]
        found[kernel.kind] = [attention_entropy([record]).frame()["entropy"][-1] for record in records]
    assert found["NormAwareLinear"] == pytest.approx(entropies, abs=1e-9)
    if direction == (0.6, 0.8):
        assert found["Linear"] == pytest.approx([1.252102915936] * 5, abs=1e-6)


def random_queries(kernel: Kernel, scale: float = 1.0):
    """400 queries of norm uniform on (.05, 4) on the same 256 Gaussian keys, d = 64, in the last of 256 rows."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(256, 64, generator=generator).double()
    q = torch.randn(400, 64, generator=generator).double()
    r = 0.05 + 3.95 * torch.rand(400, generator=generator).double()
    rows = torch.zeros(400, 1, 256, 64, dtype=torch.float64)
    rows[:, 0, -1] = scale * q / q.norm(dim=-1, keepdim=True) * r[:, None]
    batch = batch_of({(i, 255): [0] for i in range(400)}, 400, 256)
    return record_of(rows, k.expand(400, 1, 256, 64), kernel), batch, r


@pytest.mark.parametrize(
    ("kernel", "scale", "spearman", "entropy", "small", "large"),
    [
        # no scale: the kernel's own 1/sqrt(64) is undone
        (Softmax(), 8.0, (-0.95, 0.02), (3.80, 0.15), (5.50, 0.02), (2.12, 0.15)),
        (Softmax(), 1.0, (-1.00, 0.02), (5.51, 0.02), (5.54, 0.01), (5.45, 0.02)),
        (Linear(feature="relu"), 1.0, (0.03, 0.13), (5.49, 0.03), (5.49, 0.03), (5.49, 0.03)),
        (Linear(), 1.0, (-0.88, 0.05), (5.541, 0.003), (5.542, 0.003), (5.541, 0.003)),
        (NormAwareLinear(), 1.0, (-0.50, 0.13), (5.10, 0.06), (5.33, 0.05), (5.04, 0.06)),
        (NormAwareLinear(map="polarity"), 1.0, (-0.50, 0.13), (5.10, 0.06), (5.32, 0.05), (5.03, 0.06)),
    ],
    ids=["softmax unscaled", "softmax", "relu", "elu", "norm-aware", "polarity"],
)
def test_correlations_of_the_sheet(kernel, scale, spearman, entropy, small, large):
    """Section 8: value and tolerance of the correlation and of the mean entropy, over all queries, over those of norm
    below 0.5 and over those above 3; for one draw of the keys and 400 of the queries.

    A correlation near 0 has a standard error of 0.05 over queries; that of norm-aware attention also varies with the
    keys. Entropy varies by about 1 with the norm without a scale, and by less than 0.1 otherwise.
    """
    record, batch, norm = random_queries(kernel, scale)
    row = norm_sensitivity([record], batch, factors=(), rows="scored").frame().row(0, named=True)
    assert row["query_spearman"] == pytest.approx(spearman[0], abs=spearman[1])
    assert row["query_spearman_normalized"] == pytest.approx(row["query_spearman"], abs=1e-4)
    assert row["entropy"] == pytest.approx(entropy[0], abs=entropy[1])
    # All rows see the same keys.
    assert row["key_spearman"] is None
    for chosen, (value, tolerance) in ((norm < 0.5, small), (norm > 3, large)):
        some = record_of(record.q[chosen], record.k[chosen], kernel)
        rows = batch_of({(i, 255): [0] for i in range(len(some.q))}, len(some.q), 256)
        found = attention_entropy([some], rows, rows="scored").summary()["entropy"].item()
        assert found == pytest.approx(value, abs=tolerance)


# --- position is no norm


def test_rows_are_compared_at_equal_n():
    """Norms grow along the sequence and entropy with n, but within a row neither knows of the other."""
    T, count = 24, 40
    generator = torch.Generator().manual_seed(0)
    scores = torch.zeros(count, T, T)
    sharp = torch.rand(count, generator=generator)
    scores[:, :, 0] = 3 * sharp[:, None]  # how sharp a sequence is
    record = record_of_scores(scores)
    # A coordinate that no key has gives queries any norm, and changes no weight.
    norm = 100 + 10 * torch.arange(T) + torch.rand(count, T, generator=generator)
    more = (norm[:, None].double() ** 2 - record.q.square().sum(-1)).sqrt()
    q = torch.cat([record.q, more[..., None]], dim=-1) * math.sqrt((T + 1) / T)
    k = torch.cat([record.k, torch.zeros(count, 1, T, 1, dtype=torch.float64)], dim=-1)
    row = norm_sensitivity([record_of(q, k)], factors=()).frame().row(0, named=True)
    assert row["query_spearman"] == pytest.approx(0.0, abs=0.1)
    # H / ln n takes out most of the position, not all: that is why the first is the one to read.
    frame = attention_entropy([record_of(q, k)]).frame()
    plain = pl.DataFrame({"h": frame["entropy"], "r": range(T)}).select(pl.corr("h", "r", method="spearman")).item()
    assert plain > 0.9
    assert abs(row["query_spearman_normalized"]) < plain


def test_one_sequence_has_no_correlation_at_equal_n():
    frame = norm_sensitivity([random_record(1, 2, 30, 4)], factors=()).frame()
    assert frame["query_spearman"].to_list() == [None, None]
    assert frame["query_spearman_normalized"].null_count() == 0


def keys_of(size: torch.Tensor) -> LayerRecord:
    """Softmax with one query for all rows; keys have these sizes (B, T) and alternating signs."""
    count, T = size.shape
    k = torch.stack([size * (-1.0) ** torch.arange(T), torch.zeros(count, T)], dim=-1)[:, None].double()
    return record_of(torch.ones_like(k), k)


def test_key_norm_is_the_mean_over_the_keys_that_a_row_sees():
    """Row 5 of 8 sees six keys, whose mean norm orders five sequences as it orders how sharp they are; the norms of
    its own key, of all keys and of their sum order them otherwise."""
    seen = torch.tensor([[1.0, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 0.9], [3, 3, 3, 3, 3, 0.8], [4, 4, 4, 4, 4, 0.7],
                         [5, 5, 5, 5, 5, 0.6]])  # fmt: skip
    later = torch.tensor([40.0, 30, 20, 10, 0])[:, None].expand(5, 2)
    size = torch.cat([seen, later], dim=1)
    batch = batch_of({(i, 5): [0] for i in range(5)}, 5, 8)
    frame = norm_sensitivity([keys_of(size)], batch, factors=(), rows="scored").frame()
    row = frame.row(0, named=True)
    assert row["key_spearman"] == row["key_spearman_normalized"] == pytest.approx(-1.0)
    assert row["query_spearman"] is None
    assert row["key_norm"] == pytest.approx(seen.mean().item())
    # By hand: scores are ± the size over sqrt(2), the sixth key's own in the row that it is in.
    entropy = [
        entropy_of((own * (-1.0) ** torch.arange(6) / math.sqrt(2)).double().softmax(-1)).item() for own in seen
    ]
    assert row["entropy"] == pytest.approx(sum(entropy) / 5)
    mutants = {"own key": size[:, 5], "all keys": size.mean(1), "last key": size[:, -1]}
    for name, norm in mutants.items():
        assert spearmanr(entropy, norm).statistic == pytest.approx(1.0), name


def test_a_partial_correlation_by_hand():
    """Mean norms 1 .. 5 beside entropies that fall with the largest key alone, 4 2 5 1 3 in rising order of norms."""
    T, ranks = 6, [4, 2, 5, 1, 3]
    size = torch.zeros(5, T)
    for i, rank in enumerate(ranks):
        # One key of size 6 - rank, so that a small rank is sharp; the others make up the mean. All point aside.
        size[i, 1:] = ((i + 1) * T - (6 - rank)) / (T - 1)
        size[i, 0] = 6 - rank
    k = torch.zeros(5, 1, T, 2, dtype=torch.float64)
    k[:, 0, 0, 0], k[:, 0, 1:, 1] = size[:, 0].double(), size[:, 1:].double()
    q = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(5, 1, T, 2)
    batch = batch_of({(i, T - 1): [0] for i in range(5)}, 5, T)
    row = norm_sensitivity([record_of(q, k)], batch, factors=(), rows="scored").frame().row(0, named=True)
    # Differences of ranks: 3 0 2 -3 -2, so 1 - 6 (9 + 0 + 4 + 9 + 4) / (5 (25 - 1)).
    assert row["key_spearman"] == pytest.approx(1 - 6 * 26 / 120)
    assert row["key_norm"] == pytest.approx(3.0)


def test_ranks_are_pooled_within_rows():
    """Two rows, five sequences each: +1 in one and -1 in the other make 0, as no correlation over all would."""
    sizes = torch.tensor([1.0, 2, 3, 4, 5])
    entropy = np.stack([np.arange(5.0), 10 + np.arange(5.0)[::-1]], axis=1)
    norm = np.stack([sizes.numpy(), 10 * sizes.numpy()], axis=1)
    assert _within_columns(entropy, norm) == pytest.approx(0.0)
    assert _within_columns(entropy[:, :1], norm[:, :1]) == pytest.approx(1.0)
    assert spearmanr(entropy.ravel(), norm.ravel()).statistic > 0.4


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_ties_are_relative(scale):
    """Differences of rounding are ties at any scale, true differences are none."""
    values = scale * np.array([1.0, 1.0 + 1e-8, 2.0, 3.0, 3.0 - 1e-8])
    assert _ranks(values).tolist() == [-1.5, -1.5, 0.0, 1.5, 1.5]
    assert _ranks(scale * (5.0 + 1e-8 * np.arange(4))).tolist() == [0.0] * 4
    # The mutant, with its fixed six digits, takes the one for the other at one of the ends.
    fixed = rankdata(np.round(values, 6))
    assert (fixed.tolist() == [1.5, 1.5, 3.0, 4.5, 4.5]) is (scale == 1.0)


# --- the intervention in the model


@pytest.mark.parametrize("layer", [0, 1])
def test_rescaled_queries_are_rescaled_projections(layer):
    """The loss under c q in one layer is that of a model whose query projection there is multiplied by c."""
    model = Decoder(num_layers=2, num_heads=2, d_model=16, position=RoPE()).build(0).eval()
    batch = TASK.sample(Stream(name="x"), 0, 6, 12)
    sweep = norm_sensitivity(model, batch, factors=(0.5, 2.0)).sweep()
    assert sweep["factor"].unique().sort().to_list() == [0.5, 1.0, 2.0]
    for factor in (0.5, 1.0, 2.0):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.blocks[layer].qkv.weight[:16] *= factor
            logits = changed(batch.tokens, scored=batch.scored).logits.double()
        expected = torch.nn.functional.cross_entropy(logits, batch.targets[batch.scored]).item()
        rows = sweep.filter((pl.col("layer") == layer) & (pl.col("factor") == factor))
        assert rows["loss"].to_list() == [pytest.approx(expected, abs=1e-6)] * 2
        entropy = attention_entropy(changed, batch).summary().filter(pl.col("layer") == layer)["entropy"]
        assert rows["entropy"].to_list() == pytest.approx(entropy.to_list(), abs=1e-5)
    plain = sweep.filter(pl.col("factor") == 1)
    assert plain["loss_change"].to_list() == [0.0] * 4
    changed_loss = sweep.filter((pl.col("factor") == 2) & (pl.col("layer") == layer)).row(0, named=True)
    assert changed_loss["loss_change"] == pytest.approx(changed_loss["loss"] - plain["loss"][0], abs=1e-12)
    assert abs(changed_loss["loss_change"]) > 1e-4


def test_the_error_of_a_loss_change_is_paired_over_sequences():
    """By hand from the losses of each target; every token of these sequences is one."""
    model = Decoder(num_layers=1, num_heads=2, d_model=16, position=RoPE()).build(0).eval()
    batch = SparseMarkov(k=1, lag_seed=3).sample(Stream(name="x"), 0, 6, 12)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.blocks[0].qkv.weight[:16] *= 2.0
        # (6, targets) losses: all sequences have equally many.
        plain, after = (
            torch.nn.functional.cross_entropy(
                one(batch.tokens, scored=batch.scored).logits.double(), batch.targets[batch.scored], reduction="none"
            ).view(6, -1)
            for one in (model, changed)
        )
    change = after - plain
    row = norm_sensitivity(model, batch, factors=(2.0,)).sweep().filter(head=0, factor=2.0).row(0, named=True)
    assert change.shape[1] > 3
    assert row["loss_change"] == pytest.approx(change.mean().item(), abs=1e-6)
    expected = change.mean(1).std().item() / math.sqrt(6)
    assert row["loss_change_se"] == pytest.approx(expected, rel=1e-3)
    mutants = {
        "targets for sequences": change.std().item() / math.sqrt(change.numel()),
        "unpaired": math.hypot(after.mean(1).std().item(), plain.mean(1).std().item()) / math.sqrt(6),
        "not over the root": change.mean(1).std().item(),
        "n for n - 1": change.mean(1).std(correction=0).item() / math.sqrt(6),
    }
    for name, mutant in mutants.items():
        assert mutant != pytest.approx(expected, rel=0.05), name


def test_records_have_no_loss():
    sweep = norm_sensitivity([random_record(2, 1, 8, 4)]).sweep()
    assert sweep["loss"].null_count() == sweep.height == 5


def test_positions_can_be_left_out_of_the_weights():
    angles = torch.arange(9, dtype=torch.float64)[None, :, None] * torch.tensor([1.0, 0.3])
    turned = random_record(3, 1, 9, 4, position=RotaryPosition(angles, torch.float64))
    plain = record_of(turned.q, turned.k)
    frames = [
        norm_sensitivity([record], positions=positions, factors=()).frame()
        for record, positions in ((turned, False), (plain, True), (turned, True))
    ]
    assert_frame_equal(frames[0], frames[1])
    assert abs(frames[2]["query_slope"][0] - frames[1]["query_slope"][0]) > 1e-3


def test_the_figure_and_its_refusals():
    found = norm_sensitivity({"a": decoder_with_gap(4.0)}, TASK, (8, 16), sequences=4, factors=(0.5, 2.0))
    ax = found.plot()
    assert ax.get_xlabel() == "query norms of the layer, times (log scale; at length 8)"
    curve = ax.lines[0]
    expected = found.sweep().filter(pl.col("length") == 8)
    assert list(curve.get_xdata()) == [0.5, 1.0, 2.0]
    assert list(curve.get_ydata()) == expected["entropy_change"].to_list()
    assert found.plot(measure="loss_change", length=16).get_ylabel() == "change of loss\n(nats per scored target)"
    with pytest.raises(SettingError, match="length: expected a measured length"):
        found.plot(length=9)
    with pytest.raises(SettingError, match="measure"):
        found.plot(measure="loss")
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(SettingError, match="factors: expected positive finite numbers"):
            norm_sensitivity(decoder_with_gap(4.0), TASK, (8,), factors=(0.5, factor))
