"""``attach``: another attention mechanism in a model of ``transformers``, which keeps its weights."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sparsity_lab.interop.attention import CHILD, NAME, TRIED, AttachedKernel, attention, kernels_of, register
from sparsity_lab.interop.extra import loaded, pretrained, required
from sparsity_lab.kernels import Kernel, Softmax
from sparsity_lab.models import PositionScheme
from sparsity_lab.settings import SettingError, Shown, check_that, from_text, whole

_CONFIG = "attached_kernels"
_TOKENS = 6
"""Of the pass in which a model shows where it attends."""

Model = TypeVar("Model", bound=nn.Module)


def attach(model: Model, kernel: Kernel | Sequence[Kernel], *, seed: int = 0) -> Model:
    """Exchange the attention of a model for a kernel of the lab, in place; all weights stay. Returns the model.

    The model first reads six tokens, which shows where it attends and with how many heads. It is refused if they
    have other logits with ``Softmax`` in place of its own attention, since then more is in it than a kernel replaces.

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
    whole("seed", seed, None)
    register()
    owner = _owner(base)
    attached = kernels_of(base)
    single = not isinstance(kernel, list | tuple)
    kernels: list[Any] = [kernel] if single else list(kernel)  # type: ignore[arg-type]
    for i, one in enumerate(kernels):
        check_kernel(one, "kernel" if single else f"kernel[{i}]", owner.config)
    places = [(one.before, one.layer, one.sizes) for one in attached] or _places(base, owner)
    if single:
        kernels *= len(places)
    if len(kernels) != len(places):
        raise SettingError("kernel", f"one kernel, or one for each of {len(places)} layers", len(kernels))
    made = [AttachedKernel(one, *place, seed) for one, place in zip(kernels, places, strict=True)]
    for one in made:
        layer = base.get_submodule(one.layer)
        device = next(layer.parameters()).device
        setattr(layer, CHILD, one.to(device, owner.dtype).train(layer.training))
    owner.set_attn_implementation(NAME)
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
    attached = attached_kernels(base)
    for one in attached:
        delattr(base.get_submodule(one.layer), CHILD)
    _owner(base).set_attn_implementation(attached[0].before)
    delattr(base.config, _CONFIG)
    return model


def attached_kernels(model: nn.Module) -> list[AttachedKernel]:
    """What is attached to each attention layer, in order.

    >>> attached_kernels(attach(llama, LSSA()))[0].kernel
    LSSA()

    Raises:
        SettingError: nothing is attached.
    """
    if not (found := kernels_of(model)):
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
    if not isinstance(folder, str | Path) or not Path(folder).is_dir():
        raise SettingError("folder", "a folder that save_pretrained wrote", str(folder))
    config = loaded("AutoConfig", str(folder), "folder")
    kernels = getattr(config, _CONFIG, None)
    if kernels is None:
        raise SettingError("folder", "a model that was saved with a kernel attached", str(folder))
    model: nn.Module = loaded("AutoModelForCausalLM", str(folder), "folder", **options)
    attach(model, [from_text(Kernel, text, f"{_CONFIG}[{i}]") for i, text in enumerate(kernels)])
    _load_learned(model, Path(folder))
    return model


def _load_learned(model: nn.Module, folder: Path) -> None:
    """Learned parameters of attached kernels, from the files of a saved model. Some classes are saved under other
    names, but with the same numbers of layers in them."""
    wanted = {_place(name): value for name, value in model.state_dict().items() if f".{CHILD}." in name}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as saved, torch.no_grad():
                for name in saved.keys():  # noqa: SIM118
                    if f".{CHILD}." in name and (value := wanted.pop(_place(name), None)) is not None:
                        value.copy_(saved.get_tensor(name))
        except (SafetensorError, RuntimeError) as error:  # of a tensor of another shape
            raise SettingError("folder", f"{file} is damaged ({error})") from None
    if wanted:
        raise SettingError("folder", f"a file with {CHILD}.{min(wanted)[-1]}", str(folder))


def _place(name: str) -> tuple[tuple[str, ...], str]:
    """The numbers in a parameter's name before that of the kernel, and its own name in the kernel."""
    layer, _, own = name.partition(f".{CHILD}.")
    return tuple(re.findall(r"\d+", layer)), own


# --- what is refused when it is attached


