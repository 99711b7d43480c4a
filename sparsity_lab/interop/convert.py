"""Models of ``transformers`` as decoders of the lab, and back: equal logits, from the same weights.

A ``Decoder`` with SwiGLU and RoPE computes what Llama computes. The lab rotates neighboring coordinates 2j and 2j + 1
of a head by one angle. Llama rotates coordinates j and j + D/2. So the rows of the query and key projections are
reordered, which changes no score.

Shapes: H heads, D head size, d width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsity_lab.interop.attach import attach
from sparsity_lab.interop.attention import kernels_of
from sparsity_lab.interop.extra import pretrained, required
from sparsity_lab.kernels import Kernel, Softmax
from sparsity_lab.models import Decoder, DecoderModel, RoPE
from sparsity_lab.settings import SettingError, Shown, check_that, whole

_TYPES = "llama", "mistral"
"""Model types that compute what their parts say: others give the same parts other meanings."""

_LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.o_proj": "output",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp_gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
"""Parts of a layer that are taken as they are."""


def from_transformers(model: nn.Module) -> DecoderModel:
    """A decoder of the lab with the weights of a model of the Llama family: equal logits, to about 1e-5 in float32.

    With a kernel attached, the decoder has that mechanism and its learned parameters. The weights are copies.

    >>> from_transformers(llama).config.num_layers
    1

    Raises:
        SettingError: a part that a ``Decoder`` does not have, by its path in the model.
    """
    base: Any = pretrained(model)
    _check_parts(base)
    config = base.config
    attached = kernels_of(base)
    kernels: list[Kernel] = [one.kernel for one in attached] or [Softmax()] * config.num_hidden_layers
    setting = Decoder(
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        d_model=config.hidden_size,
        d_ff=config.intermediate_size,
        kernel=kernels[0] if len(set(kernels)) == 1 else tuple(kernels),
        position=_rope(config),
        tied_head=bool(config.tie_word_embeddings),
        mlp="swiglu",
        norm_eps=config.rms_norm_eps,
    )
    weight = base.model.embed_tokens.weight
    decoder = setting.build(0).to(weight.device, weight.dtype)
    with torch.no_grad():
        for ours, theirs in _pairs(decoder, base):
            ours.copy_(theirs)
        for block, layer in zip(decoder.blocks, base.model.layers, strict=True):
            own, heads = layer.self_attn, config.num_attention_heads
            q = _interleaved(own.q_proj.weight, heads)
            k = _interleaved(own.k_proj.weight, config.num_key_value_heads)
            block.qkv.weight.copy_(torch.cat([q, k, own.v_proj.weight]))
    for block, one in zip(decoder.blocks, attached, strict=False):
        if block.kernel_params is not None and one.params is not None:
            block.kernel_params.load_state_dict(one.params.state_dict())
    return decoder.train(model.training)


def to_transformers(decoder: DecoderModel, *, max_position_embeddings: int = 2048) -> nn.Module:
    """A ``LlamaForCausalLM`` with the weights of a decoder: equal logits, to about 1e-5 in float32.

    ``save_pretrained`` then writes a usual checkpoint. Another mechanism than ``Softmax`` is attached, so that
    ``load_attached`` reads the checkpoint back.

    >>> type(to_transformers(from_transformers(llama))).__name__
    'LlamaForCausalLM'

    Args:
        max_position_embeddings: the context that the checkpoint declares; nothing is computed with it.

    Raises:
        SettingError: a choice of the decoder that Llama does not have.
    """
    if not isinstance(decoder, DecoderModel):
        raise SettingError("decoder", "a model that a Decoder built", Shown(type(decoder).__name__))
    whole("max_position_embeddings", max_position_embeddings)
    setting, position = decoder.config, decoder.config.position
    if not isinstance(position, RoPE):
        raise SettingError("model.position", "RoPE, for all layers", Shown(position))
    for name, value in {"mlp": "swiglu", "output_gate": False, "coupling": None, "dropout": 0.0}.items():
        if (own := getattr(setting, name)) != value:
            raise SettingError(f"model.{name}", f"{value!r}, as in Llama", own)
    transformers = required("transformers")
    rope = {"rope_type": "default", "rope_theta": position.base}
    if position.scale != 1:
        rope |= {"rope_type": "linear", "factor": position.scale}
    config = transformers.LlamaConfig(
        vocab_size=decoder.vocab_size,
        hidden_size=setting.d_model,
        intermediate_size=setting.d_ff or 4 * setting.d_model,
        num_hidden_layers=setting.num_layers,
        num_attention_heads=setting.num_heads,
        num_key_value_heads=setting.kv_heads,
        max_position_embeddings=max_position_embeddings,
        rms_norm_eps=setting.norm_eps,
        tie_word_embeddings=setting.tied_head,
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
    )
    weight = decoder.token_embedding.weight
    with torch.random.fork_rng(devices=[]):  # its initial weights are not kept, so they draw from nobody
        model = transformers.LlamaForCausalLM(config).to(weight.device, weight.dtype)
    with torch.no_grad():
        for ours, theirs in _pairs(decoder, model):
            theirs.copy_(ours)
        for block, layer in zip(decoder.blocks, model.model.layers, strict=True):
            q, k, v = torch.split(block.qkv.weight, block.qkv_widths)
            if position.layout == "interleaved":
                q, k = _halves(q, setting.num_heads), _halves(k, setting.kv_heads)
            layer.self_attn.q_proj.weight.copy_(q)
            layer.self_attn.k_proj.weight.copy_(k)
            layer.self_attn.v_proj.weight.copy_(v)
    if set(setting.kernels) != {Softmax()}:
        attach(model, setting.kernels)
        for block, layer in zip(decoder.blocks, model.model.layers, strict=True):
            if block.kernel_params is not None:
                layer.self_attn.attached_kernel.params.load_state_dict(block.kernel_params.state_dict())
    found: nn.Module = model.train(decoder.training)
    return found


# --- inside


def _pairs(decoder: DecoderModel, model: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights that are equal in both."""
    yield decoder.token_embedding.weight, model.model.embed_tokens.weight
    yield decoder.final_norm.weight, model.model.norm.weight
    yield decoder.head.weight, model.lm_head.weight
    for block, layer in zip(decoder.blocks, model.model.layers, strict=True):
        for theirs, ours in _LAYER.items():
            yield getattr(block, ours).weight, layer.get_submodule(theirs).weight


