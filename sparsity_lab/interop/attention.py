"""What the attention layers of a model of ``transformers`` call where a kernel is attached.

The model finishes its queries and keys, rotation included, and hands them to a function that it looks up by name in
``AttentionInterface``. Here that function calls the kernel of the layer. The name is also one of
``AttentionMaskInterface``: in place of a mask of all scores, layers get the few facts in ``Visible``.

Shapes: B batch, R query rows, K keys, H query heads, G heads of keys and values, D head size, E width of values.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sparsity_lab.interop.extra import required
from sparsity_lab.kernels import AuxiliaryOutputs, Kernel
from sparsity_lab.models.initial import named_seed
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError, Shown, check_that

NAME, TRIED = "sparsity_lab", "sparsity_lab_tried"
CHILD = "attached_kernel"


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
        sizes: H, G and D of the layer.
        undecodable: why the kernel cannot decode with a cache; None: it can.
        records: where the queries and keys of calls go; None: nowhere.
    """

    def __init__(self, kernel: Kernel, before: str, layer: str, sizes: tuple[int, int, int], seed: int) -> None:
        super().__init__()
        num_heads, num_kv_heads, head_dim = sizes
        own_heads = kernel.own_heads(num_heads, num_kv_heads)
        self.kernel = kernel
        self.before = before
        self.layer = layer
        self.sizes = sizes
        self.params = kernel.build(own_heads, head_dim, named_seed(seed, layer))
        self.records: list[LayerRecord] | None = None
        self.undecodable: SettingError | None = None
        try:
            kernel.init_state(1, own_heads, head_dim, 1)
        except SettingError as error:
            self.undecodable = error.inside("kernel")

    def extra_repr(self) -> str:
        return str(self.kernel)


def kernels_of(model: nn.Module) -> list[AttachedKernel]:
    """What is attached to each attention layer, in order; empty if nothing is."""
    return [module for module in model.modules() if isinstance(module, AttachedKernel)]


def check_detached(model: nn.Module) -> None:
    """Raise ``SettingError`` if a kernel is attached."""
    check_that(not kernels_of(model), "model", "a kernel is attached; call detach(model) first")


def register() -> None:
    """Enter the names below in the registers of ``transformers``; again is the same.

    Raises:
        SettingError: a version without them.
    """
    transformers, masking = required("transformers"), required("transformers.masking_utils")
    if not hasattr(masking, "sdpa_mask") or "q_offset" not in inspect.signature(masking.sdpa_mask).parameters:
        raise SettingError("transformers", "version 5.24 or a compatible one", transformers.__version__)
    transformers.AttentionInterface.register(NAME, attention)
    for name in (NAME, TRIED):
        transformers.AttentionMaskInterface.register(name, partial(_visible, masking.causal_mask_function))


def attention(
    module: nn.Module,
    query: Float[Tensor, "B H R D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K E"],
    attention_mask: Visible | SettingError | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    auxiliary: AuxiliaryOutputs | None = None,
    generator: torch.Generator | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **more: Any,
) -> tuple[Float[Tensor, "B R H E"], None]:
    """The attention of a layer, as ``AttentionInterface`` wants it."""
    attached = getattr(module, CHILD, None)
    if not isinstance(attached, AttachedKernel):
        sharing = "two models share this config, and only one has a kernel attached"
        raise SettingError("model.config", f"{sharing}; give each its own with copy.deepcopy(config)")
    for name, part in {"softcap": softcap, "s_aux": s_aux, "position_bias": position_bias}.items():
        if part is not None:
            raise SettingError(f"model.{name}", "not supported; an attached kernel computes its own scores")
    if is_causal is False:
        raise SettingError("is_causal", "True, since attached kernels are causal", False)
    if dropout:
        names = [
            name for name, one in vars(module.config).items() if one == dropout and "att" in name and "drop" in name
        ]
        (name,) = names[:1] or ["attention_dropout"]
        expected = f"0 in training, since kernels drop no attention weights (load the model with {name}=0.0)"
        raise SettingError(f"model.config.{name}", expected, dropout)
    if isinstance(attention_mask, SettingError):
        raise attention_mask
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
    if attached.records is not None:
        rows: dict[str, Any] = {"q": query, "k": key, "rotated_q": query, "rotated_k": key}
        attached.records.append(
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
    return out.transpose(1, 2).contiguous(), None


def _visible(
    causal_mask_function: Callable[..., Tensor],
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
) -> Visible | SettingError:
    """What layers get in place of a mask, as ``AttentionMaskInterface`` wants it; of a mask that is not served the
    error, since some models make masks that no layer uses."""
    if isinstance(q_offset, Tensor) or q_offset + q_length != kv_length + kv_offset:
        raise SettingError("cache", "caches of fixed size are not supported; use cache_implementation='dynamic'")
    documents = None
    compiling = torch.compiler.is_compiling()
    if kv_offset or mask_function is not causal_mask_function:
        found = None if use_vmap or kv_offset else _documents(mask_function, batch_size, q_offset, q_length, device)
        if found is None:
            return _other_mask(config)
        documents = None if compiling or not found.any() else found
    if attention_mask is None:
        return Visible(q_offset, document_ids=documents)
    mask = nn.functional.pad(attention_mask, (0, max(0, kv_length - attention_mask.shape[1])))[:, :kv_length]
    # To look is to wait for the device; without padding kernels are faster. Compilers cannot look.
    if not compiling and bool(mask.all()):
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
    causal = keys <= rows[:, None]
    if torch.compiler.is_compiling():
        # A compiler cannot look, and every mask without padding comes here.
        torch._assert_async((seen == causal).all(), "attention_mask: only padding is served under torch.compile")
        return ids
    return ids if torch.equal(seen, (ids[:, start:, None] == ids[:, None, :]) & causal) else None


def _other_mask(config: Any) -> SettingError:
    window = getattr(config, "sliding_window", None)
    if window is not None:
        expected = f"None, or sequences of at most {window} tokens, since a kernel sees all earlier keys"
        return SettingError("model.config.sliding_window", expected, window)
    return SettingError("attention_mask", "only padding masks of shape (B, K), or None, are supported")
