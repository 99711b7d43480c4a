"""Speed of the training loop."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from sparsity_lab.benchmarks.measure import alternate, measured_device, wait_for
from sparsity_lab.generators import Planted, SparseMarkov, Stream, Task
from sparsity_lab.models import Decoder, NoPE, RoPE
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training
from sparsity_lab.training.optimize import Records, optimize

_BATCH, _TOKENS, _STEPS, _ROUNDS = 64, 64, 30, 9


class BareDecoder(nn.Module):
    """A plain PyTorch decoder of the benchmark's shape, without positions: what anyone would write.

    Args:
        last: logits of the last position alone, (B, V) instead of (B, T, V). ``"logits"`` skips only the head
            elsewhere. ``"rows"`` computes the last layer there alone, except for its keys and values, as the lab
            does.
    """

    def __init__(
        self, vocab_size: int, d_model: int, num_heads: int, num_layers: int, last: str | None = None
    ) -> None:
        super().__init__()
        self.num_heads, self.last = num_heads, last
        self.embedding = nn.Embedding(vocab_size, d_model)
        # On a CPU PyTorch fuses this norm, but not RMSNorm.
        self.norms = nn.ModuleList(nn.LayerNorm(d_model, bias=False) for _ in range(2 * num_layers + 1))
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
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, d)
            if self.last == "rows" and i + 1 == len(self.qkv):
                x, mixed = x[:, -1:], mixed[:, -1:]
            x = x + out(mixed)
            x = x + down(gelu(up(self.norms[2 * i + 1](x))))
        logits: Tensor = self.head(self.norms[-1](x[:, -1] if self.last else x))
        return logits


@dataclass(frozen=True)
class _Case:
    """A training case and its baseline."""

    position: NoPE | RoPE
    task: Task
    length: int
    last: str | None
    compiled: bool = False

    @property
    def bare(self) -> str:
        """The bare loop in words."""
        if self.last:
            return "its last layer on all rows" if self.last == "logits" else "its last layer on the last row"
        return "compiled" if self.compiled else "plain"


_LAST, _ALL = Planted(k=3), SparseMarkov()
_CASES = (
    _Case(NoPE(), _ALL, 64, None),
    _Case(NoPE(), _ALL, 64, None, compiled=True),
    _Case(RoPE(), _ALL, 64, None),
    _Case(NoPE(), _LAST, 62, "rows"),
    _Case(NoPE(), _LAST, 62, "logits"),
    _Case(RoPE(), _LAST, 62, "logits"),
)


def training(device: str = "cpu") -> pl.DataFrame:
    """Training steps of the lab compared with a bare PyTorch loop: 2 layers, d=64, 4 heads, batch 64, T=64, one
    thread.

    The bare loop has fused attention, fused AdamW and data in memory. It has no positions, clipping, index sampling,
    metrics or data generation. If only the last position is scored, the lab computes its last layer on that row
    alone, except for keys and values. Compared with a bare loop that does not, the ratio shows this as well. The bare
    loop is also compiled, if there is a C++ compiler.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        SettingError: no such device.
    """
    place, threads = measured_device(device), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cases = [case for case in _CASES if not case.compiled or place.type == "cuda" or shutil.which("c++")]
        return pl.DataFrame([_row(case, place) for case in cases])
    finally:
        torch.set_num_threads(threads)


def _row(case: _Case, device: torch.device) -> dict[str, object]:
    config = RunConfig(
        task=case.task,
        model=Decoder(position=case.position),
        training=Training(
            steps=_STEPS, batch_size=_BATCH, curriculum=FixedLength(length=case.length), device=device.type
        ),
        evaluation=Evaluation(lengths=(case.length,)),
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, vocab_size = Path(folder) / "none", case.task.vocabulary.size

        def lab() -> None:
            optimize(config, config.model.build(0, vocab_size=vocab_size), Records(), checkpoint)
            wait_for(device)

        bare = _bare_loop(case, device)
        lab()
        bare()
        own, other, ratio = alternate(lab, bare, rounds=_ROUNDS)
    tokens = _STEPS * _BATCH * _TOKENS
    return {
        "position": case.position.kind,
        "scored": "last position" if case.last else "every position",
        "bare loop": case.bare,
        "where": device.type,
        "lab, thousand tokens/s": tokens / own / 1e3,
        "bare loop, thousand tokens/s": tokens / other / 1e3,
        "lab over bare loop": ratio,
    }


def _bare_loop(case: _Case, device: torch.device) -> Callable[[], None]:
    batch = case.task.sample(Stream(), 0, _BATCH * _STEPS, case.length)
    wanted = batch.targets[:, -1:] if case.last else batch.targets
    tokens, targets = (torch.split(x.to(device), _BATCH) for x in (batch.tokens, wanted))
    model = BareDecoder(case.task.vocabulary.size, 64, 4, 2, case.last).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0, fused=True)
    logits = torch.compile(model) if case.compiled else model

    def bare() -> None:
        for x, y in zip(tokens, targets, strict=True):
            torch.autograd.backward(cross_entropy(logits(x).flatten(0, -2), y.flatten()))
            optimizer.step()
            optimizer.zero_grad()
        wait_for(device)

    return bare
