"""A small Llama of bytes, trained here on the source of the standard library."""

import copy
import functools
import sysconfig
from pathlib import Path
from typing import Any

import torch
from interop.tiny_models import transformers
from torch import Tensor

TRAINED = 64
"""Tokens of a training sequence."""


def python_files(count: int, size: int) -> list[Tensor]:
    """The first ``size`` bytes of files that ``byte_model`` was not trained on."""
    return [content[:size] for content in _contents("[n-z]*.py") if len(content) >= size][:count]


def _contents(pattern: str) -> list[Tensor]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [torch.tensor(list(file.read_bytes())) for file in sorted(folder.glob(pattern))]


@functools.cache
def _trained(steps: int) -> Any:
    data = torch.cat(_contents("[a-m]*.py"))
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TRAINED,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(0, len(data) - TRAINED, (32,), generator=generator)
        batch = data[starts[:, None] + torch.arange(TRAINED)]
        model(batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def byte_model(steps: int = 300) -> Any:
    """A copy of it; the same in every call."""
    return copy.deepcopy(_trained(steps))
