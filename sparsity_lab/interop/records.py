"""What the lab's analysis reads of a model of ``transformers``: records of its layers, and a predictor."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sparsity_lab.analysis.dependencies.search import Predictor
from sparsity_lab.interop.attach import attach, attached_kernels, detach
from sparsity_lab.interop.attention import kernels_of
from sparsity_lab.interop.documents import check_known
from sparsity_lab.interop.extra import pretrained
from sparsity_lab.kernels import Softmax
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError, Shown


def record(model: nn.Module, tokens: Tensor, attention_mask: Tensor | None = None) -> list[LayerRecord]:
    """Queries and keys of every layer on a batch, (B, T) whole numbers: what ``attention_entropy``,
    ``norm_sensitivity``, ``attention_sink``, ``retained_mass`` and all other measures of records take.

    Layers and heads have the numbers that the model gives them, and frames have a column ``module``, the layer's name
    in the model, such as ``model.layers.0.self_attn``. Queries and keys are those that attention gets, after the
    model's own rotation, and so no position is left to be applied; norms are the same before and after it. A
    model without a kernel attached is recorded with its softmax attention.

    Args:
        attention_mask: (B, T), 0 for padding, as a tokenizer gives it. Positions then count the tokens of each
            sequence, as in ``generate``. In records every sequence begins at 0 and padding comes after it; measures
            leave it out.

    Raises:
        SettingError: a model that ``attach`` refuses, or tokens or a mask of another form.

    >>> from sparsity_lab.analysis import attention_sink
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    >>> attention_sink(record(model, torch.arange(16)[None])).frame().select("layer", "head").shape
    (8, 2)
    """
    base = pretrained(model)
    _check_tokens(tokens, base)
    found: list[LayerRecord] = []
    seen = None if attention_mask is None else _checked_mask(attention_mask, tokens)
    given: dict[str, Tensor] = {}
    if seen is not None:
        given = {"attention_mask": seen.to(torch.int64), "position_ids": (seen.cumsum(1) - 1).clamp_min(0)}
        given = {name: one for name, one in given.items() if name in signature(base.forward).parameters}
    with _at_inference(model), torch.no_grad():
        attached = attached_kernels(model)
        for one in attached:
            one.records = found
        try:
            model(tokens, use_cache=False, **given)
        finally:
            for one in attached:
                one.records = None
    return found if seen is None else [_without_gaps(one, seen.to(one.q.device)) for one in found]


def _check_tokens(tokens: object, base: Any) -> None:
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
        got = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise SettingError("tokens", "whole numbers of shape (B, T)", Shown(got))
    check_known("tokens", tokens, base.get_input_embeddings().weight.shape[0])


def _checked_mask(mask: Tensor, tokens: Tensor) -> Bool[Tensor, "B T"]:
    seen = mask.bool()
    begins = torch.nn.functional.pad(seen.int(), (1, 0)).diff() == 1
    if mask.shape != tokens.shape or not torch.equal(seen.to(mask.dtype), mask) or not (begins.sum(1) == 1).all():
        expected = (
            f"1 for the tokens of each sequence, which follow each other, else 0, of shape {tuple(tokens.shape)}"
        )
        raise SettingError("attention_mask", expected, Shown(f"{mask.dtype} {tuple(mask.shape)}"))
    return seen


def _without_gaps(record: LayerRecord, seen: Bool[Tensor, "B T"]) -> LayerRecord:
    """The record with the tokens of each sequence first and its padding last."""
    order = (~seen).int().argsort(dim=1, stable=True)[:, : int(seen.sum(1).max())]
    q, k = (x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])) for x in (record.q, record.k))
    return replace(record, q=q, k=k, rotated_q=q, rotated_k=k, key_mask=seen.gather(1, order))


def as_predictor(model: nn.Module) -> Predictor:
    """The model as ``dependency_sparsity`` asks it: the next token from the tokens that it may see, which keep their
    places.

    >>> tokens = torch.tensor([[1, 2, 3]])
    >>> as_predictor(llama)(tokens, torch.ones_like(tokens, dtype=torch.bool)).shape
    torch.Size([1, 8])

    Raises:
        SettingError: no model of ``transformers``; in a call, a model that ``attach`` refuses.
    """

    pretrained(model)

    def predict(tokens: Int64[Tensor, "N n"], key_mask: Bool[Tensor, "N n"]) -> Float[Tensor, "N V"]:
        device = next(model.parameters()).device
        places = torch.arange(tokens.shape[1], device=device).expand(len(tokens), -1)
        seen = {"attention_mask": key_mask.to(device, torch.int64), "position_ids": places}
        with _at_inference(model), torch.no_grad():
            logits: Tensor = model(tokens.to(device), **seen, use_cache=False, logits_to_keep=1).logits
        return logits[:, -1].cpu()

    return predict


@contextmanager
def _at_inference(model: Any) -> Iterator[None]:
    """With a kernel attached, softmax where there is none, and in evaluation mode; then as it was."""
    was_training = model.training
    own = kernels_of(model)
    if not own:
        attach(model, Softmax())
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        if not own:
            detach(model)
