"""Coupled position IDs in a decoder."""

import pytest
import torch
from kernels.closeness import assert_close

from sparsity_lab.models import Decoder, NoPE, Oracle
from sparsity_lab.settings import SettingError

TOKENS = torch.tensor([[1, 5, 2, 7], [3, 3, 0, 4]])


def test_no_id_adds_nothing() -> None:
    """With ID 0 everywhere the model is the one without a coupling, and its table gets no gradient."""
    coupled = Decoder.Config(coupling=Oracle(max_id=6)).build(0)
    none = torch.zeros(2, 1, 4, dtype=torch.int64)
    logits = coupled(TOKENS, none)
    assert torch.equal(logits, Decoder.Config().build(0)(TOKENS))
    logits.sum().backward()
    assert not coupled.coupling_embedding.weight.grad.any()


def test_kinds_have_their_own_tables_and_add_up() -> None:
    embedding = Decoder.Config(coupling=Oracle(max_id=3, num_kinds=2)).build(0).coupling_embedding
    ids = torch.tensor([[[0, 1, 3], [2, 1, 0]]])
    table = embedding.weight
    expected = torch.stack([table[1, 1], table[0, 0] + table[1, 0], table[0, 2]])
    assert_close("sum", embedding(ids)[0], expected, 1e-7)


def test_ids_say_which_tokens_belong_together() -> None:
    """Equal IDs, equal rows: without positions, moving an ID moves its effect."""
    model = Decoder.Config(position=NoPE(), coupling=Oracle(max_id=3), num_layers=1).build(0).double()
    tokens = torch.full((1, 5), 2)
    early, late = torch.tensor([[[1, 0, 0, 0, 2]]]), torch.tensor([[[0, 0, 1, 0, 2]]])
    assert_close("last row", model(tokens, early)[0, -1], model(tokens, late)[0, -1], 1e-12)
    assert (model(tokens, early)[0, -1] - model(tokens, 3 * (early > 0))[0, -1]).abs().max() > 1e-5


def test_refusals() -> None:
    config = Decoder.Config(coupling=Oracle(max_id=6))
    with pytest.raises(SettingError, match=r"position_ids: expected position IDs for Oracle\(max_id=6\), got None"):
        config.build(0)(TOKENS)
    with pytest.raises(SettingError, match=r"position_ids: expected 1 kinds of position ID, got 2"):
        config.build(0)(TOKENS, torch.zeros(2, 2, 4, dtype=torch.int64))
    config.check_largest_id(6)
    with pytest.raises(SettingError, match=r"coupling.max_id: expected at least 7, .*got 6"):
        config.check_largest_id(7)
    with pytest.raises(SettingError, match=r"coupling: expected None for a task without .* IDs"):
        config.check_largest_id(0)
    Decoder.Config().check_largest_id(100)
    with pytest.raises(SettingError, match=r"max_id: expected at least 1, got 0"):
        Oracle(max_id=0)
