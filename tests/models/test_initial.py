"""Initial weights: every parameter is filled by a known law, or refused by name."""

import pytest
import torch
from torch import nn

from sparsity_lab.models import Decoder
from sparsity_lab.models.initial import initialize
from sparsity_lab.settings import SettingError


def on_meta(make: object) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = make()  # type: ignore[operator]
    return model.to_empty(device="cpu")


def test_biases_and_norms_are_filled() -> None:
    first, second = (
        on_meta(lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Embedding(5, 3))) for _ in "ab"
    )
    for model in (first, second):
        initialize(model, 7)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(first[0].bias, torch.zeros(3))  # type: ignore[index, arg-type]
    assert torch.equal(first[1].weight, torch.ones(3))  # type: ignore[index, arg-type]
    assert torch.equal(first[1].bias, torch.zeros(3))  # type: ignore[index, arg-type]


class Scale(nn.Module):
    """A module of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(3))


class DrawnScale(Scale):
    """The same, that says how it starts."""

    def initialize(self, generator: torch.Generator) -> None:
        self.scale.uniform_(1, 2, generator=generator)


def test_unknown_modules_are_named_or_fill_themselves() -> None:
    with pytest.raises(TypeError, match=r"Scale '1' has parameters: give it a method initialize"):
        initialize(on_meta(lambda: nn.Sequential(nn.Linear(2, 2), Scale())), 0)
    model = on_meta(lambda: nn.Sequential(nn.Linear(2, 2), DrawnScale()))
    initialize(model, 0)
    scale = model[1].scale  # type: ignore[index]
    assert ((scale >= 1) & (scale < 2)).all()


def test_token_and_residual_scales() -> None:
    """A decoder's own scales multiply the initial weights of the token embedding and of what each layer adds."""
    plain = Decoder(d_model=32).build(3)
    scaled = Decoder(d_model=32, embedding_std=0.3, residual_scale=0.1).build(3)
    for name, weight in plain.state_dict().items():
        factor = (
            15.0
            if name == "token_embedding.weight"
            else 0.1
            if name.endswith(("output.weight", "down.weight"))
            else 1.0
        )
        torch.testing.assert_close(scaled.state_dict()[name], weight * factor)
    for field, value in (("embedding_std", 0.0), ("residual_scale", -0.1), ("residual_scale", float("nan"))):
        with pytest.raises(SettingError, match=field):
            Decoder(**{field: value})
