"""Kernels in models of ``transformers``: over every registered kernel, and over several architectures."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from interop.tiny_models import NAMES, build, left_padding, tokens, transformers
from kernels.conditions import KERNELS
from safetensors.torch import load_file, save
from torch import nn

from sparsity_lab.interop import attach, attached_kernels, detach, load_attached
from sparsity_lab.kernels import (
    LSSA,
    LSSAR,
    AdaptiveSparse,
    AuxiliaryOutputs,
    Kernel,
    Linear,
    NormAwareLinear,
    Reweighted,
    ShiftedSparse,
    SlidingWindow,
    Softmax,
    SSMax,
)
from sparsity_lab.models import ALiBi
from sparsity_lab.settings import SettingError

SERVED = [kernel for kernel in KERNELS if getattr(kernel, "rotation", "input") == "input"]
"""By models that rotate."""
SOME = [LSSAR(p=15), SSMax(), Reweighted(), AdaptiveSparse(block_size=4, n_local=1, k_free=2, sampled_rows=64)]
"""Tried at once on all architectures."""


def difference(a: Any, b: Any) -> float:
    return float((a - b).detach().abs().max())


@pytest.fixture(scope="module")
def llama() -> Any:
    return build("Llama")


# --- what is computed


@pytest.mark.parametrize("name", NAMES)
def test_softmax_is_the_models_own_attention(name: str) -> None:
    """With grouped heads and padding on both sides, at the rows of real tokens."""
    model, ids, padding = build(name), tokens(24), left_padding(24, 7)
    padding["attention_mask"][1, 20:] = 0
    own, own_padded = model(ids).logits, model(ids, **padding).logits
    attach(model, Softmax())
    assert difference(model(ids).logits, own) < 2e-5
    real = padding["attention_mask"].bool()
    assert difference(model(ids, **padding).logits[real], own_padded[real]) < 2e-5


@pytest.mark.parametrize("kernel", SERVED, ids=str)
def test_a_layer_computes_the_kernels_formula(kernel: Kernel) -> None:
    """Its dense reference weights, on the queries and keys that the model rotated."""
    torch.manual_seed(0)
    model, ids, seen = attach(build("Llama", num_hidden_layers=1), kernel), tokens(24), {}
    layer = model.model.layers[0].self_attn
    shake(layer)
    model.model.layers[0].self_attn.o_proj.register_forward_hook(lambda _, given, out: seen.update(out=given[0]))
    states = model.model.embed_tokens(ids)
    normed = model.model.layers[0].input_layernorm(states)
    cos, sin = model.model.rotary_emb(states, torch.arange(24)[None])
    q, k, v = (
        projection(normed).unflatten(-1, (-1, 8)).transpose(1, 2)
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    q, k = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
    weights = kernel.weights(q, k, training=False, params=layer.attached_kernel.params)
    expected = (weights @ v.repeat_interleave(2, dim=1)).transpose(1, 2).flatten(2)
    model(ids)
    size = expected.detach().abs().max().clamp_min(1.0)
    assert difference(seen["out"], expected) < 1e-4 * kernel.rounding * size


@pytest.mark.parametrize("kernel", SERVED, ids=str)
def test_left_padding_changes_nothing(kernel: Kernel, llama: Any) -> None:
    attach(llama, kernel)
    ids = tokens(24)
    alone, padded = llama(ids[:1, 7:]).logits[0], llama(ids, **left_padding(24, 7)).logits[0, 7:]
    assert difference(alone, padded) < 5e-5 * kernel.rounding


@pytest.mark.parametrize("kernel", SERVED, ids=str)
def test_generation_is_the_same_with_and_without_a_cache(kernel: Kernel, llama: Any) -> None:
    attach(llama, kernel)
    ids, mask = tokens(14), left_padding(14, 5)["attention_mask"]
    made = [
        llama.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, use_cache=cache, pad_token_id=0)
        for cache in (True, False)
    ]
    assert torch.equal(*made)
    assert made[0].shape == (2, 18)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "kernel", [pytest.param(one, id=str(one), marks=() if one in SOME else pytest.mark.slow) for one in SERVED]
)
def test_all_architectures(name: str, kernel: Kernel) -> None:
    """Padding, generation, and logits of the next tokens from the cache equal those of the whole."""
    model, ids = attach(build(name), kernel), tokens(20)
    whole = model(ids)
    first = model(ids[:, :13], use_cache=True)
    second = model(ids[:, 13:], cache=first.cache)
    pieces = torch.cat([first.logits, second.logits], dim=1)
    assert difference(pieces, whole.logits) < 5e-5 * kernel.rounding
    padded = model(ids, **left_padding(20, 6)).logits[0, 6:]
    assert difference(padded, model(ids[:1, 6:]).logits[0]) < 5e-5 * kernel.rounding
    mask = left_padding(20, 6)["attention_mask"]
    made = [
        model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, use_cache=cache, pad_token_id=0)
        for cache in (True, False)
    ]
    assert torch.equal(*made)


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_packed_sequences_are_documents(name: str) -> None:
    model, ids = attach(build(name), LSSAR(p=3)), tokens(20)
    places = torch.cat([torch.arange(8), torch.arange(12)])[None].expand(2, -1)
    packed = model(ids, position_ids=places, use_cache=False).logits
    parts = [model(part).logits for part in (ids[:, :8], ids[:, 8:])]
    assert difference(packed, torch.cat(parts, dim=1)) < 2e-4


def test_the_models_own_scale_of_scores_is_kept() -> None:
    model, ids = build("GPT2", scale_attn_by_inverse_layer_idx=True), tokens(20)
    own = model(ids).logits
    assert difference(attach(model, Softmax())(ids).logits, own) < 2e-5


def test_a_kernel_for_each_layer() -> None:
    model, ids = build("Llama"), tokens(20)
    both, mixed = attach(model, LSSAR())(ids).logits, attach(model, [Softmax(), LSSAR()])(ids).logits
    assert difference(both, mixed) > 1e-2
    assert [str(one.kernel) for one in attached_kernels(model)] == ["Softmax()", "LSSAR()"]


# --- training


@pytest.mark.parametrize("kernel", SERVED, ids=str)
def test_training_has_finite_gradients(kernel: Kernel) -> None:
    model, ids, auxiliary = attach(build("Llama"), kernel).train(), tokens(24), AuxiliaryOutputs()
    generator = torch.Generator().manual_seed(0)
    loss = model(ids, labels=ids, auxiliary=auxiliary, generator=generator, **left_padding(24, 4)).loss
    (loss + sum(auxiliary.losses)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0 or "attached_kernel" in name, name


def test_training_differs_from_inference_where_the_kernel_does() -> None:
    model, ids = build("GPT2"), tokens(32)
    dense = model(ids).logits
    attach(model, ShiftedSparse(ratio=0.25))
    assert difference(model(ids).logits, dense) < 2e-5
    assert difference(model.train()(ids).logits, dense) > 1e-2


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")
def test_gradient_checkpointing_changes_nothing() -> None:
    ids, gradients = tokens(16), []
    for checkpointing in (False, True):
        model = attach(build("Llama"), LSSAR(p=3)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append(model.model.embed_tokens.weight.grad)
    assert torch.equal(*gradients)


# --- leaving, saving


@pytest.mark.parametrize("name", NAMES)
def test_detach_restores_the_model_bit_for_bit(name: str) -> None:
    for implementation in ("sdpa", "eager"):
        model, ids = build(name, attn_implementation=implementation), tokens(20)
        logits, names = model(ids).logits, list(model.state_dict())
        attach(attach(model, SSMax()), LSSAR())
        assert difference(model(ids).logits, logits) > 1e-2
        assert detach(model) is model
        assert torch.equal(model(ids).logits, logits)
        assert list(model.state_dict()) == names
        assert model.config._attn_implementation == implementation
        assert not hasattr(model.config, "attached_kernels")


def shake(model: nn.Module) -> None:
    """Move what kernels learn, as training would."""
    for name, parameter in model.named_parameters():
        if "attached_kernel" in name:
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_learned_parameters_are_saved_and_loaded_with_the_model(name: str, tmp_path: Path) -> None:
    kernels = [SSMax(), AdaptiveSparse(block_size=4, n_local=1, k_free=1, rank=3)]
    model, ids = attach(build(name), kernels), tokens(20)
    learned = {name for name, _ in model.named_parameters() if "attached_kernel" in name}
    assert len(learned) >= 3
    started = model(ids).logits
    shake(model)
    logits = model(ids).logits
    assert difference(logits, started) > 1e-3
    model.save_pretrained(tmp_path)
    again = load_attached(tmp_path)
    assert {name for name, _ in again.named_parameters()} >= learned
    assert torch.equal(again(ids).logits, logits)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain(ids).logits, detach(model)(ids).logits)


@pytest.mark.parametrize("damage", ["cut", "nothing", "another shape"])
def test_damaged_weights_of_a_saved_model_are_one_line(damage: str, tmp_path: Path) -> None:
    attach(build("Llama"), SSMax()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    learned = {name: tensor[:0] for name, tensor in tensors.items() if "attached_kernel" in name}
    content = file.read_bytes()
    other = save(tensors | learned, {"format": "pt"})
    file.write_bytes({"cut": content[:-9], "nothing": b"", "another shape": other}[damage])
    with pytest.raises(SettingError, match="folder: ") as error:
        load_attached(tmp_path)
    assert "\n" not in str(error.value)


def test_learned_parameters_follow_the_seed() -> None:
    kernel = AdaptiveSparse(rank=3)
    drawn = [
        [p for n, p in attach(build("Llama"), kernel, seed=seed).named_parameters() if "attached_kernel" in n]
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))


def test_a_copy_is_a_model_of_its_own() -> None:
    model, ids = attach(build("Llama"), LSSAR()), tokens(16)
    twin = copy.deepcopy(model)
    detach(model)
    assert torch.equal(twin(ids).logits, attach(model, LSSAR())(ids).logits)


def test_half_precision() -> None:
    model, ids = attach(build("Llama").bfloat16(), [SSMax(), LSSAR()]), tokens(16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(ids).logits.isfinite().all()


# --- what is refused


def refused(model: Any, kernel: Any) -> str:
    with pytest.raises(SettingError) as error:
        attach(model, kernel)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k not in SERVED], ids=str)
def test_kernels_that_rotate_themselves(kernel: Kernel) -> None:
    """They are refused by models that rotate, with the setting that works, and served by those that do not."""
    expected = "kernel.rotation: expected 'input', since this model rotates queries and keys before attention, got "
    assert refused(build("Llama"), kernel).startswith(expected)
    assert attach(build("GPT2"), kernel)(tokens(12)).logits.isfinite().all()


class Gated(Softmax):
    """A kernel with a gate."""

    gates = ("forget",)


def test_kernels_that_are_refused() -> None:
    model = build("Llama")
    assert refused(model, Gated()) == (
        "kernel: expected a kernel without gates; only layers of Decoder compute gates, got Softmax()"
    )
    words = "kernel: expected a kernel, such as LSSAR(p=15); positions stay those of the model, got ALiBi()"
    assert refused(model, ALiBi()) == words
    assert refused(model, "LSSAR").startswith("kernel: expected a kernel, such as LSSAR(p=15), got 'LSSAR'")
    assert refused(model, [LSSA()]) == "kernel: expected one kernel, or one for each of 2 layers, got 1"
    assert refused(model, [LSSA(), Linear(rotation="none")]).startswith("kernel[1].rotation: expected 'input'")
    with pytest.raises(SettingError, match=r"^seed: expected a whole number, got 0.5$"):
        attach(model, LSSA(), seed=0.5)  # type: ignore[arg-type]
    assert model.config._attn_implementation == "sdpa"


def test_models_that_are_refused() -> None:
    falcon = transformers.FalconForCausalLM(
        transformers.FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    )
    words = "model: expected a model class that looks its attention up in AttentionInterface"
    assert refused(falcon, LSSAR()).startswith(words)
    words = (
        "model: expected a decoder with only causal self-attention; a kernel cannot replace other kinds of attention"
    )
    assert refused(build("GPT2", add_cross_attention=True), LSSAR()).startswith(words)
    bert = transformers.BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    assert refused(transformers.BertModel(bert), LSSAR()).startswith(words)
    assert refused(nn.Linear(2, 2), LSSAR()) == "model: expected a model of transformers, got Linear"
    assert refused("gpt2", LSSAR()) == "model: expected a model of transformers, got str"


def test_calls_that_are_refused() -> None:
    ids = tokens(12)
    model = attach(build("Llama", attention_dropout=0.1), LSSAR())
    assert model(ids).logits.isfinite().all()
    with pytest.raises(SettingError, match=r"model.config.attention_dropout: expected 0 in training, .* got 0.1"):
        model.train()(ids)
    gpt2 = attach(build("GPT2", attn_pdrop=0.2), LSSAR()).train()
    with pytest.raises(
        SettingError, match=r"model.config.attn_pdrop: expected 0 .*load the model with attn_pdrop=0.0"
    ):
        gpt2(ids)
    model.eval()
    with pytest.raises(
        SettingError, match=r"cache: caches of fixed size are not supported; use cache_implementation='dynamic'"
    ):
        model.generate(ids, max_new_tokens=2, do_sample=False, cache_implementation="static", pad_token_id=0)
    with pytest.raises(
        SettingError, match=r"attention_mask: expected a padding mask \(B, K\) or None .*\(2, 1, 12, 12\)"
    ):
        model(ids, attention_mask=torch.ones(2, 1, 12, 12, dtype=torch.bool))
    ratio = attach(build("Llama"), ShiftedSparse(ratio=0.5, sparse_at_inference=True))
    assert ratio(ids).logits.isfinite().all()
    every = torch.ones_like(ids)
    with pytest.raises(SettingError, match=r"kernel.group: expected group and variant='split', since decoding"):
        ratio.generate(ids, attention_mask=every, max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_sliding_windows_are_refused_once_they_hide_a_key() -> None:
    model, own = (build("Mistral", sliding_window=16) for _ in range(2))
    attach(model, Softmax())
    assert difference(model(tokens(16)).logits, own(tokens(16)).logits) < 2e-5
    words = "model.config.sliding_window: expected None, or sequences of at most 16 tokens, since a kernel sees all"
    with pytest.raises(SettingError, match=words):
        model(tokens(20))
    with pytest.raises(SettingError, match=words):
        model.generate(tokens(14), max_new_tokens=6, do_sample=False, pad_token_id=0)
    model.config.sliding_window = None
    assert model(tokens(20)).logits.isfinite().all()


class Scaled(transformers.LlamaForCausalLM):
    """A model whose attention is more than the softmax of scores: what it hands over is not all."""

    def forward(self, *args: Any, **options: Any) -> Any:
        out = super().forward(*args, **options)
        if self.config._attn_implementation == "sdpa":
            out.logits = 2 * out.logits
        return out


def test_a_model_that_softmax_changes_is_refused_as_it_was() -> None:
    model = Scaled(build("Llama").config).train()
    words = refused(model, LSSAR())
    assert words == (
        "model: expected a model whose attention is the softmax of scaled scores, for which a kernel can stand, got "
        "Scaled, whose logits change with Softmax() attached"
    )
    assert model.training
    assert model.model.layers[1].self_attn.training
    assert not any("attached_kernel" in name for name, _ in model.named_modules())
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_raises_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("Llama")
    monkeypatch.setattr(type(model), "forward", lambda *args, **options: {}["no\nlogits"])
    assert refused(model, LSSAR()).startswith(
        "model: expected a model that reads tokens with a kernel attached, got "
    )


def test_models_that_share_a_config_are_told_apart() -> None:
    one = build("Llama")
    other = transformers.LlamaForCausalLM(one.config)
    attach(one, LSSAR())
    with pytest.raises(SettingError, match=r"model.config: two models share this config"):
        other(tokens(8))


def test_what_is_not_attached(tmp_path: Path) -> None:
    model = build("Llama")
    with pytest.raises(
        SettingError, match=r"model: expected a model with a kernel from attach\(model, kernel\), got Ll"
    ):
        detach(model)
    for folder in ("nowhere", 5):
        with pytest.raises(SettingError, match="^folder: expected a folder that save_pretrained wrote, got "):
            load_attached(folder)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"folder: expected a model that was saved with a kernel attached"):
        load_attached(tmp_path)
    model.config.attached_kernels = [5, "LSSA()"]
    model.save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"^attached_kernels\[0\]: expected a kernel such as .*, got 5"):
        load_attached(tmp_path)


def test_without_transformers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingError) as error:
        attach(nn.Linear(1, 1), LSSAR())
    assert str(error.value).startswith(
        'transformers: expected the package transformers (pip install "sparsity-lab[transformers]"), got '
    )


def test_another_version_of_transformers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def sdpa_mask(batch_size: int, cache_position: Any, kv_length: int) -> None:
        """As it was before."""

    monkeypatch.setattr(transformers.masking_utils, "sdpa_mask", sdpa_mask)
    words = refused(build("Llama"), LSSAR())
    assert words == f"transformers: expected version 5.24 or a compatible one, got {transformers.__version__!r}"


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")
def test_in_a_model_of_peft() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build("Llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    ids, own = tokens(16), build("Llama")
    attach(model, LSSAR())
    assert difference(model(ids).logits, attach(own, LSSAR())(ids).logits) < 1e-6
    assert torch.equal(detach(model)(ids).logits, detach(own)(ids).logits)


def test_shortcuts_are_what_they_say() -> None:
    """The tests above see kernels that differ from softmax."""
    model, ids = build("Llama"), tokens(24)
    own = model(ids).logits
    for kernel in (LSSAR(), SlidingWindow(width=4, sinks=0), NormAwareLinear()):
        assert difference(attach(model, kernel)(ids).logits, own) > 0.1
