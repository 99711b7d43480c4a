"""``torch.compile`` of the decoder, at lengths that change."""

import pytest
import torch
from kernels.closeness import assert_close

from sparsity_lab.models import ALiBi, Decoder, NoPE, PositionScheme, RoPE


@pytest.mark.parametrize("position", [RoPE(), ALiBi(), NoPE()], ids=str)
def test_the_decoder_compiles_at_every_length(position: PositionScheme) -> None:
    """Logits and gradients of the compiled decoder are those of the plain one, at three lengths in turn."""
    torch.compiler.reset()
    model = Decoder(num_layers=2, num_heads=2, d_model=16, position=position).build(0)
    compiled = torch.compile(model, backend="aot_eager")
    for length in (9, 14, 21):
        tokens = torch.randint(0, 16, (3, length), generator=torch.Generator().manual_seed(length))
        gradients = []
        for run in (compiled, model):
            model.zero_grad()
            run(tokens).logits.square().sum().backward()
            gradients.append({name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None})
        with torch.no_grad():
            assert_close(f"logits, T={length}", compiled(tokens).logits, model(tokens).logits, 1e-5)
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            assert_close(f"gradient of {name}, T={length}", gradient, gradients[1][name], 1e-4)
