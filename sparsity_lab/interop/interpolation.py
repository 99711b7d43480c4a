"""Position interpolation through the rope settings of a model of ``transformers``."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from sparsity_lab.interop.extra import check_positive, pretrained
from sparsity_lab.settings import SettingError, Shown, whole

_ALL = ""


def interpolate_positions(model: nn.Module, factor: float) -> None:
    """Divide positions by a factor, in place, through the model's rope settings (Chen et al., arXiv 2306.15595): the
    config says so, and declares a context that many times as long. Interpolating again multiplies.

    >>> interpolate_positions(llama, 2.0)
    >>> llama.config.rope_parameters["rope_type"]
    'linear'

    Where kinds of layers have settings of their own, all are interpolated.

    Raises:
        SettingError: a model without rotary positions, with other scaling than linear, or of a class without it.
    """
    base: Any = pretrained(model)
    check_positive("factor", factor)
    config, ropes = base.config, ropes_of(base.config)
    scaled = {
        kind: {**own, "rope_type": "linear", "factor": float(own.get("factor", 1.0)) * factor}
        for kind, own in ropes.items()
    }
    changed = copy.copy(config)
    changed.rope_parameters = scaled.get(_ALL, scaled)
    try:
        changed.validate_rope()
    except ValueError as error:
        expected = "those of a class that knows 'linear'"
        raise SettingError("model.config.rope_parameters", expected, Shown(" ".join(str(error).split()))) from None
    config.rope_parameters = changed.rope_parameters
    config.max_position_embeddings = round(config.max_position_embeddings * factor)
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RotaryEmbedding"):
                setattr(parent, name, type(child)(config).to(next(child.buffers()).device))


def ropes_of(config: Any) -> dict[str, dict[str, Any]]:
    """Rope settings by kind of layer; of ``_ALL`` where they have the same."""
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        expected = "rotary positions, which can be interpolated"
        raise SettingError("model.config.rope_parameters", expected, Shown(f"none, in a {config.model_type}"))
    nested = all(isinstance(one, Mapping) for one in parameters.values())
    found = {name: dict(one) for name, one in (parameters if nested else {_ALL: parameters}).items()}
    for name, own in found.items():
        if (kind := own.get("rope_type", "default")) not in ("default", "linear"):
            path = ".".join(filter(None, ("model.config.rope_parameters", name, "rope_type")))
            raise SettingError(path, "'default' or 'linear'", kind)
    return found


def checked_context(config: Any, context: int) -> int:
    ropes_of(config)
    declared, window = getattr(config, "max_position_embeddings", None), getattr(config, "sliding_window", None)
    if declared is None:
        raise SettingError("model.config.max_position_embeddings", "a number, the context to extend", None)
    if whole("context", context) <= declared:
        raise SettingError("context", f"more than {declared}, the model's own context", context)
    if window is not None and window < context:
        raise SettingError("model.config.sliding_window", f"None, or at least {context}, the new context", window)
    return int(declared)
