"""Retained mass: closed forms, the kernel's own audit, and oracles that are never beaten."""

import numpy as np
import pytest
import torch
from analysis.attention_cases import random_record, record_of

from sparsity_lab.analysis import retained_mass
from sparsity_lab.generators import Planted
from sparsity_lab.kernels import AdaptiveSparse, Kernel, ShiftedSparse, SlidingWindow, Softmax
from sparsity_lab.models import ALiBi, Decoder
from sparsity_lab.settings import SettingError

ADAPTIVE = AdaptiveSparse(block_size=4, n_sink=1, n_local=1, k_free=2)
KERNELS = [ADAPTIVE, SlidingWindow(width=9, sinks=2), ShiftedSparse(group=8, sparse_at_inference=True)]


def test_a_window_on_uniform_attention() -> None:
    """With equal scores dense attention is 1 / n, so that mass is the share of keys kept."""
    zeros = torch.zeros(2, 1, 40, 4, dtype=torch.float64)
    found = retained_mass([record_of(zeros, zeros, SlidingWindow(width=10, sinks=2))], block_size=4, rows=36, k=3)
    n = np.arange(5, 41)
    kept = np.minimum(n, 12)
    row = found.frame().row(0, named=True)
    assert row["rows"] == 36
    assert row["mass"] == pytest.approx((kept / n).mean())
    assert row["budget"] == pytest.approx((kept / n).mean())
    assert row["below"] == pytest.approx((kept / n < 0.9).mean())
    # Whole blocks of what the row touches: its own keys in the own block, four for each other.
    own, start = (n - 1) % 4 + 1, np.maximum(n - 10, 0) // 4
    touched = (n - 1) // 4 - np.maximum(start, 1) + 1
    assert row["oracle"] == pytest.approx(((own + 4 * touched) / n).mean())
    assert row["estimated"] is None


def test_one_needle() -> None:
    """All dense mass on key 5 of 64: a window of eight loses it, an adaptive choice by mean scores finds it."""
    q, k = torch.zeros(1, 1, 64, 2, dtype=torch.float64), torch.zeros(1, 1, 64, 2, dtype=torch.float64)
    q[..., 0] = 60.0
    k[0, 0, 5, 0] = 1.0
    window, adaptive = (
        retained_mass([record_of(q, k, kernel)], block_size=4, rows=16, k=1).frame().row(0, named=True)
        for kernel in (SlidingWindow(width=8, sinks=0), ADAPTIVE)
    )
    # Of the sixteen rows 6, 10, 14 .. 63 two have key 5 in the window; row 14 sees its block, but not the key.
    assert window["mass"] == pytest.approx(2 / 16)
    assert window["recall"] == pytest.approx(3 / 16)
    assert window["oracle"] == pytest.approx(1.0)
    assert window["gap"] == pytest.approx(1 - window["mass"])
    assert adaptive["mass"] == pytest.approx(1.0)
    assert adaptive["recall"] == 1.0
    assert adaptive["silent_misses"] == 0.0
    assert adaptive["budget"] < 0.6


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kind)
def test_no_choice_beats_the_oracle(kernel: Kernel) -> None:
    record = random_record(3, 2, 50, 8, kernel=kernel)
    frame = retained_mass([record], block_size=4, rows=50).frame()
    assert (frame["gap"] > 0.001).all()
    assert (frame["oracle"] <= 1 + 1e-12).all()
    assert frame["mass"].is_between(0.05, 0.95).all()
    assert frame["recall"].is_between(0.05, 0.95).all()


def test_all_is_kept_by_dense_attention() -> None:
    for kernel in (Softmax(), ShiftedSparse(group=8)):
        row = retained_mass([random_record(2, 2, 40, 8, kernel=kernel)]).frame().row(0, named=True)
        assert [row[name] for name in ("mass", "budget", "recall", "oracle")] == pytest.approx([1.0] * 4)
        assert row["below"] == 0.0


def test_agrees_with_the_audit() -> None:
    """The mass from weights is the audit's ρ, and so are recall and silent misses. These mean scores, half corrected
    for the spread within a block, miss some rows silently, and know of others that they miss them."""
    kernel = ADAPTIVE.replace(beta=(0.5, 0.0))
    record = random_record(2, 4, 70, 8, seed=3)
    record = record_of(4 * record.q, record.k, kernel)
    found = retained_mass([record], rows=12, k=3, p=0.6).frame()
    rows = torch.tensor([4 + (i + 1) * 66 // 12 - 1 for i in range(12)]).expand(2, -1)
    audit = kernel.audit(record.q, record.k, rows=rows)
    np.testing.assert_allclose(found["mass"], audit.retained.mean((0, 2)), rtol=1e-9)
    np.testing.assert_allclose(found["estimated"], audit.estimated.mean((0, 2)), rtol=1e-9)
    np.testing.assert_allclose(found["recall"], audit.recall(3).mean((0, 2)), rtol=1e-6)
    assert float(found["silent_misses"].mean()) == pytest.approx(audit.calibration(0.6)["silent_misses"])  # type: ignore[arg-type]
    assert 0.05 < found["silent_misses"].mean() < found["below"].mean() - 0.05  # type: ignore[operator]
    budget = (audit.pairs / audit.dense_pairs[:, None]).mean((0, 2))
    np.testing.assert_allclose(found["budget"], budget, rtol=1e-6)


def test_models_and_figure() -> None:
    task = Planted(k=2)
    models = {
        "window": Decoder(kernel=SlidingWindow(width=8, sinks=0), position=ALiBi(), num_layers=1).build(
            0, vocab_size=16
        ),
        "adaptive": Decoder(kernel=ADAPTIVE, num_layers=1).build(0, vocab_size=16),
    }
    found = retained_mass(models, task, [30, 60], sequences=2, rows=4, block_size=8)
    frame = found.frame()
    assert len(frame) == 2 * 2 * 4
    by_arm = {arm: own for (arm,), own in frame.group_by("arm")}
    assert by_arm["window"]["block_size"].unique().to_list() == [8]
    assert by_arm["adaptive"]["block_size"].unique().to_list() == [4]
    assert by_arm["window"]["estimated"].null_count() == 8
    ax = found.plot(layer=0)
    assert ax.get_ylabel().startswith("retained mass")
    assert [text.get_text().replace("\n", " ") for text in ax.texts] == [
        "window, layer 0",
        "adaptive, layer 0",
        "dotted: the best blocks, as many",
        "line: mean over heads; thin: each head",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.0}, "p: expected a share above 0"),
        ({"k": 0}, "k: expected at least 1"),
        ({"block_size": 40}, "lengths: expected more than a block of 40 tokens, got 40"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError) as error:
        retained_mass([random_record(1, 1, 40, 4)], **options)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)
