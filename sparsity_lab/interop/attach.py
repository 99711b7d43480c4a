"""``attach``: another attention mechanism in a model of ``transformers``, which keeps its weights.

The model finishes its queries and keys, rotation included, and hands them to a function that it looks up by name in
``AttentionInterface``. Here that function calls the kernel of the layer. The name is also one of
``AttentionMaskInterface``: in place of a mask of all scores, layers get the few facts in ``Visible``.

Shapes: B batch, R query rows, K keys, H query heads, G heads of keys and values, D head size, E width of values.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from safetensors import safe_open
from torch import Tensor, nn

from sparsity_lab.interop.extra import pretrained, required
from sparsity_lab.kernels import AuxiliaryOutputs, Kernel
from sparsity_lab.models.initial import named_seed
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError, Shown, from_text

_NAME = "sparsity_lab"
_CHILD = "attached_kernel"
_CONFIG = "attached_kernels"
_DROPOUTS = ("attention_dropout", "attn_pdrop")

Model = TypeVar("Model", bound=nn.Module)


class Visible(NamedTuple):
    """What the rows of a call see, as layers get it in place of a mask.

    Attributes:
        query_start: position of the first row.
        key_mask: (B, K), False for padding; None: there is none.
        document_ids: (B, K), of packed sequences; None: there is one document.
    """

    query_start: int
    key_mask: Bool[Tensor, "B K"] | None = None
    document_ids: Int64[Tensor, "B K"] | None = None


class AttachedKernel(nn.Module):
    """The mechanism of one layer, a child of the model's own attention module.

    >>> layer = attached_kernels(attach(llama, LSSA()))[0]
    >>> isinstance(layer, AttachedKernel), layer.kernel
    (True, LSSA())

    Attributes:
        kernel: the mechanism.
        params: its learned parameters, registered on the model; None: it has none.
        before: the name of the attention that the model had.
        layer: the name of the attention module, such as ``model.layers.0.self_attn``.
        undecodable: why the kernel cannot decode with a cache; None: it can.
    """

    def __init__(
        self, kernel: Kernel, before: str, layer: str, num_heads: int, num_kv_heads: int, head_dim: int, seed: int
    ) -> None:
        super().__init__()
        own_heads = kernel.own_heads(num_heads, num_kv_heads)
        self.kernel = kernel
        self.before = before
        self.layer = layer
        self.params = kernel.build(own_heads, head_dim, seed)
        self.undecodable: SettingError | None = None
        try:
            kernel.init_state(1, own_heads, head_dim, 1)
        except SettingError as error:
            self.undecodable = error.inside("kernel")

    def extra_repr(self) -> str:
        return str(self.kernel)


def attach(model: Model, kernel: Kernel | Sequence[Kernel], *, seed: int = 0) -> Model:
    """Exchange the attention of a model for a kernel of the lab, in place; all weights stay. Returns the model.

    Served are grouped heads, left and right padding, packed sequences, dynamic caches and so ``generate``, and
    training. Learned parameters of the kernel are registered in each attention module as
    ``attached_kernel.params``, so that optimizers find them and ``save_pretrained`` writes them; ``load_attached``
    reads them back. The model's scale of scores is kept. ``model(..., auxiliary=AuxiliaryOutputs(), generator=...)``
    hands these to the kernels, where the model passes unknown arguments on, as all recent ones do. If a kernel is
    attached already, it is exchanged.

    Args:
        model: a decoder of ``transformers`` whose class uses ``AttentionInterface``, or one of ``peft`` around it.
        kernel: for all layers, or one for each. It takes queries and keys as the model finishes them.
        seed: of the kernel's learned parameters.

    Raises:
        SettingError: ``transformers`` is missing; or a model or a kernel that cannot be served, with the setting that
            works. Some of this shows in a call only: attention dropout in training, static caches, sliding windows
            that hide a key, masks of other shapes than padding.

    >>> from sparsity_lab.interop import attach, detach
    >>> from sparsity_lab.kernels import LSSAR
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    >>> attach(model, LSSAR(p=15)).config.attached_kernels
    ['LSSAR()', 'LSSAR()']
    >>> detach(model).config._attn_implementation
    'sdpa'
    """
    base: Any = pretrained(model)
    _register()
    layers = _attention_layers(base)
    kernels: list[Any] = list(kernel) if isinstance(kernel, list | tuple) else [kernel] * len(layers)
    if len(kernels) != len(layers):
        raise SettingError("kernel", f"one kernel, or one for each of {len(layers)} layers", len(kernels))
    for i, one in enumerate(kernels):
        _check_kernel(one, f"kernel[{i}]" if isinstance(kernel, list | tuple) else "kernel", base.config)
    if (before := base.config._attn_implementation) == _NAME:
        before = attached_kernels(base)[0].before
    made = []
    for (name, layer), one in zip(layers.items(), kernels, strict=True):
        sizes = layer.config.num_attention_heads, _num_kv_heads(layer.config), layer.head_dim
        attached = AttachedKernel(one, before, name, *sizes, named_seed(seed, name))
        weight = next(layer.parameters())
        made.append(attached.to(weight.device, weight.dtype).train(layer.training))
    for layer, attached in zip(layers.values(), made, strict=True):
        setattr(layer, _CHILD, attached)
    base.set_attn_implementation(_NAME)
    setattr(base.config, _CONFIG, [str(one) for one in kernels])
    return model


def detach(model: Model) -> Model:
    """Give the model back the attention that it had, in place: its outputs are those of before, bit for bit.

    >>> detach(attach(llama, LSSA())) is llama
    True

    Raises:
        SettingError: nothing is attached.
    """
    base: Any = pretrained(model)
    before = attached_kernels(base)[0].before
    for layer in _attention_layers(base).values():
        delattr(layer, _CHILD)
    base.set_attn_implementation(before)
    delattr(base.config, _CONFIG)
    return model


def attached_kernels(model: nn.Module) -> list[AttachedKernel]:
    """What is attached to each attention layer, in order.

    >>> attached_kernels(attach(llama, LSSA()))[0].kernel
    LSSA()

    Raises:
        SettingError: nothing is attached.
    """
    found = [module for module in model.modules() if isinstance(module, AttachedKernel)]
    if not found:
        raise SettingError("model", "a model with a kernel from attach(model, kernel)", Shown(type(model).__name__))
    return found


def load_attached(folder: str | Path, **options: Any) -> nn.Module:
    """A causal language model that was saved with a kernel attached: with the kernel and its learned parameters.

    ``transformers`` alone reads the same folder as the model without the kernel.

    >>> attach(llama, LSSA()).save_pretrained("with_kernel")
    >>> attached_kernels(load_attached("with_kernel"))[0].kernel
    LSSA()

    Args:
        folder: where ``save_pretrained`` wrote it.
        options: for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        SettingError: no kernel was attached to what is there.
    """
    transformers = required("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    kernels = getattr(config, _CONFIG, None)
    if kernels is None:
        raise SettingError("folder", "a model that was saved with a kernel attached", str(folder))
    model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    attach(model, [from_text(Kernel, text, f"{_CONFIG}[{i}]") for i, text in enumerate(kernels)])
    _load_learned(model, Path(folder))
    return model


def _load_learned(model: nn.Module, folder: Path) -> None:
    """Learned parameters of attached kernels, from the files of a saved model."""
    wanted = {name: value for name, value in model.state_dict().items() if f".{_CHILD}." in name}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as saved:
            for name in wanted.keys() & set(saved.keys()):
                with torch.no_grad():
                    wanted.pop(name).copy_(saved.get_tensor(name))
    if wanted:
        raise SettingError("folder", f"a file with {min(wanted)}", str(folder))


# --- what is refused when it is attached


def _attention_layers(base: Any) -> dict[str, Any]:
    """The model's attention modules by name.

    Raises:
        SettingError: a model that is no plain decoder, or whose class does not use the interface.
    """
    kind = type(base).__name__
    found = {
        name: one for name, one in base.named_modules() if hasattr(one, "is_causal") and hasattr(one, "layer_idx")
    }
    if base.config.is_encoder_decoder or not all(layer.is_causal for layer in found.values()):
        expected = "a decoder with only causal self-attention; a kernel cannot replace other kinds of attention"
        raise SettingError("model", expected, Shown(kind))
    if not found or not base._can_set_attn_implementation():
        expected = "a model class that looks its attention up in AttentionInterface, as Llama and GPT-2 do"
        raise SettingError("model", expected, Shown(kind))
    return found


def _check_kernel(kernel: object, path: str, config: Any) -> None:
    if not isinstance(kernel, Kernel):
        raise SettingError(path, "a kernel, such as LSSAR(p=15)", kernel)
    if kernel.gates:
        raise SettingError(path, "a kernel without gates; only layers of Decoder compute gates", Shown(kernel))
    if getattr(config, "rope_parameters", None) is None:
        return
    if (rotation := getattr(kernel, "rotation", "input")) != "input":
        expected = "'input', since this model rotates queries and keys before attention"
        raise SettingError(f"{path}.rotation", expected, rotation)
    kernel.check_position("rotate", path)


def _num_kv_heads(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


# --- what transformers calls


def _register() -> None:
    """Enter the names below in the registers of ``transformers``; again is the same.

    Raises:
        SettingError: a version without them.
    """
    transformers, masking = required("transformers"), required("transformers.masking_utils")
    if not hasattr(masking, "sdpa_mask") or "q_offset" not in inspect.signature(masking.sdpa_mask).parameters:
        raise SettingError("transformers", "version 5.24 or a compatible one", transformers.__version__)
    transformers.AttentionInterface.register(_NAME, _attention)
    transformers.AttentionMaskInterface.register(_NAME, _visible)


def _attention(
    module: nn.Module,
    query: Float[Tensor, "B H R D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K E"],
    attention_mask: Visible | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    auxiliary: AuxiliaryOutputs | None = None,
    generator: torch.Generator | None = None,
    records: list[LayerRecord] | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **more: Any,
) -> tuple[Float[Tensor, "B R H E"], None]:
    """The attention of a layer, as ``AttentionInterface`` wants it."""
    attached = getattr(module, _CHILD, None)
    if not isinstance(attached, AttachedKernel):
        sharing = "two models share this config, and only one has a kernel attached"
        raise SettingError("model.config", f"{sharing}; give each its own with copy.deepcopy(config)")
    for name, part in {"softcap": softcap, "s_aux": s_aux, "position_bias": position_bias}.items():
        if part is not None:
            raise SettingError(f"model.{name}", "not supported; an attached kernel computes its own scores")
    if is_causal is False:
        raise SettingError("is_causal", "True, since attached kernels are causal", False)
    if dropout:
        name = next((name for name in _DROPOUTS if hasattr(module.config, name)), "attention_dropout")
        expected = f"0 in training, since kernels drop no attention weights (load the model with {name}=0.0)"
        raise SettingError(f"model.config.{name}", expected, dropout)
    if attention_mask is None:
        attention_mask = Visible(key.shape[2] - query.shape[2])
    elif not isinstance(attention_mask, Visible):
        expected = "a padding mask (B, K) or None (for packed sequences, pass position_ids)"
        raise SettingError("attention_mask", expected, Shown(f"a mask of shape {tuple(attention_mask.shape)}"))
    if attention_mask.query_start and attached.undecodable is not None:
        raise attached.undecodable
    own_scale = query.shape[3] ** -0.5
    if scaling is not None and not math.isclose(scaling, own_scale, rel_tol=1e-6):
        query = query * (scaling / own_scale)
    if records is not None:
        rows: dict[str, Any] = {"q": query, "k": key, "rotated_q": query, "rotated_k": key}
        records.append(
            LayerRecord(**rows, kernel=attached.kernel, position=None, params=attached.params, name=attached.layer)
        )
    out = attached.kernel.attend(
        query,
        key,
        value,
        training=module.training,
        key_mask=attention_mask.key_mask,
        document_ids=attention_mask.document_ids,
        query_start=attention_mask.query_start,
        params=attached.params,
        generator=generator,
        auxiliary=auxiliary,
    )
    return out.transpose(1, 2), None


def _visible(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Bool[Tensor, "B columns"] | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **more: Any,
) -> Visible:
    """What layers get in place of a mask, as ``AttentionMaskInterface`` wants it."""
    if isinstance(q_offset, Tensor) or q_offset + q_length != kv_length + kv_offset:
        raise SettingError("cache", "caches of fixed size are not supported; use cache_implementation='dynamic'")
    documents = None
    if kv_offset or mask_function is not required("transformers.masking_utils").causal_mask_function:
        found = None if use_vmap or kv_offset else _documents(mask_function, batch_size, q_offset, q_length, device)
        if found is None:
            raise _other_mask(config)
        documents = found if found.any() else None
    if attention_mask is None:
        return Visible(q_offset, document_ids=documents)
    mask = nn.functional.pad(attention_mask, (0, max(0, kv_length - attention_mask.shape[1])))[:, :kv_length]
    # To look is to wait for the device; without padding kernels are faster. Compilers cannot look.
    if not torch.compiler.is_compiling() and bool(mask.all()):
        return Visible(q_offset, document_ids=documents)
    return Visible(q_offset, mask, documents)


def _documents(
    mask_function: Callable[..., Tensor], batch_size: int, start: int, num_rows: int, device: torch.device | str
) -> Int64[Tensor, "B K"] | None:
    """The documents of packed sequences, 0 and up, if that is what the mask says and nothing more; else None."""
    sequences = torch.arange(batch_size, device=device)[:, None, None, None]
    rows, keys = torch.arange(start, start + num_rows, device=device), torch.arange(start + num_rows, device=device)
    asked = sequences, torch.zeros_like(sequences), rows[:, None], keys
    seen = mask_function(*asked).expand(batch_size, 1, num_rows, len(keys)).squeeze(1)
    ids = torch.zeros(batch_size, len(keys), dtype=torch.int64, device=device)
    if not start:
        ids[:, 1:] = (~seen.diagonal(-1, 1, 2)).cumsum(1)
    documents = (ids[:, start:, None] == ids[:, None, :]) & (keys <= rows[:, None])
    return ids if torch.equal(seen, documents) else None


def _other_mask(config: Any) -> SettingError:
    window = getattr(config, "sliding_window", None)
    if window is not None:
        expected = f"None, or sequences of at most {window} tokens, since a kernel sees all earlier keys"
        return SettingError("model.config.sliding_window", expected, window)
    return SettingError("attention_mask", "only padding masks of shape (B, K), or None, are supported")
