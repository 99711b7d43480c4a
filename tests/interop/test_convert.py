"""Models of ``transformers`` as decoders of the lab, and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from interop.test_all_models import built
from interop.tiny_models import build, tokens, transformers
from kernels.conditions import KERNELS

from sparsity_lab.interop import attach, from_transformers, load_attached, to_transformers
from sparsity_lab.kernels import LSSAR, AdaptiveSparse, Kernel, Softmax, SSMax
from sparsity_lab.models import ALiBi, Decoder, DecoderModel, Predicted, RoPE
from sparsity_lab.settings import SettingError


def difference(a: Any, b: Any) -> float:
    return float((a - b).detach().abs().max())


MODELS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "not grouped": {"num_key_value_heads": 4},
    "one head of keys": {"num_key_value_heads": 1},
    "other base and eps": {"rope_theta": 500.0, "rms_norm_eps": 1e-3},
    "interpolated": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
}


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
@pytest.mark.parametrize("case", MODELS)
def test_logits_are_equal(name: str, case: str) -> None:
    """To 1e-5, of weights small enough that logits are of order one."""
    model, ids = build(name, **{"initializer_range": 0.1, **MODELS[case]}), tokens(40)
    with torch.no_grad():
        for parameter in model.parameters():  # norms too: ones would hide where they stand
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    decoder = from_transformers(model)
    assert isinstance(decoder, DecoderModel)
    assert not decoder.training
    logits = model(ids).logits
    assert 0.1 < logits.abs().max() < 20
    assert difference(decoder(ids).logits, logits) < 1e-5
    assert (decoder.head.weight is decoder.token_embedding.weight) == (case == "tied")
    assert difference(from_transformers(model.double())(ids).logits, model(ids).logits) < 1e-5


def test_settings() -> None:
    decoder = from_transformers(build("Llama", rope_theta=500.0, rms_norm_eps=1e-3))
    assert decoder.config == Decoder(
        vocab_size=64, num_heads=4, num_kv_heads=2, d_model=32, d_ff=48, position=RoPE(base=500.0), mlp="swiglu",
        norm_eps=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kernel", [kernel for kernel in KERNELS if getattr(kernel, "rotation", "input") == "input"], ids=str
)
def test_an_attached_kernel_is_the_decoders_own(kernel: Kernel) -> None:
    """Two ways to the same numbers: a kernel that gets finished rows, and one that rotates them itself."""
    model, ids = attach(build("Llama", initializer_range=0.1), kernel, seed=3), tokens(40)
    decoder = from_transformers(model)
    assert set(decoder.config.kernels) == {kernel}
    assert difference(decoder(ids).logits, model(ids).logits) < 2e-5 * kernel.rounding


def test_generation_is_the_models() -> None:
    model, ids = attach(build("Llama"), LSSAR(p=3)), tokens(12)
    every = torch.ones_like(ids)  # else tokens like the one for padding would count as padding
    made = model.generate(ids, attention_mask=every, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(from_transformers(model).generate(ids, 6), made)


def test_weights_are_copies() -> None:
    model, ids = build("Llama"), tokens(12)
    decoder, before = from_transformers(model), model(ids).logits
    with torch.no_grad():
        decoder.blocks[0].output.weight.zero_()
    assert torch.equal(model(ids).logits, before)


# --- and back


DECODERS = {
    "plain": Decoder(mlp="swiglu"),
    "all options": Decoder(
        mlp="swiglu", num_heads=4, num_kv_heads=2, d_ff=80, tied_head=True, norm_eps=1e-4, num_layers=3,
        position=RoPE(base=100.0, scale=2.0),
    ),
    "kernels": Decoder(mlp="swiglu", kernel=(SSMax(), AdaptiveSparse(block_size=4, n_local=1, k_free=1, rank=2))),
}  # fmt: skip


@pytest.mark.parametrize("case", DECODERS)
def test_a_checkpoint_of_ours_is_a_usual_one(case: str, tmp_path: Path) -> None:
    decoder = DECODERS[case].build(4, vocab_size=32).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    ids, state = tokens(30) % 32, torch.random.get_rng_state()
    model = to_transformers(decoder)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert difference(model(ids).logits, decoder(ids).logits) < 1e-5
    model.save_pretrained(tmp_path)
    load = load_attached if case == "kernels" else transformers.AutoModelForCausalLM.from_pretrained
    assert torch.equal(load(tmp_path)(ids).logits, model(ids).logits)
    again = from_transformers(model)
    assert again.config == DECODERS[case].replace(
        vocab_size=32, d_ff=DECODERS[case].d_ff or 256, num_kv_heads=DECODERS[case].kv_heads
    )
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), decoder.parameters(), strict=True))


# --- what is refused


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "GPT2",
            {},
            "model.transformer.h.0.attn.c_attn.bias: GPT2LMHeadModel has this part, but a Decoder has RMSNorm, RoPE",
        ),
        ("Qwen2", {}, "model.model.layers.0.self_attn.k_proj.bias: Qwen2ForCausalLM has this part"),
        ("Qwen3", {}, "model.model.layers.0.self_attn.k_norm.weight: Qwen3ForCausalLM has this part"),
        ("Llama", {"mlp_bias": True}, "model.model.layers.0.mlp.down_proj.bias: LlamaForCausalLM has this part"),
        ("Llama", {"hidden_act": "gelu"}, "model.config.hidden_act: expected 'silu' or 'swish', as in a Decoder"),
        ("Llama", {"head_dim": 16}, "model.config.head_dim: expected 8, as in a Decoder, got 16"),
        (
            "Llama",
            {"attention_dropout": 0.1},
            "model.config.attention_dropout: expected 0.0, as in a Decoder, got 0.1",
        ),
        (
            "Mistral",
            {"sliding_window": 8},
            "model.config.sliding_window: expected None, as in a Decoder, got 8",
        ),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "model.config.rope_parameters.rope_type: expected 'default' or 'linear', got 'dynamic'",
        ),
    ],
)
def test_other_parts_are_refused_by_name(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as error:
        from_transformers(build(name, **changes))
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("model_type", ["ernie4_5", "gemma3"])
def test_configs_without_a_name_that_llama_has_are_refused(model_type: str) -> None:
    with pytest.raises(SettingError, match=r"^model\.") as error:
        from_transformers(built(model_type))
    assert "\n" not in str(error.value)


def test_a_family_of_other_meanings_is_refused() -> None:
    """Granite has Llama's parts and multiplies what they give."""
    config = transformers.GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        embedding_multiplier=3.0,
    )  # fmt: skip
    with pytest.raises(
        SettingError, match=r"model.config.model_type: expected 'llama' or 'mistral', .* got 'granite'"
    ):
        from_transformers(transformers.GraniteForCausalLM(config))


