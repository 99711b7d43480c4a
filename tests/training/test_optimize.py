"""What the loop hands to a model beside the batch, and what it makes of the output."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training.small_runs import Alternating, small_run

from sparsity_lab.generators import Planted, Task
from sparsity_lab.kernels import AdaptiveSparse
from sparsity_lab.models import (
    Coupling,
    Decoder,
    IndexSampling,
    ModelConfig,
    ModelOutput,
    Oracle,
    Plain,
    PoSE,
    RandomOffset,
)
from sparsity_lab.settings import SettingError, register
from sparsity_lab.settings.words import Words
from sparsity_lab.training import RunConfig, Training, evaluate
from sparsity_lab.training.optimize import Records, _Loop, _step_inputs, optimize, threads_and_device


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


# --- parts of a step, and precision


def weights_after(run: RunConfig, tmp_path: Path) -> dict[str, Tensor]:
    model = run.model.build(0, run.task.vocabulary.size)
    optimize(run, model, Records(), tmp_path / "none")
    return model.state_dict()


@pytest.mark.parametrize("task", [Planted(k=1), Alternating()], ids=str)
def test_parts_of_a_step_are_the_whole(task: Task) -> None:
    """Logits, loss and gradients, of sequences with one scored target and with two, and of an auxiliary loss."""
    run = small_run(task=task, model=Decoder(d_model=16, num_heads=2, kernel=AdaptiveSparse(block_size=2)))
    (batch,) = itertools.islice(_step_inputs(run, 0, torch.device("cpu")), 1)
    found = []
    for number in (1, 4):
        model = run.model.build(0, run.task.vocabulary.size)
        loop = _Loop(run, model, Records(), torch.device("cpu"))
        parts = batch.parts(number)
        assert [len(part.tokens) for part in parts] == [4 // number] * number
        logits, losses = zip(*(loop._gradients(part, len(batch.targets), number) for part in parts), strict=True)
        gradients = {name: x.grad for name, x in model.named_parameters() if "kernel_params" not in name}
        found.append((torch.cat(logits), sum(losses), gradients))
    (logits, loss, gradients), (of_parts, loss_of_parts, gradients_of_parts) = found
    torch.testing.assert_close(of_parts, logits)
    torch.testing.assert_close(loss_of_parts, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_of_parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_each_part_is_seen_once(tmp_path: Path) -> None:
    whole, parts = Drawing(), Drawing()
    run = small_run()
    optimize(run, whole, Records(), tmp_path / "none")
    optimize(run.replace(training=run.training.replace(accumulation=2)), parts, Records(), tmp_path / "none")
    assert parts.lengths == [length for length in whole.lengths for _ in range(2)]
    assert parts.drawn[::2] == whole.drawn
    assert parts.drawn[1] not in whole.drawn
    torch.testing.assert_close(parts.pulled, whole.pulled)


def test_the_next_batch_is_made_after_the_step_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a GPU is busy with a step; and before its numbers are looked at, which would wait for it."""
    told: list[str] = []
    sample, forward = Planted.sample, Drawing.forward
    monkeypatch.setattr(Planted, "sample", lambda *args: told.append("batch") or sample(*args))
    monkeypatch.setattr(Drawing, "forward", lambda *args, **options: told.append("step") or forward(*args, **options))
    run = small_run(training=small_run().training.replace(log_every=1, steps=3))
    optimize(run, Drawing(), Records(), tmp_path / "none", lambda *_: told.append("look"))
    assert told == ["batch", "step", "batch", "look", "step", "batch", "look", "step", "look"]


def test_bfloat16(tmp_path: Path) -> None:
    """Autocast in the forward pass; weights stay in float32, and are about those of float32."""
    run = small_run()
    exact = weights_after(run, tmp_path)
    half = weights_after(run.replace(training=run.training.replace(precision="bf16")), tmp_path)
    assert all(weight.dtype == torch.float32 for weight in half.values())
    differences = [float((half[name] - exact[name]).abs().max()) for name in exact]
    assert 0 < max(differences) < 0.05


def test_tf32_is_for_gpus_alone(tmp_path: Path) -> None:
    """On a CPU it is float32 to the bit; on a GPU a setting, which ends with the run."""
    run = small_run()
    exact = weights_after(run, tmp_path)
    other = weights_after(run.replace(training=run.training.replace(precision="tf32")), tmp_path)
    assert all(torch.equal(exact[name], other[name]) for name in exact)
    before = torch.get_float32_matmul_precision()
    for precision, products in (("tf32", "high"), ("float32", "highest"), ("bf16", "highest")):
        with threads_and_device(Training(device="cuda", precision=precision)):
            assert torch.get_float32_matmul_precision() == products
            assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.get_float32_matmul_precision() == before
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_refusals() -> None:
    with pytest.raises(SettingError, match="accumulation: expected a divisor of the batch_size 64, got 3"):
        Training(accumulation=3)
    with pytest.raises(SettingError, match="device: expected cpu, cuda or cuda:N: mps has no float64"):
        Training(device="mps")


def test_what_is_new_changes_no_id() -> None:
    """At its default; elsewhere it does."""
    run = small_run()
    for changed in ({"accumulation": 2}, {"precision": "bf16"}):
        assert run.replace(training=run.training.replace(**changed)).id != run.id
