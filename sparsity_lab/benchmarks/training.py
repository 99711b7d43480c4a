"""Speed of the training loop."""

import tempfile
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from sparsity_lab.benchmarks.measure import alternate
from sparsity_lab.generators import Planted, Stream
from sparsity_lab.models import Decoder, NoPE, RoPE
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training
from sparsity_lab.training.optimize import Records, optimize

__all__ = ["BareDecoder", "training"]


class BareDecoder(nn.Module):
    """A plain PyTorch decoder of the benchmark's shape, without positions: what anyone would write."""

    def __init__(self, vocab_size: int, d_model: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.norms = nn.ModuleList(nn.RMSNorm(d_model) for _ in range(2 * num_layers + 1))
        self.qkv = nn.ModuleList(nn.Linear(d_model, 3 * d_model, bias=False) for _ in range(num_layers))
        self.out = nn.ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(num_layers))
        self.up = nn.ModuleList(nn.Linear(d_model, 4 * d_model, bias=False) for _ in range(num_layers))
        self.down = nn.ModuleList(nn.Linear(4 * d_model, d_model, bias=False) for _ in range(num_layers))
        self.head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        B, T, d = x.shape
        for i, (qkv, out, up, down) in enumerate(zip(self.qkv, self.out, self.up, self.down, strict=True)):
            q, k, v = qkv(self.norms[2 * i](x)).view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(mixed.transpose(1, 2).reshape(B, T, d))
            x = x + down(gelu(up(self.norms[2 * i + 1](x))))
        logits: Tensor = self.head(self.norms[-1](x[:, -1]))
        return logits


def training() -> pl.DataFrame:
    """Training steps of the lab beside a bare PyTorch loop: 2 layers, d=64, 4 heads, batch 64, T=64, one thread.

    The bare loop has fused attention and fused AdamW, its data ready in memory, its logits at the last position only,
    and neither positions, clipping, index sampling, metrics nor data generation.
    """
    steps, threads = 30, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_training_row("NoPE", NoPE(), steps), _training_row("RoPE", RoPE(), steps)]
    finally:
        torch.set_num_threads(threads)
    return pl.DataFrame(rows)


def _training_row(name: str, position: NoPE | RoPE, steps: int) -> dict[str, object]:
    config = RunConfig(
        task=Planted(k=3),
        model=Decoder(position=position),
        training=Training(steps=steps, batch_size=64, curriculum=FixedLength(length=62)),
        evaluation=Evaluation(lengths=(62,)),
    )
    batch = config.task.sample(Stream(), 0, 64 * steps, 62)
    tokens, targets = torch.split(batch.tokens, 64), torch.split(batch.targets[:, -1], 64)
    bare_model = BareDecoder(16, 64, 4, 2)
    optimizer = torch.optim.AdamW(bare_model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0, fused=True)

    def bare() -> None:
        for x, y in zip(tokens, targets, strict=True):
            torch.autograd.backward(cross_entropy(bare_model(x), y))
            optimizer.step()
            optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "none"

        def lab() -> None:
            optimize(config, config.model.build(0, vocab_size=16), Records(), checkpoint)

        lab()
        own, other, ratio = alternate(lab, bare, rounds=9)
    tokens_per_step = 64 * 64
    return {
        "case": name,
        "lab, thousand tokens/s": steps * tokens_per_step / own / 1e3,
        "bare loop, thousand tokens/s": steps * tokens_per_step / other / 1e3,
        "lab over bare loop": ratio,
    }