def test_decoders_that_are_no_llama() -> None:
    for setting, words in [
        (Decoder(), r"model.mlp: expected 'swiglu', as in Llama, got 'gelu'"),
        (Decoder(mlp="swiglu", position=ALiBi()), r"model.position: expected RoPE, for all layers, got ALiBi\(\)"),
        (Decoder(mlp="swiglu", dropout=0.1), r"model.dropout: expected 0.0, as in Llama, got 0.1"),
        (Decoder(mlp="swiglu", output_gate=True), r"model.output_gate: expected False, as in Llama, got True"),
        (
            Decoder(mlp="swiglu", coupling=Predicted(max_id=3)),
            r"model.coupling: expected None, as in Llama, got Pred",
        ),
    ]:
        with pytest.raises(SettingError, match=words):
            to_transformers(setting.build(0))
    with pytest.raises(SettingError, match="decoder: expected a model that a Decoder built, got LlamaForCausalLM"):
        to_transformers(build("Llama"))
    with pytest.raises(SettingError, match="max_position_embeddings: expected a whole number of at least 1, got 0"):
        to_transformers(Decoder(mlp="swiglu").build(0), max_position_embeddings=0)


def test_softmax_needs_nothing_attached() -> None:
    model = to_transformers(Decoder(mlp="swiglu", kernel=Softmax()).build(0))
    assert model.config._attn_implementation == "sdpa"