def _interleaved(weight: Float[Tensor, "HD d"], num_heads: int) -> Float[Tensor, "HD d"]:
    """Rows of halves j and j + D/2 as neighbors."""
    return torch.unflatten(weight, 0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _halves(weight: Float[Tensor, "HD d"], num_heads: int) -> Float[Tensor, "HD d"]:
    """The way back."""
    return torch.unflatten(weight, 0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _check_parts(base: Any) -> None:
    """Raise ``SettingError`` for the first part that a ``Decoder`` does not have."""
    config = base.config.get_text_config(decoder=True)
    layer = {f"{name}.weight" for name in (*_LAYER, *(f"self_attn.{one}_proj" for one in "qkv"))}
    known = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    known |= {f"model.layers.{i}.{name}" for i in range(config.num_hidden_layers) for name in layer}
    # Tied weights and attached kernels are named once and apart.
    found = {name for name, _ in base.named_parameters(remove_duplicate=False) if ".attached_kernel." not in name}
    if extra := sorted(found - known):
        parts = "a Decoder has RMSNorm, RoPE and SwiGLU, without biases"
        raise SettingError(f"model.{extra[0]}", f"{type(base).__name__} has this part, but {parts}")
    if missing := sorted(known - found):
        raise SettingError(f"model.{missing[0]}", f"a Decoder has this part, but {type(base).__name__} does not")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    possible: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
        ("model_type", config.model_type, _TYPES),
        ("hidden_act", config.hidden_act, ("silu", "swish")),
        ("head_dim", head_dim, (config.hidden_size // config.num_attention_heads,)),
        ("sliding_window", getattr(config, "sliding_window", None), (None,)),
        ("attention_dropout", getattr(config, "attention_dropout", 0.0), (0.0,)),
    )
    for name, own, allowed in possible:
        if own not in allowed:
            what = " or ".join(repr(one) for one in allowed)
            raise SettingError(f"model.config.{name}", f"{what}, as in a Decoder", own)


def _rope(config: Any) -> RoPE:
    parameters = dict(config.rope_parameters)
    kind = parameters.get("rope_type", "default")
    check_that(kind in ("default", "linear"), "model.config.rope_parameters.rope_type", "'default' or 'linear'", kind)
    if (share := parameters.get("partial_rotary_factor", 1.0)) != 1:
        path = "model.config.rope_parameters.partial_rotary_factor"
        raise SettingError(path, "1, so that all of a head rotates", share)
    return RoPE(base=float(parameters["rope_theta"]), scale=float(parameters.get("factor", 1.0)))
