"""What the lab's analysis reads of a model of ``transformers``: records of its layers, and a predictor."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sparsity_lab.analysis.dependencies import Predictor
from sparsity_lab.interop.attach import AttachedKernel, attach, detach
from sparsity_lab.kernels import Softmax
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError, Shown


def record(model: nn.Module, tokens: Tensor) -> list[LayerRecord]:
    """Queries and keys of every layer on a batch, (B, T) whole numbers: what ``attention_entropy``,
    ``norm_sensitivity``, ``attention_sink``, ``retained_mass`` and all other measures of records take.

    Layers and heads have the numbers that the model gives them, and frames have a column ``module``, the layer's name
    in the model, such as ``model.layers.0.self_attn``. Queries and keys are those that attention gets, after the
    model's own rotation, and so no position is left to be applied; norms are the same before and after it. A
    model without a kernel attached is recorded with its softmax attention.

    Raises:
        SettingError: a model that ``attach`` refuses, or tokens of another form.

    >>> from sparsity_lab.analysis import attention_sink
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    >>> attention_sink(record(model, torch.arange(16)[None])).frame().select("layer", "head").shape
    (8, 2)
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise SettingError("tokens", "whole numbers of shape (B, T)", Shown(f"{tokens.dtype} {tuple(tokens.shape)}"))
    found: list[LayerRecord] = []
    with _at_inference(model), torch.no_grad():
        model(tokens, use_cache=False, records=found)
    if not found:
        expected = "a model class that passes unknown arguments on to its attention"
        raise SettingError("model", expected, Shown(type(model).__name__))
    return found


def as_predictor(model: nn.Module) -> Predictor:
    """The model as ``dependency_sparsity`` asks it: the next token from the tokens that it may see, which keep their
    places.

    >>> tokens = torch.tensor([[1, 2, 3]])
    >>> as_predictor(llama)(tokens, torch.ones_like(tokens, dtype=torch.bool)).shape
    torch.Size([1, 8])

    Raises:
        SettingError: in a call, a model that ``attach`` refuses.
    """

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
    own = any(isinstance(module, AttachedKernel) for module in model.modules())
    if not own:
        attach(model, Softmax())
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        if not own:
            detach(model)
