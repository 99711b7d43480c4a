"""The packages of the extra ``transformers``, imported on first use; what they load; and numbers for them."""

import functools
import math
from numbers import Real
from typing import Any

from torch import nn

from sparsity_lab.settings import SettingError, Shown, lazy

required = functools.partial(lazy.required, extra="transformers")
"""A module of ``transformers`` or ``peft``."""


def pretrained(model: object) -> nn.Module:
    """The model of ``transformers`` that this is, or that is inside it, as in a model of ``peft``.

    Raises:
        SettingError: there is none.
    """
    kind = required("transformers").PreTrainedModel
    modules = model.modules() if isinstance(model, nn.Module) else ()
    found: nn.Module | None = next((module for module in modules if isinstance(module, kind)), None)
    if found is None:
        raise SettingError("model", "a model of transformers", Shown(type(model).__name__))
    return found


def loaded(kind: str, name: str, path: str, **options: Any) -> Any:
    """A model, tokenizer or config that ``transformers`` reads from a folder or the hub.

    Args:
        kind: a class of ``transformers``, such as ``AutoTokenizer``.
        path: what errors call the name.

    Raises:
        SettingError: there is none, it is damaged, a package for it is missing, or weights are missing in it.
    """
    what = {"AutoModelForCausalLM": "causal language model"}.get(kind, kind.removeprefix("Auto").lower())
    is_model = kind.startswith("AutoModel")
    try:
        options |= {"output_loading_info": True} if is_model else {}
        found = getattr(required("transformers"), kind).from_pretrained(name, **options)
    except SettingError:
        raise
    except Exception as error:  # packages for many kinds of file, of which nothing narrower is known
        words = " ".join(str(error).split())[:160]
        expected = f"the folder or hub name of a {what} that transformers loads"
        raise SettingError(path, expected, Shown(f"{name!r} ({type(error).__name__}: {words})")) from None
    if not is_model:
        return found
    model, told = found
    if missing := sorted(told["missing_keys"]):
        expected = f"a {what} with all its weights, {missing[0]} too"
        raise SettingError(path, expected, Shown(f"{name!r} without {len(missing)} of them"))
    return model


def check_positive(name: str, value: object) -> None:
    """Raise ``SettingError`` unless it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise SettingError(name, "a number above 0", value)
