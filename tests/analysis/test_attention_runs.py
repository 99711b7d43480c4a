"""All measures on a trained run and on its weights under another mechanism."""

import polars as pl
import pytest
import torch
from matplotlib.axes import Axes
from training.small_runs import small_run

from sparsity_lab.analysis import (
    attention_entropy,
    attention_sink,
    dilution,
    distractor_robustness,
    norm_sensitivity,
    planted_mass,
)
from sparsity_lab.generators import Planted, Stream
from sparsity_lab.kernels import LSSAR
from sparsity_lab.models import Decoder, NoPE, RoPE
from sparsity_lab.settings import SettingError, kinds
from sparsity_lab.training import train

MEASURES = [attention_entropy, attention_sink, planted_mass, dilution, norm_sensitivity, distractor_robustness]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(small_run(), tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.__name__)
def test_a_run_brings_task_lengths_and_trained_range(measure, run):
    found = measure({"softmax": run, "sharper": run.with_kernel(LSSAR(p=3))}, sequences=4)
    frame = found.frame()
    assert frame["arm"].unique(maintain_order=True).to_list() == ["softmax", "sharper"]
    assert frame["length"].unique().sort().to_list() == [4, 8, 16]
    assert (found.trained.low, found.trained.high, found.trained.same) == (4, 8, True)
    assert not any(dtype == pl.Null for dtype in frame.dtypes)
    ax = found.plot()
    assert isinstance(ax, Axes)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    if ax.get_xlabel().startswith("length"):
        assert "trained 4–8" in [text.get_text() for text in ax.texts]
    if measure is dilution:
        assert set(frame["reference"]) == {8}
    assert "layer" in repr(found)


def test_a_loss_is_that_of_the_evaluation(run):
    """Same sequences, same loss as the run's own forward pass."""
    batch = run.config.task.sample(Stream(seed=5, name="x"), 0, 16, 12)
    found = norm_sensitivity(run, batch, factors=()).sweep()
    with torch.no_grad():
        logits = run.model()(batch.tokens, scored=batch.scored).logits.double()
    expected = torch.nn.functional.cross_entropy(logits, batch.targets[batch.scored]).item()
    assert found["loss"].to_list() == pytest.approx([expected] * 2)


def test_models_without_attention_are_refused():
    with pytest.raises(SettingError, match="models: expected a run"):
        attention_entropy({"a": 3})


EXAMPLES = [example for kind in kinds("kernel").values() for example in kind.examples()]


@pytest.mark.parametrize("kernel", EXAMPLES, ids=str)
def test_every_registered_mechanism_can_be_measured(kernel):
    """Shares are shares, whatever the sign and the sum of the weights, and entropy has its bounds."""
    position = RoPE() if "rotate" in kernel.positions else NoPE()
    model = Decoder(num_layers=1, num_heads=2, d_model=16, kernel=kernel, position=position).build(0)
    entropy = attention_entropy(model, Planted(k=2), (22,), sequences=2).frame().drop_nulls()
    assert entropy["entropy"].min() >= 0
    assert entropy["normalized_entropy"].max() <= 1 + 1e-5
    assert 0 <= entropy["negative_share"].min() <= entropy["negative_share"].max() <= 1
    masses = planted_mass(model, Planted(k=2), (22,), sequences=2).frame().drop_nulls()
    assert (masses["mass"] + masses["decoy_mass"]).max() <= 1 + 1e-5
    row = distractor_robustness(model, Planted(k=2), (22,), sequences=2, strengths=(1.0,)).frame().row(0, named=True)
    assert 0 <= row["wrong_share"] <= 1