def _owner(base: Any) -> Any:
    """The model, or the language model inside it: what has the config of the attention layers."""
    text = base.config.get_text_config(decoder=True)
    kind = required("transformers").PreTrainedModel
    return next((one for one in base.modules() if isinstance(one, kind) and one.config is text), base)


def _places(base: Any, owner: Any) -> list[tuple[str, str, tuple[int, int, int]]]:
    """Of each attention layer what ``AttachedKernel`` is told: as the model reads a few tokens, with ``Softmax`` in
    place of its own attention.

    Raises:
        SettingError: a model that is no plain decoder, whose class does not use the interface, or that computes
            something else with ``Softmax``.
    """
    kind = Shown(type(base).__name__)
    if _has_alibi(owner.config):
        raise SettingError("model", "a model without ALiBi, whose biases of scores a kernel does not get", kind)
    layers = [one for one in owner.modules() if hasattr(one, "is_causal") and hasattr(one, "layer_idx")]
    if base.config.is_encoder_decoder or not all(layer.is_causal for layer in layers):
        expected = "a decoder with only causal self-attention; a kernel cannot replace other kinds of attention"
        raise SettingError("model", expected, kind)
    expected = "a model class that looks its attention up in AttentionInterface, as Llama and GPT-2 do"
    check_that(owner._can_set_attn_implementation(), "model", expected, kind)
    names, before = {one: name for name, one in base.named_modules()}, owner.config._attn_implementation
    order = list(names.values())
    found: list[tuple[str, str, tuple[int, int, int]]] = []

    def attend(module: nn.Module, q: Tensor, k: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, None]:
        place = before, names[module], (q.shape[1], k.shape[1], q.shape[3])
        if place not in found:  # some models attend with one layer several times
            found.append(place)
        setattr(module, CHILD, AttachedKernel(Softmax(), *place, seed=0))
        return attention(module, q, k, *rest, **options)

    transformers = required("transformers")
    transformers.AttentionInterface.register(TRIED, attend)
    modes = [(one, one.training) for one in base.modules()]
    base.eval()
    try:
        own = _read(base)
        owner.set_attn_implementation(TRIED)
        got = _read(base)
    except SettingError:
        raise
    except Exception as error:  # the model's own code, of which nothing is known
        words = f"{kind}, which raises {type(error).__name__}: {error}"
        raise SettingError("model", "a model that reads tokens with a kernel attached", Shown(words)) from None
    finally:
        for _, name, _ in found:
            if hasattr(layer := base.get_submodule(name), CHILD):
                delattr(layer, CHILD)
        owner.set_attn_implementation(before)
        for one, mode in modes:
            one.training = mode
    check_that(found, "model", expected, kind)
    if not own.is_meta and not (own - got).abs().max() <= own.abs().max() * 10 * torch.finfo(own.dtype).eps ** 0.5:
        expected = "a model whose attention is the softmax of scaled scores, for which a kernel can stand"
        raise SettingError("model", expected, Shown(f"{kind}, whose logits change with Softmax() attached"))
    return sorted(found, key=lambda place: order.index(place[1]))


@torch.no_grad()
def _read(base: Any) -> Tensor:
    """The logits, or hidden states, of a few tokens."""
    device, many = base.device, base.get_input_embeddings().weight.shape[0]
    tokens: Tensor = base(input_ids=torch.arange(_TOKENS, device=device)[None] % many, use_cache=False)[0]
    return tokens


def _has_alibi(config: Any) -> bool:
    inner = getattr(config, "attn_config", None)  # of MPT
    return config.model_type == "bloom" or any(bool(getattr(one, "alibi", False)) for one in (config, inner))


def check_kernel(kernel: object, path: str, config: Any) -> None:
    """Raise ``SettingError`` for what cannot be attached to a model with this config of its language model."""
    if isinstance(kernel, PositionScheme):
        raise SettingError(path, "a kernel, such as LSSAR(p=15); positions stay those of the model", Shown(kernel))
    if not isinstance(kernel, Kernel):
        raise SettingError(path, "a kernel, such as LSSAR(p=15)", kernel)
    check_that(not kernel.gates, path, "a kernel without gates; only layers of Decoder compute gates", Shown(kernel))
    if getattr(config, "rope_parameters", None) is None:
        return
    if (rotation := getattr(kernel, "rotation", "input")) != "input":
        expected = "'input', since this model rotates queries and keys before attention"
        raise SettingError(f"{path}.rotation", expected, rotation)
    kernel.check_position("rotate", path)
