"""The model of a run, and whether it can take its parent's weights."""

from torch import nn

from sparsity_lab.settings import SettingError, Shown
from sparsity_lab.training.config import RunConfig


def build(config: RunConfig) -> nn.Module:
    """The model of a run, with its adapter, to be filled with weights."""
    model = build_plain(config)
    if config.adapter:
        config.adapter.attach(model, config.model_seed)
    return model


def build_plain(config: RunConfig) -> nn.Module:
    return config.model.build(config.model_seed, vocab_size=config.task.vocabulary.size)


def check_weights(model: nn.Module, parent: nn.Module, config: RunConfig) -> None:
    """Raise ``SettingError`` if a model cannot take its parent's weights. The error names the first weight that
    differs in shape, or that is tied to another in the model but not in its parent."""
    assert config.parent
    wanted, found = (
        {name: tuple(tensor.shape) for name, tensor in one.state_dict().items()} for one in (model, parent)
    )
    for name in dict.fromkeys((*wanted, *found)):
        if wanted.get(name) != found.get(name):
            shown = Shown(f"{found.get(name, 'none')} in {config.parent.model}")
            raise SettingError("parent.model", f"{name} of shape {wanted.get(name, 'none')}, as in the child", shown)
    given = parent.state_dict()
    first: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        other = first.setdefault(tensor.data_ptr(), name)
        if given[name].data_ptr() != given[other].data_ptr():
            shown = Shown(f"two weights in {config.parent.model}")
            raise SettingError("parent.model", f"{other} and {name} tied, as in the child", shown)
