"""Adapters: by hand, what is frozen, merging, sizes, refusals."""

import pytest
import torch
from kernels.closeness import assert_close
from torch import Tensor, nn

from sparsity_lab.kernels import ShiftedSparse, Softmax
from sparsity_lab.models import Decoder, DecoderModel, LoRA, RoPE, lora_embed_norm, merged, trainable_parameters
from sparsity_lab.models.adapters import Adapted
from sparsity_lab.settings import SettingError, from_text

ALL = ("q", "k", "v", "output", "up", "down")

CASES = {
    "lora": (Decoder(), LoRA()),
    "tied": (Decoder(tied_head=True), lora_embed_norm()),
    "untied": (Decoder(), lora_embed_norm(rank=3)),
    "head": (Decoder(), LoRA(also_train=("head",))),
    "all maps": (Decoder(output_gate=True), LoRA(projections=(*ALL, "gate"))),
    "grouped, two parts": (Decoder(num_kv_heads=2), LoRA(projections=("v", "q"))),
    "no maps": (Decoder(), LoRA(projections=(), also_train=("norm",))),
}


def tokens() -> Tensor:
    return torch.randint(0, 16, (2, 12), generator=torch.Generator().manual_seed(0))


def attached(case: str) -> DecoderModel:
    config, adapter = CASES[case]
    model = config.build(0).double()
    adapter.attach(model, seed=1)
    return model


