"""``torch.compile`` of the decoder, at lengths that change."""

import pytest
import torch
from kernels.closeness import assert_close
from torch import Tensor

from sparsity_lab.models import ALiBi, Decoder, DecoderModel, NoPE, Predicted, RoPE

DECODERS = [
    Decoder(position=RoPE()),
    Decoder(position=ALiBi()),
    Decoder(position=NoPE(), coupling=Predicted(max_id=30)),
    Decoder(position=(RoPE(), NoPE(), RoPE()), num_layers=3),
]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("config", DECODERS, ids=str)
def test_the_decoder_is_one_graph_at_every_length(config: Decoder, backend: str) -> None:
    """Logits, auxiliary losses and gradients of the compiled decoder are those of the plain one, at three lengths in
    turn: the second makes the length a symbol, the third uses it."""
    torch.compiler.reset()
    model = config.replace(num_heads=2, d_model=16).build(0)
    compiled = torch.compile(model, backend=backend, dynamic=None, fullgraph=True)
    for length in (9, 14, 21):
        tokens = torch.randint(0, 16, (3, length), generator=torch.Generator().manual_seed(length))
        ids = torch.arange(1, length + 1).expand(3, 1, length).contiguous()
        got, expected = (outcome(run, tokens, ids) for run in (compiled, model))
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            assert_close(f"{name}, T={length}", got[name], values, 1e-4)


def outcome(model: DecoderModel, tokens: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """What comes out forward and backward, by name."""
    model.zero_grad()
    logits, losses = model(tokens, ids)
    sum(losses.values(), logits.square().sum()).backward()
    gradients = {
        f"gradient of {name.removeprefix('_orig_mod.')}": x.grad.clone() for name, x in model.named_parameters()
    }
    return gradients | {"logits": logits.detach()} | {name: loss.detach() for name, loss in losses.items()}
