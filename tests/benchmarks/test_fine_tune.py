"""The fine-tuning benchmark: its count of operations against the published table, and its rows; no times."""

import pytest

from sparsity_lab.benchmarks.fine_tune import fine_tune, forward_flops
from sparsity_lab.kernels import ShiftedSparse
from sparsity_lab.models import Decoder
from sparsity_lab.settings import SettingError


@pytest.mark.parametrize(
    ("context", "dense", "sparse", "projections", "total"),
    [
        (8192, 35.2, 8.8, 35.2, 143.4),
        (32768, 562.9, 140.7, 140.7, 996.0),
        (65536, 2251.8, 562.9, 281.5, 3117.8),
    ],
)
def test_operations_of_a_7b_model(
    context: int, dense: float, sparse: float, projections: float, total: float
) -> None:
    """In 10^12, the split of a 7B model with 32 000 tokens. A gated MLP of width 11008 has three maps, as many
    operations as two of width 16512."""
    config = Decoder(num_layers=32, d_model=4096, num_heads=32, d_ff=16512)
    whole = forward_flops(config, context, vocab_size=32_000)
    grouped = forward_flops(config.replace(kernel=ShiftedSparse(ratio=0.25)), context, vocab_size=32_000)
    assert whole["attention"] / 1e12 == pytest.approx(dense, abs=0.05)
    assert grouped["attention"] / 1e12 == pytest.approx(sparse, abs=0.05)
    assert whole["projections"] / 1e12 == pytest.approx(projections, abs=0.05)
    assert whole["MLP"] == grouped["MLP"] == pytest.approx(6 * context * 4096 * 11008 * 32)
    assert sum(whole.values()) / 1e12 == pytest.approx(total, abs=0.05)


def test_rows() -> None:
    dense, sparse, adapted = fine_tune(lengths=[32]).iter_rows(named=True)
    assert dense["dense over own"] == 1.0
    assert dense["attention, GFLOP"] == 4 * sparse["attention, GFLOP"] == 4 * adapted["attention, GFLOP"]
    # Seven layers of 12 d², embedding and head, norms; seven layers of four maps of rank 8, the embedding, norms.
    norms, embedding = 15 * 128, 256 * 128
    assert dense["trained weights"] == sparse["trained weights"] == 7 * 12 * 128**2 + 2 * embedding + norms
    assert adapted["trained weights"] == 7 * 4 * 8 * 2 * 128 + embedding + norms
    assert adapted["peak MiB"] < sparse["peak MiB"]


def test_refusals() -> None:
    with pytest.raises(SettingError, match="--lengths: expected at least 8, got 4"):
        fine_tune(lengths=[32, 4])