def disturb(model: nn.Module) -> None:
    """Move everything that is trained, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def test_by_hand() -> None:
    """W = 1, A = [1 -1], B = [2 0]', α / r = 2: W' = [[5, -4], [0, 1]], and (1, 2) goes to (-3, 2)."""
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.eye(2)
    adapted = Adapted(linear, {"whole": 2}, ["whole"], rank=1, scale=2.0)
    adapted.low_rank["whole"].A.data = torch.tensor([[1.0, -1.0]])
    adapted.low_rank["whole"].B.data = torch.tensor([[2.0], [0.0]])
    assert adapted(torch.tensor([1.0, 2.0])).tolist() == [-3.0, 2.0]
    assert adapted.merged().weight.tolist() == [[5.0, -4.0], [0.0, 1.0]]


@pytest.mark.parametrize("case", CASES)
def test_starts_as_it_was(case: str) -> None:
    assert torch.equal(attached(case)(tokens()).logits, CASES[case][0].build(0).double()(tokens()).logits)


@pytest.mark.parametrize("case", CASES)
def test_merged_is_the_same_function_with_the_parameters_of_before(case: str) -> None:
    model = attached(case)
    disturb(model)
    plain, before = merged(model), CASES[case][0].build(0)
    assert_close("logits", plain(tokens()).logits, model(tokens()).logits, 1e-12)
    assert (plain(tokens()).logits - before.double()(tokens()).logits).abs().max() > 1e-3, "nothing was trained"
    assert list(plain.state_dict()) == list(before.state_dict())
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert (plain.head.weight is plain.token_embedding.weight) == CASES[case][0].tied_head
    disturb(plain)
    assert_close("the adapted model, untouched", merged(model)(tokens()).logits, model(tokens()).logits, 1e-12)


@pytest.mark.parametrize("case", CASES)
def test_frozen_weights_have_no_gradient(case: str) -> None:
    model, words = attached(case), CASES[case][1].also_train
    disturb(model)
    model(tokens()).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        trained = "low_rank" in name or any(word in name for word in words)
        assert (parameter.grad is not None) == trained, name
        assert not trained or parameter.grad.abs().max() > 0, name


def test_tied_head_is_one_weight() -> None:
    """In the number of parameters, and the gradients of both uses add up."""
    config = Decoder(num_layers=1)
    tied, untied = config.replace(tied_head=True).build(0).double(), config.build(0).double()
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == 16 * 64
    untied.head.weight.data = untied.token_embedding.weight.data.clone()
    assert_close("logits", tied(tokens()).logits, untied(tokens()).logits, 1e-12)
    for model in (tied, untied):
        model(tokens()).logits.square().sum().backward()
    both = untied.token_embedding.weight.grad + untied.head.weight.grad
    assert_close("gradient", tied.token_embedding.weight.grad, both, 1e-10)


def test_sizes() -> None:
    """V = 256, d = 128, 4 layers: LoRA 32 768, embedding 32 768, norms (2 · 4 + 1) · 128."""
    config = Decoder(num_layers=4, d_model=128, vocab_size=256)
    for adapter, size in [
        (LoRA(), 32_768),
        (LoRA(also_train=("embedding",)), 2 * 32_768),
        (LoRA(also_train=("norm",)), 32_768 + 1152),
        (lora_embed_norm(), 2 * 32_768 + 1152),
    ]:
        for tied in (False, True):
            model = config.replace(tied_head=tied).build(0)
            adapter.attach(model, 0)
            assert trainable_parameters(model) == size


def test_seeds() -> None:
    """A is a function of the seed, drawn apart for every part, within ± 1 / sqrt(d); no global generator is used."""
    state = torch.random.get_rng_state()
    one, same, other = (Decoder().build(0) for _ in range(3))
    for model, seed in ((one, 5), (same, 5), (other, 6)):
        LoRA(projections=ALL).attach(model, seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    started = {name: p for name, p in one.named_parameters() if name.endswith(".A")}
    for (name, A), B, C in zip(
        started.items(), *([p for n, p in m.named_parameters() if n in started] for m in (same, other)), strict=True
    ):
        assert torch.equal(A, B), name
        assert not torch.equal(A, C), name
        bound = A.shape[1] ** -0.5
        assert 0.9 * bound < A.abs().max() <= bound
    assert len({p.flatten()[0].item() for p in started.values()}) == len(started) == 12


def test_other_kernels_on_an_adapted_model() -> None:
    model = attached("lora")
    disturb(model)
    other = model.with_kernel(ShiftedSparse(group=4, sparse_at_inference=True)).eval()
    assert (other(tokens()).logits - model(tokens()).logits).abs().max() > 1e-3
    assert_close("back", other.with_kernel(Softmax())(tokens()).logits, model(tokens()).logits, 1e-12)
    assert_close("generation", model.generate(tokens(), 4), merged(model).generate(tokens(), 4), 0)


def test_shifted_sparse_is_dense_at_inference() -> None:
    assert ShiftedSparse(ratio=0.25).at_inference == Softmax()
    sparse = ShiftedSparse(group=4, sparse_at_inference=True)
    assert sparse.at_inference == sparse
    assert Softmax().at_inference == Softmax()


def test_widened_again_multiplies() -> None:
    """Interpolation 2: position 7 turns by 3.5 and 0.035 at D = 4."""
    assert RoPE().widened(2.0) == RoPE(scale=2.0)
    assert RoPE(base=500.0).widened(4.0).widened(2.5) == RoPE(base=500.0, scale=10.0)
    x = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64).expand(1, 1, 1, 4)
    turned = RoPE().widened(2.0).kernel_position(torch.tensor([[7]]), 1, 4, torch.float64).rotate(x)[0, 0, 0]
    angles = torch.tensor([3.5, 0.035], dtype=torch.float64)
    assert_close("rotation", turned, torch.stack([angles.cos(), angles.sin()], dim=1).flatten(), 1e-12)


REFUSED = {
    "rank": (lambda: LoRA(rank=0), "rank: expected at least 1, got 0"),
    "alpha": (lambda: LoRA(alpha=0.0), "alpha: expected a positive number, got 0.0"),
    "nothing": (lambda: LoRA(projections=()), "projections: nothing to train; set projections or also_train"),
    "twice": (lambda: LoRA(projections=("q", "q")), "projections: expected different names"),
    "word": (lambda: from_text(LoRA, "LoRA(also_train=['bias'])"), r"also_train\[0\]: expected 'embedding', 'norm'"),
    "no such map": (
        lambda: LoRA(projections=("q", "kv")).attach(Decoder().build(0), 0),
        r"projections\[1\]: .* \(one of q, k, v, output, up, down\), got 'kv'",
    ),
    "no gate": (
        lambda: LoRA(projections=("gate",)).check_model(Decoder()),
        r"projections\[0\]: .* \(one of q, k, v, output, up, down\), got 'gate'",
    ),
    "no layers": (lambda: LoRA().attach(nn.Linear(2, 2), 0), "projections"),
    "a second": (lambda: LoRA().attach(attached("lora"), 0), "model: expected a model without an adapter"),
    "widened": (lambda: RoPE().widened(0.0), "factor: expected more than 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(SettingError, match=message):
        make()


def test_refused_attachment_changes_nothing() -> None:
    model = Decoder().build(0)
    with pytest.raises(SettingError):
        LoRA(projections=("q", "none")).attach(model, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(isinstance(module, Adapted) for module in model.modules())
