"""What the loop hands to a model beside the batch, and what it makes of the output."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training.small_runs import small_run

from sparsity_lab.generators import Planted
from sparsity_lab.models import Coupling, IndexSampling, ModelConfig, ModelOutput, Oracle, Plain, PoSE, RandomOffset
from sparsity_lab.settings import SettingError, register
from sparsity_lab.settings.words import Words
from sparsity_lab.training import Training, evaluate
from sparsity_lab.training.optimize import Records, optimize, threads_and_device


class Drawing(nn.Module):
    """Draws a number at each step, and has a weight that only the auxiliary loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(16))
        self.pulled = nn.Parameter(torch.zeros(3))
        self.untouched = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.drawn: list[float] = []
        self.lengths: list[int] = []
        self.indices: list[Tensor | None] = []
        self.position_ids: list[Tensor | None] = []

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor | None,
        *,
        indices: Tensor | None = None,
        scored: Tensor,
        generator: torch.Generator | None = None,
    ) -> ModelOutput:
        self.drawn.append(torch.rand((), generator=generator).item())
        self.lengths.append(tokens.shape[1])
        self.indices.append(indices)
        self.position_ids.append(position_ids)
        return ModelOutput(self.logits.expand(int(scored.sum()), -1), {"pulled": self.pulled.sum()})


class AnyLength(ModelConfig):
    """Serves all that is asked of it."""

    def build(self, seed: int, vocab_size: int | None = None) -> Drawing:
        return Drawing()

    def check_length(self, longest: int, *, trained: int | None = None) -> None:
        pass

    def check_position_ids(self, largest: int, num_kinds: int) -> None:
        pass


@register
class WithSchedule(AnyLength):
    index_sampling: IndexSampling = RandomOffset(size=64)

    def sampled_indices(self, words: Words, size: int) -> Tensor | None:
        return self.index_sampling.sampled_indices(words, size)


@register
class WithoutSchedule(AnyLength):
    pass


@register
class WithCoupling(WithSchedule):
    index_sampling: IndexSampling = Plain()
    coupling: Coupling = Oracle(max_id=30, random_offset="spread")

    def arranged_ids(self, words: Words, position_ids: Tensor | None, *, training: bool) -> Tensor | None:
        assert position_ids is not None
        return self.coupling.arranged_ids(words, position_ids, training=training)


def test_any_model_with_a_schedule_gets_its_indices(tmp_path: Path) -> None:
    moved, unmoved = Drawing(), Drawing()
    optimize(small_run(model=WithSchedule()), moved, Records(), tmp_path / "none")
    optimize(small_run(model=WithoutSchedule()), unmoved, Records(), tmp_path / "none")
    assert [indices.shape for indices in moved.indices if indices is not None] == [(4, n) for n in moved.lengths]
    assert unmoved.indices == [None] * 12


def test_schedule_and_coupling_move_their_own_and_draw_by_themselves(tmp_path: Path) -> None:
    """Indices are the same with any coupling, IDs the same with any index_sampling."""

    def given(model: ModelConfig) -> tuple[list[Tensor | None], list[Tensor | None]]:
        seen = Drawing()
        optimize(small_run(task=Planted(k=1, coupled=True), model=model), seen, Records(), tmp_path / "none")
        return seen.indices, seen.position_ids

    both, coupled = given(WithCoupling(index_sampling=PoSE(target=64))), given(WithCoupling())
    scheduled = given(WithCoupling(index_sampling=PoSE(target=64), coupling=Oracle(max_id=30, random_offset=False)))
    for found, indices, ids, unmoved in zip(both[0], scheduled[0], coupled[1], scheduled[1], strict=True):
        assert found is not None
        assert indices is not None
        assert torch.equal(found, indices)
        assert ids is not None
        assert unmoved is not None
        assert not torch.equal(ids, unmoved)
    assert all(torch.equal(one, other) for one, other in zip(both[1], coupled[1], strict=True))
    assert coupled[0] == [None] * 12


def test_auxiliary_losses_are_trained_but_not_reported(tmp_path: Path) -> None:
    model, records = Drawing(), Records()
    optimize(small_run(), model, records, tmp_path / "none")
    assert (model.pulled < -1e-3).all()
    assert (model.untouched == 0).all()
    # Uniform logits over sixteen tokens, whatever the auxiliary loss is.
    assert records.metrics[0]["loss"] == pytest.approx(torch.tensor(16.0).log().item(), rel=1e-6)


class LogitsAlone(Drawing):
    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        return super().forward(*arguments, **options).logits


def test_logits_alone_are_refused_in_training_and_evaluation(tmp_path: Path) -> None:
    message = r"model: expected a module whose forward returns ModelOutput\(logits, auxiliary_losses\), got .*Tensor"
    with pytest.raises(SettingError, match=message):
        optimize(small_run(), LogitsAlone(), Records(), tmp_path / "none")
    with pytest.raises(SettingError, match=message):
        evaluate(LogitsAlone(), small_run())


def test_every_step_draws_its_own_and_always_the_same(tmp_path: Path) -> None:
    first, second, other = Drawing(), Drawing(), Drawing()
    optimize(small_run(), first, Records(), tmp_path / "none")
    optimize(small_run(), second, Records(), tmp_path / "none")
    optimize(small_run(data_seed=1), other, Records(), tmp_path / "none")
    assert first.drawn == second.drawn
    assert len(set(first.drawn + other.drawn)) == 24


def test_global_state_is_left_alone(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    config = small_run(training=small_run().training.replace(threads=threads + 1))
    seen: list[int] = []
    optimize(config, Drawing(), Records(), tmp_path / "none", lambda *_: seen.append(torch.get_num_threads()))
    assert set(seen) == {threads + 1}
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_reports_the_logged_steps(tmp_path: Path) -> None:
    calls: list[tuple[int, int, float, float]] = []
    records = Records()
    optimize(small_run(), Drawing(), records, tmp_path / "none", lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 12), (4, 12), (7, 12), (10, 12), (12, 12)]
    assert [call[2:] for call in calls] == [(row["loss"], row["accuracy"]) for row in records.metrics]


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_determinism_on_a_gpu_ends_with_the_run(monkeypatch: pytest.MonkeyPatch, workspace: str | None) -> None:
    """No GPU is needed for this: only settings are changed, and changed back."""
    if workspace is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    else:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with threads_and_device(Training(device="cuda")):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (workspace or ":4096:8")
        with threads_and_device(Training()):
            assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == workspace
    finally:
        torch.use_deterministic_algorithms(False)
