"""Every class of causal language models in ``transformers``: ``attach`` serves it, or refuses it in one line."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from interop.tiny_models import left_padding, transformers

from sparsity_lab.interop import (
    attach,
    attached_kernels,
    detach,
    from_transformers,
    load_attached,
    record,
    swap_report,
)
from sparsity_lab.kernels import LSSAR, SSMax
from sparsity_lab.settings import SettingError

NAMES = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

SIZES: dict[int, str] = {
    0: "pad_token_id",
    1: "num_nextn_predict_layers num_mtp_layers n_group topk_group n_groups mamba_n_groups mamba_ngroups "
    "n_shared_experts num_kv_shared_layers first_k_dense_replace layer_group_size decoder_sparse_step "
    "moe_layer_start_index attn_layer_offset num_shared_experts",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok top_k_experts moe_topk moe_k num_random_blocks "
    "n_input_layers n_output_layers swa_num_key_value_heads linear_num_key_heads attn_layer_period",
    4: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_blocks num_encoder_layers num_attention_heads n_head n_heads num_heads decoder_attention_heads "
    "encoder_attention_heads attention_heads num_decoder_attention_heads num_encoder_attention_heads "
    "num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num "
    "swa_num_attention_heads linear_num_value_heads linear_num_heads index_n_heads n_mamba_heads",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim kv_lora_rank q_lora_rank kv_channels "
    "attention_head_dim dim_head swa_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim "
    "index_head_dim d_state state_size mamba_d_state ssm_state_size hidden_size_per_layer_input "
    "laurel_rank o_lora_rank attention_head_size d_head rotary_dim gated_norm_rank adapter_rank "
    "loop_gate_rank time_step_rank mamba_d_head mamba_head_dim d_rel mamba_n_heads mamba_num_heads "
    "index_topk",
    32: "hidden_size d_model n_embd embedding_size emb_dim embedding_dim lru_width query_pre_attn_scalar "
    "attention_hidden_size input_embedding_size output_embedding_size word_embed_proj_dim "
    "cross_attention_hidden_size backbone_hidden_size",
    48: "intermediate_size ffn_dim d_ff n_inner decoder_ffn_dim encoder_ffn_dim moe_intermediate_size dim_ff "
    "dff d_inner ffn_hidden_size feed_forward_size shared_expert_intermediate_size intermediate_size_mlp "
    "expert_ffn_hidden_size",
    128: "vocab_size vocab_size_per_layer_input max_position_embeddings n_positions max_seq_len context_length n_ctx",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
OTHERS: dict[str, dict[str, Any]] = {
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gemma3": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
        }
    },
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 16)},
}
_LARGEST = 20_000_000


def tiny(kind: Any, **changes: Any) -> Any:
    """A config of this kind with the small sizes that it has."""
    names = {field.name for field in fields(kind)}
    own: dict[str, Any] = {name: SMALL[name] for name in names & SMALL.keys()}
    if "kv_lora_rank" in names:
        own["num_key_value_heads"] = own["num_attention_heads"]  # as in all multi-head latent attention
    for name, inner in (getattr(kind, "sub_configs", None) or {}).items():
        if is_dataclass(inner):
            own[name] = tiny(inner)
    return kind(**{**own, **changes})


def built(model_type: str) -> Any:
    """A tiny model of the class that ``AutoModelForCausalLM`` takes for this type."""
    kind = getattr(transformers, NAMES[model_type])
    config = tiny(transformers.CONFIG_MAPPING[model_type], **OTHERS.get(model_type, {}))
    if not isinstance(config, kind.config_class):
        config = config.get_text_config(decoder=True)
    config.is_decoder = True
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > _LARGEST:
        raise ValueError(f"{size} parameters")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).eval()


def outcome(model: Any) -> str:
    """The error of ``attach``; empty where it serves, with other logits that are finite, and ``detach`` restores the
    model's own to the last bit."""
    ids = torch.arange(12)[None]
    try:
        attach(model, LSSAR())
    except SettingError as error:
        return str(error)
    with torch.no_grad():
        found = model(input_ids=ids, use_cache=False)[0]
        own = detach(model)(input_ids=ids, use_cache=False)[0]
        assert found.isfinite().all()
        assert not torch.equal(found, own)
        assert torch.equal(own, model(input_ids=ids, use_cache=False)[0])
    return ""


SERVED = "gpt_neox", "deepseek_v3", "gemma3_text", "phi", "opt", "olmoe", "gptj", "codegen"
REFUSED = {
    "bloom": "model: expected a model without ALiBi, whose biases of scores a kernel does not get, got Bloom",
    "mpt": "model: expected a model without ALiBi",
    "gemma2": "model.softcap: not supported",
    "gpt_oss": "model.s_aux: not supported",
    "mamba": "model: expected a model class that looks its attention up in AttentionInterface",
    "git": "model: expected a model that reads tokens with a kernel attached, got GitForCausalLM, which raises Type",
}


@pytest.mark.parametrize("model_type", SERVED)
def test_sizes_are_those_that_the_model_attends_with(model_type: str) -> None:
    """Whatever the class calls the head size, and where keys are wider than values."""
    assert outcome(built(model_type)) == ""


@pytest.mark.parametrize(
    "model_type",
    [
        "deepseek_v3",
        "exaone",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt_neox", "gemma3", "stablelm")),
    ],
)
def test_served_classes_are_served_in_all(model_type: str, tmp_path: Path) -> None:
    """With a cache and with padding; saved and loaded, also where files have other names; recorded, also where
    unknown arguments are not passed on."""
    model, ids = attach(built(model_type), SSMax()), torch.arange(32).view(2, 16) % 29
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attached_kernel" in name:
                parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)))
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :10], use_cache=True)
        second = model(input_ids=ids[:, 10:], cache=first.cache)
        torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, rtol=1e-4, atol=1e-5)
        padded = model(input_ids=ids, **left_padding(16, 5)).logits[0, 5:]
        torch.testing.assert_close(padded, model(input_ids=ids[:1, 5:]).logits[0], rtol=1e-4, atol=1e-5)
        model.save_pretrained(tmp_path)
        assert torch.equal(load_attached(tmp_path)(input_ids=ids).logits, whole)
    layers = record(model, ids)
    assert [one.name for one in layers] == [one.layer for one in attached_kernels(model)]
    assert swap_report(detach(model), list(ids), [SSMax()], (8,)).documents == 2


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_a_kernel_cannot_replace_is_named(model_type: str) -> None:
    assert outcome(built(model_type)).startswith(REFUSED[model_type])


@pytest.mark.slow
def test_every_class_is_served_or_refused_in_one_line() -> None:
    """Of every class that can be made small from its config alone. A refused model is as it was. Served ones have a
    ``swap_report``, and are decoders or told in one line why not."""
    served, refused, unbuilt = set[str](), dict[str, str](), dict[str, str]()
    for model_type in NAMES:
        try:
            model = built(model_type)
        except Exception as error:  # classes without any rule of their own for small sizes, or without a package
            unbuilt[model_type] = str(error)
            continue
        before = list(model.state_dict()), model.config._attn_implementation
        words = outcome(model)
        assert (list(model.state_dict()), model.config._attn_implementation) == before
        if words:
            assert "\n" not in words
            refused[model_type] = words
        else:
            served.add(model_type)
            assert swap_report(model, list(torch.arange(24).view(2, 12)), [LSSAR()], (8,)).documents == 2
            try:
                words = from_transformers(model).config.kind
            except SettingError as error:
                words = str(error)
            assert "\n" not in words
    assert len(served) >= 110, refused
    assert len(unbuilt) <= 25, unbuilt
