"""What a model returns: logits and auxiliary losses, which no caller can forget."""

from pathlib import Path

import pytest
import torch
from kernels.closeness import assert_close
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparsity_lab.generators import Stream
from sparsity_lab.kernels import AdaptiveSparse, Softmax
from sparsity_lab.models import Decoder, DecoderModel, ModelConfig, NoPE, Predicted
from sparsity_lab.settings import SettingError, register

TOKENS = torch.randint(0, 16, (3, 9), generator=torch.Generator().manual_seed(0))
IDS = torch.randint(0, 6, (3, 1, 9), generator=torch.Generator().manual_seed(1))


def predicting(**options: object) -> DecoderModel:
    return Decoder(coupling=Predicted(max_id=5, loss_weight=0.5), position=NoPE(), **options).build(0)


def loss_of(model: nn.Module) -> Tensor:
    """As anybody would write it."""
    output = model(TOKENS, IDS)
    loss = cross_entropy(output.logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    return sum(output.auxiliary_losses.values(), loss)


def gradients(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in model.parameters()]


def test_a_plain_loop_trains_the_id_heads() -> None:
    model = predicting()
    hidden: list[Tensor] = []
    model.final_norm.register_forward_hook(lambda module, inputs, output: hidden.append(output.detach()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = loss_of(model)
        loss.backward()
        losses.append(model(TOKENS, IDS).auxiliary_losses["position_ids"].item())
        if len(losses) == 1:
            probability = (hidden[0] @ model.id_heads.weight[0].T).softmax(-1)
            following = torch.cat([IDS[:, 0, 1:], torch.zeros(3, 1, dtype=torch.int64)], dim=1)
            slope = 0.5 * (probability - nn.functional.one_hot(following, 6)) / TOKENS.numel()
            expected = torch.einsum("bti,btd->id", slope, hidden[0])
            assert_close("gradient", model.id_heads.weight.grad[0], expected, 1e-5)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_losses_of_kernels_come_by_themselves() -> None:
    """The selector of an adaptive mechanism learns from its auxiliary loss alone."""
    model = predicting(kernel=(Softmax(), AdaptiveSparse(block_size=2)))
    assert list(model(TOKENS, IDS).auxiliary_losses) == ["blocks.1.kernel", "position_ids"]
    loss_of(model).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.blocks[1].kernel_params.parameters())
    assert model.eval()(TOKENS, IDS).auxiliary_losses == {}


@register
class Bare(ModelConfig):
    def build(self, seed: int, vocab_size: int | None = None) -> nn.Module:
        return nn.Identity()


def test_what_a_setting_of_ones_own_serves_unless_it_says_otherwise() -> None:
    """All lengths, no coupled IDs; indices and IDs stay as they are."""
    model, words = Bare(), Stream().words
    model.check_length(10**6, trained=10**6)
    model.check_position_ids(0, 0)
    with pytest.raises(
        SettingError, match="expected a model that accepts the task's coupled position IDs, got 'Bare"
    ):
        model.check_position_ids(3, 1)
    assert model.sampled_indices(words, 9) is None
    assert model.arranged_ids(words, IDS, training=True) is IDS


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # TorchDynamo's own look at it
def test_compiled_and_parallel_modules_give_the_same(tmp_path: Path) -> None:
    """Both take a model's output apart and put it together again."""
    expected = predicting()
    loss_of(expected).backward()
    compiled = predicting()
    loss_of(torch.compile(compiled, backend="eager")).backward()
    parallel = predicting()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        loss_of(nn.parallel.DistributedDataParallel(parallel)).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert expected.id_heads.weight.grad.abs().sum() > 0
    for model in (compiled, parallel):
        for one, other in zip(gradients(model), gradients(expected), strict=True):
            assert_close("gradient", one, other, 1e-5)
