"""Fine-tuning at a longer context: what a child starts from, what is stored, what is refused."""

from pathlib import Path

import pytest
import torch
from kernels.closeness import assert_close
from safetensors.torch import load_file, save_file
from torch import Tensor
from training.small_runs import small_run
from training.test_train import Interrupted, contents, interrupt_at

from sparsity_lab.cli import run as command_line
from sparsity_lab.generators import SparseMarkov
from sparsity_lab.kernels import ShiftedSparse, Softmax
from sparsity_lab.models import Decoder, LoRA, NoPE, RoPE, lora_embed_norm, merged
from sparsity_lab.settings import SettingError, canonical_json
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training, extended, train
from sparsity_lab.training.checkpoint import load_weights
from sparsity_lab.training.files import DamagedFile
from sparsity_lab.training.optimize import Records, optimize

SHORT = Training(steps=6, batch_size=4, log_every=3, curriculum=FixedLength(length=8))
PARENT = RunConfig(
    task=SparseMarkov(max_lag=4),
    model=Decoder(num_layers=1, num_heads=2, d_model=16, tied_head=True),
    training=SHORT,
    evaluation=Evaluation(lengths=(8, 16), sequences=8),
)
CHILD = extended(
    PARENT,
    16,
    kernel=ShiftedSparse(ratio=0.25),
    adapter=lora_embed_norm(rank=2),
    training=SHORT.replace(learning_rate=1e-2, checkpoint_every=2),
)


