"""``predict_reach``, beside sequences in which background tokens really are repeated."""

from pathlib import Path

import pytest
import torch

from sparsity_lab.analysis import predict_reach
from sparsity_lab.analysis.predict_reach import _repeated
from sparsity_lab.generators import Batch, Planted, Stream, Task
from sparsity_lab.kernels import LSSAR, Kernel, SlidingWindow, Softmax
from sparsity_lab.models import Decoder, NoPE, PositionScheme, RoPE
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Evaluation, FixedLength, Run, RunConfig, Training, train

TASK = Planted(k=2)
TRAINED, LONG = 10, 400
"""So long that accuracy has fallen, and not to chance."""


def trained(
    folder: Path,
    kernel: Kernel = Softmax(),  # noqa: B008
    position: PositionScheme = NoPE(),  # noqa: B008
    task: Task = TASK,
    *,
    threshold: float = 0.01,
    num_layers: int = 1,
    steps: int = 40,
) -> Run:
    config = RunConfig(
        task=task,
        model=Decoder(num_layers=num_layers, num_heads=2, d_model=16, position=position, kernel=kernel),
        training=Training(steps=steps, batch_size=64, learning_rate=1e-2, curriculum=FixedLength(length=TRAINED)),
        evaluation=Evaluation(lengths=(TRAINED, 20, LONG), sequences=256, threshold=threshold),
    )
    return train(config, folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("runs"))


def sample(count: int = 256) -> Batch:
    return TASK.sample(Stream(seed=0, name="analysis"), 0, count, TRAINED)


@pytest.mark.parametrize("kernel", [Softmax(), LSSAR(p=3)])
def test_one_layer_without_positions_sees_repeated_tokens(tmp_path: Path, kernel: Kernel) -> None:
    """The forecast is the accuracy on sequences with repeated background tokens, exactly."""
    run = trained(tmp_path, kernel)
    batch = sample()
    tokens = batch.tokens.gather(1, _repeated(batch, TRAINED, LONG))
    with torch.no_grad():
        right = run.model()(tokens).logits[:, -1].argmax(-1) == batch.targets[batch.scored]
    truth = TASK.truth(LONG)
    assert truth.chance_accuracy is not None
    expected = (float(right.double().mean()) - truth.chance_accuracy) / (1 - truth.chance_accuracy)
    found = predict_reach(run, (LONG,), sequences=256).row(0, named=True)
    assert 0.1 < expected < 0.95
    assert found["predicted"] == pytest.approx(expected, abs=1e-12)
    assert found["residue"] == pytest.approx(found["predicted"] - found["measured"])
    assert found["warning"] is None


def test_sequences_get_as_many_tokens_as_long_ones_have() -> None:
    batch = sample(16)
    places = _repeated(batch, TRAINED, LONG)
    assert places.shape == (16, TASK.sequence_length(LONG))
    assert batch.sources is not None
    for row, own in enumerate(places):
        counts = torch.bincount(own, minlength=batch.tokens.shape[1])
        sources = batch.sources[row, -1]
        assert counts[sources].tolist() == [1, 1]
        assert counts[0] == counts[-1] == 1, "the first token and the question"
        background = [int(count) for place, count in enumerate(counts[1:-1], 1) if place not in sources.tolist()]
        assert sum(background) == LONG - 2
        assert max(background) - min(background) <= 1


def test_every_longer_evaluated_length_has_a_forecast(run: Run) -> None:
    found = predict_reach(run, sequences=256)
    assert found["length"].to_list() == [20, LONG]
    near, far = found["predicted"]
    assert near > far > 0.1
    assert found["predicted_se"][1] > 0
    assert found["measured"].to_list() == run.evaluation["normalized_accuracy"].to_list()[1:]


def test_positions_come_with_a_warning(tmp_path: Path) -> None:
    found = predict_reach(trained(tmp_path, position=RoPE(), num_layers=2), (LONG,), sequences=64)
    assert "the residue is what untrained ones do" in found["warning"][0]


def test_rotary_forecasts_take_trained_indices_alone(tmp_path: Path) -> None:
    """With positions that a rotation of nothing gives, the forecast is that without positions."""
    run = trained(tmp_path, position=RoPE(base=1e30, scale=1e12))
    plain = run.with_kernel(Softmax()).model()
    batch = sample()
    tokens = batch.tokens.gather(1, _repeated(batch, TRAINED, LONG))
    with torch.no_grad():
        right = plain(tokens).logits[:, -1].argmax(-1) == batch.targets[batch.scored]
    found = predict_reach(run, (LONG,), sequences=256)["predicted"][0]
    truth = TASK.truth(LONG)
    assert truth.chance_accuracy is not None
    assert found == pytest.approx((float(right.double().mean()) - truth.chance_accuracy) / 0.5, abs=0.02)


def test_what_cannot_be_foretold(tmp_path: Path, run: Run) -> None:
    with pytest.raises(SettingError, match=r"lengths: expected longer than the trained 10, got 10"):
        predict_reach(run, (TRAINED,))
    untrained = trained(tmp_path, threshold=0.9, steps=1)
    with pytest.raises(SettingError, match="run: the run has not learned its training lengths"):
        predict_reach(untrained)
    with pytest.raises(SettingError, match="run: expected a kernel whose weights do not depend on positions"):
        predict_reach(trained(tmp_path, SlidingWindow(width=8)))
    full = trained(tmp_path, task=Planted(k=TRAINED), threshold=1e-9, steps=2)
    with pytest.raises(SettingError, match=r"run: a sequence of length .* has no background tokens"):
        predict_reach(full)
