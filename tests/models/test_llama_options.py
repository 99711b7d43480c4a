"""SwiGLU and the eps of norms: by hand, sizes, and what goes with them."""

import pytest
import torch
from kernels.closeness import assert_close

from sparsity_lab.models import Decoder, LoRA
from sparsity_lab.models.block import Block
from sparsity_lab.settings import SettingError, from_text, identifier


def test_swiglu_by_hand() -> None:
    """silu(1) · 2 = 1.46211716, through identity maps."""
    block = Block(1, 1, 2, 2, output_gate=False, mlp="swiglu")
    with torch.no_grad():
        block.mlp_gate.weight.copy_(torch.eye(2))
        block.up.weight.copy_(2 * torch.eye(2))
    units = block._hidden_units(torch.tensor([[1.0, 0.0]]))
    assert_close("units", units, torch.tensor([[1.46211716, 0.0]]), 1e-7)


def test_eps_is_in_every_norm() -> None:
    model = Decoder(norm_eps=0.5).build(0)
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.RMSNorm)} == {0.5}
    assert_close("norm", model.final_norm(torch.ones(1, 64)), torch.full((1, 64), 1.5**-0.5), 1e-6)


def test_number_of_parameters() -> None:
    for config in (Decoder(mlp="swiglu", d_ff=48), Decoder(mlp="swiglu", num_kv_heads=2, tied_head=True)):
        assert sum(p.numel() for p in config.build(0).parameters()) == config.num_parameters(16)


def test_the_gate_can_be_adapted() -> None:
    config = Decoder(mlp="swiglu")
    assert "mlp_gate" in config.projections
    assert "mlp_gate" not in Decoder().projections
    model, tokens = config.build(0), torch.arange(12)[None]
    before = model(tokens).logits
    LoRA(projections=("mlp_gate",)).attach(model, 0)
    assert torch.equal(model(tokens).logits, before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 8 * (64 + 256)


def test_settings() -> None:
    assert identifier(Decoder(mlp="gelu")) == identifier(Decoder())
    assert identifier(Decoder(mlp="swiglu")) != identifier(Decoder())
    assert from_text(Decoder, str(Decoder(mlp="swiglu", norm_eps=1e-5))) == Decoder(mlp="swiglu", norm_eps=1e-5)
    with pytest.raises(SettingError, match=r"norm_eps: expected more than 0, got 0.0"):
        Decoder(norm_eps=0.0)
