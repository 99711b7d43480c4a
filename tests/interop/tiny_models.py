"""Tiny models of ``transformers`` with random weights, large enough ones that attention matters."""

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

VOCAB = 64

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "eos_token_id": None,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.2,
    "eos_token_id": None,
    **dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
}

NAMES = ("Llama", "GPT2", "Qwen2", "Qwen3", "Mistral")


def config(name: str, **changes: Any) -> Any:
    """The tiny config of an architecture."""
    kind = getattr(transformers, f"{name}Config")
    if name == "GPT2":
        return kind(**{**_GPT2, **changes})
    own = {"sliding_window": None} if name == "Mistral" else {"head_dim": 8} if name == "Qwen3" else {}
    return kind(**{**_SIZES, **own, **changes})


def build(name: str, seed: int = 0, **changes: Any) -> Any:
    """A model of this architecture, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(
            config(name, **changes)
        ).eval()


def tokens(length: int, batch_size: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (batch_size, length), generator=torch.Generator().manual_seed(seed))


def left_padding(length: int, by: int, batch_size: int = 2) -> dict[str, Tensor]:
    """The first sequence begins ``by`` tokens later; positions count its own tokens."""
    mask = torch.ones(batch_size, length, dtype=torch.int64)
    mask[0, :by] = 0
    return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
