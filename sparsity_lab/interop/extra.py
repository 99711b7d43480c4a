"""The packages of the extra ``transformers``, imported on first use."""

import importlib
from types import ModuleType

from torch import nn

from sparsity_lab.settings import SettingError, Shown


def required(module: str) -> ModuleType:
    """A module of ``transformers`` or ``peft``.

    Raises:
        SettingError: the package is not installed, or its version has no such module.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        expected = f'the package {package} (pip install "sparsity-lab[transformers]")'
        raise SettingError(package, expected, Shown(str(error))) from None


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
