"""A user's own training loop on two processes, in a module of its own so that they can import it."""

import os
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from sparsity_lab.generators import Batch, Planted, Stream
from sparsity_lab.models import Decoder
from sparsity_lab.training import UniformLength

TASK, STEPS = Planted(k=1), 4


def loop(model: nn.Module, batch_size: int, workers: int) -> list[Batch]:
    """A few steps of gradient descent; the batches that it met."""
    data = TASK.dataset(Stream(seed=3), UniformLength(low=6, high=9), batch_size, steps=STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for batch in DataLoader(data, batch_size=None, num_workers=workers):
        optimizer.zero_grad()
        logits = model(batch.tokens, scored=batch.scored).logits
        cross_entropy(logits, batch.targets[batch.scored]).backward()
        optimizer.step()
        seen.append(batch)
    return seen


def model() -> nn.Module:
    return Decoder(num_layers=1, d_model=16, num_heads=2).build(0, vocab_size=TASK.vocabulary.size)


def process(rank: int, world_size: int, folder: Path) -> None:
    """One of the processes: it writes what it met and what it learned."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = distributed.FileStore(str(folder / "store"), world_size)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    own = model()
    seen = loop(DistributedDataParallel(own), batch_size=8, workers=2)
    torch.save(([batch.tokens for batch in seen], own.state_dict()), folder / f"{rank}.pt")
    distributed.destroy_process_group()