def tokens() -> Tensor:
    return torch.randint(0, 8, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parent and child, finished."""
    folder = tmp_path_factory.mktemp("runs")
    train(CHILD, folder)
    return folder


def test_extension_says_what_it_changes() -> None:
    assert CHILD.parent == PARENT
    assert CHILD.model == PARENT.model.replace(kernel=ShiftedSparse(ratio=0.25), position=RoPE(scale=2.0))
    assert CHILD.training.curriculum == FixedLength(length=16)
    assert (CHILD.data_seed, CHILD.model_seed) == (PARENT.data_seed, PARENT.model_seed)
    again = extended(CHILD, 40, interpolate=True)
    assert again.model.position == RoPE(scale=5.0)
    assert again.adapter is None
    assert again.evaluation.lengths == (8, 16, 40)
    assert extended(PARENT, 16, interpolate=False).model == PARENT.model


def test_adapter_is_part_of_the_id() -> None:
    children = [CHILD, *(CHILD.replace(adapter=one) for one in (None, LoRA(rank=2), lora_embed_norm(rank=3)))]
    assert len({child.id for child in children}) == 4


def test_stored_run_is_the_trained_model(out: Path, tmp_path: Path) -> None:
    """Trained once more in memory, to compare with what comes from the file; the tied embedding and the norms, which
    are whole, have moved."""
    run = train(CHILD, out)
    model = CHILD.model.build(0, vocab_size=8)
    load_weights(out / PARENT.id / "model.safetensors", model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    CHILD.adapter.attach(model, CHILD.model_seed)
    optimize(CHILD, model, Records(), tmp_path / "none")
    stored = run.model()
    assert torch.equal(stored(tokens()).logits, model.eval()(tokens()).logits)
    assert_close("merged", merged(stored)(tokens()).logits, stored(tokens()).logits, 1e-5)
    moved = {name for name, value in stored.state_dict().items() if name in before and (value != before[name]).any()}
    norms = {name for name in before if "norm" in name}
    assert moved == norms | {"token_embedding.weight", "head.weight"}
    assert stored.head.weight is stored.token_embedding.weight


@pytest.mark.parametrize("name", ["token_embedding.weight", "final_norm.weight", "blocks.0.qkv.low_rank.q.B"])
def test_file_without_a_trained_weight_is_refused(out: Path, tmp_path: Path, name: str) -> None:
    weights = load_file(out / CHILD.id / "model.safetensors")
    shape = tuple(weights.pop(name).shape)
    save_file(weights, tmp_path / "file")
    model = train(CHILD, out).model()
    with pytest.raises(DamagedFile, match=f"another model: {name} is missing, not ") as error:
        load_weights(tmp_path / "file", model)
    assert str(error.value).endswith(str(shape))


def test_file_of_another_dtype_is_refused(out: Path, tmp_path: Path) -> None:
    weights = load_file(out / CHILD.id / "model.safetensors")
    save_file(weights | {"final_norm.weight": weights["final_norm.weight"].double()}, tmp_path / "file")
    model = train(CHILD, out).model()
    with pytest.raises(DamagedFile, match="another dtype: final_norm.weight is torch.float64, not torch.float32"):
        load_weights(tmp_path / "file", model)


def test_optimizer_knows_only_what_is_trained(out: Path) -> None:
    """And a run goes on from its checkpoint to the same bytes."""
    folder = out / "interrupted"
    child = CHILD.replace(training=CHILD.training.replace(log_every=1))
    train(PARENT, folder)
    with pytest.raises(Interrupted):
        train(child, folder, progress=interrupt_at(3))
    state = load_file(folder / child.id / "checkpoint.safetensors")
    kept = {name.split(".", 1)[1].rsplit(".", 1)[0] for name in state if name.startswith("optimizer.")}
    model = child.model.build(0, vocab_size=8)
    child.adapter.attach(model, 0)
    assert kept == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("low_rank" in name for name in kept)
    assert "blocks.0.qkv.linear.weight" not in kept
    assert contents(train(child, folder).folder) == contents(train(child, out / "whole").folder)


def test_parents_files_are_left_alone(out: Path, tmp_path: Path) -> None:
    train(PARENT, tmp_path)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (tmp_path / PARENT.id).rglob("*.*")}
    train(CHILD, tmp_path)
    train(extended(CHILD, 32), tmp_path)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before


def test_child_without_steps_is_its_parent(out: Path) -> None:
    """An adapted parent's weights come merged; the scale of positions is the child's own, and says so."""
    idle = SHORT.replace(steps=0)
    same = train(CHILD.replace(parent=CHILD, adapter=None, training=idle), out)
    adapted = train(CHILD, out).model()
    assert_close("logits", same.model()(tokens()).logits, adapted(tokens()).logits, 1e-6)
    assert list(same.model().state_dict()) == list(train(PARENT, out).model().state_dict())
    plain = train(extended(PARENT, 16, interpolate=False, training=idle), out)
    widened = train(extended(PARENT, 16, training=idle), out)
    assert torch.equal(plain.model()(tokens()).logits, train(PARENT, out).model()(tokens()).logits)
    assert (plain.model()(tokens()).logits - widened.model()(tokens()).logits).abs().max() > 1e-4
    assert widened.config.model.position.scale == 2 * widened.config.parent.model.position.scale
    assert '"scale":2.0' in (widened.folder / "config.json").read_text()
    assert plain.metrics.is_empty()
    assert plain.evaluation["loss"].to_list() == train(PARENT, out).evaluation["loss"].to_list()


def test_evaluation_is_dense_and_says_so(out: Path) -> None:
    run = train(CHILD, out)
    assert run.evaluation["attention"].unique().to_list() == ["Softmax()"]
    sparse = run.with_kernel(ShiftedSparse(ratio=0.25, sparse_at_inference=True)).evaluate()
    assert sparse["attention"].unique().to_list() == ["ShiftedSparse(ratio=0.25, sparse_at_inference=True)"]
    assert sparse["loss"].to_list() != run.evaluation["loss"].to_list()
    assert run.with_kernel(Softmax()).evaluate()["loss"].to_list() == run.evaluation["loss"].to_list()


def test_other_weights_are_named(tmp_path: Path) -> None:
    wider = PARENT.replace(model=PARENT.model.replace(d_ff=48, num_kv_heads=1))
    child = extended(PARENT, 16).replace(parent=wider)
    with pytest.raises(SettingError, match=r"parent.model: expected blocks.0.qkv.weight of shape \(48, 16\)"):
        train(child, tmp_path)
    deeper = extended(PARENT, 16).replace(parent=PARENT.replace(model=PARENT.model.replace(num_layers=2)))
    with pytest.raises(
        SettingError, match=r"expected blocks.1.attention_norm.weight of shape none, .* got \(16,\) in"
    ):
        train(deeper, tmp_path)
    untied = PARENT.replace(model=PARENT.model.replace(tied_head=False))
    with pytest.raises(
        SettingError, match=r"expected token_embedding.weight and head.weight tied, as in the child, got two"
    ):
        train(extended(PARENT, 16).replace(parent=untied), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_untied_child_of_a_tied_parent_starts_from_both_uses(out: Path) -> None:
    child = extended(PARENT, 16, training=SHORT.replace(steps=0))
    model = train(child.replace(model=child.model.replace(tied_head=False)), out).model()
    assert torch.equal(model.head.weight, train(PARENT, out).model().head.weight)
    assert torch.equal(model.head.weight, model.token_embedding.weight)
    assert model.head.weight is not model.token_embedding.weight


REFUSED = {
    "not longer": (lambda: extended(PARENT, 8), "length: expected more than 8, .*, got 8"),
    "no rotation": (
        lambda: extended(PARENT.replace(model=PARENT.model.replace(position=NoPE())), 16),
        "parent.model.position: expected RoPE, or interpolate=False, got 'NoPE",
    ),
    "no such map": (
        lambda: extended(PARENT, 16, adapter=LoRA(projections=("query",))),
        r"adapter.projections\[0\]: .*\(one of q, k, v, output, up, down\), got 'query'",
    ),
    "no parent": (lambda: small_run(adapter=LoRA()), "adapter: expected None, since there is no parent"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(SettingError, match=message):
        make()


def test_command_line_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    file.write_text(canonical_json(CHILD).replace('"output"', '"outpt"'))
    assert command_line(["train", str(file), "--out", str(tmp_path / "runs")]) == 2
    message = capsys.readouterr().err
    assert "adapter.projections[3]: expected a projection of the model" in message
    assert "did you mean 'output'?" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "runs").exists()
