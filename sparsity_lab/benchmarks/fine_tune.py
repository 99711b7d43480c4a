"""Speed and memory of fine-tuning at a long context."""

import statistics
from collections.abc import Sequence

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparsity_lab.analysis.memory import peak_memory
from sparsity_lab.benchmarks.measure import seconds
from sparsity_lab.kernels import Kernel, ShiftedSparse, Softmax
from sparsity_lab.models import Adapter, Decoder, lora_embed_norm, trainable_parameters
from sparsity_lab.settings import SettingError

_VOCABULARY = 256
_ROUNDS = 3
_METHODS: dict[str, tuple[Kernel, Adapter | None]] = {
    "dense": (Softmax(), None),
    "shifted sparse": (ShiftedSparse(ratio=0.25), None),
    "shifted sparse, lora_embed_norm": (ShiftedSparse(ratio=0.25), lora_embed_norm()),
}


def fine_tune(lengths: Sequence[int] = (4096,)) -> pl.DataFrame:
    """One fine-tuning step (forward, backward, AdamW) with shifted sparse attention compared with dense. One sequence
    of bytes, d=128, 7 layers, 4 heads, RoPE, one thread. Trains all weights, or adapters with embedding and norms.

    - ``dense over own`` is the quotient of the times, the median of rounds in which all take turns.
    - ``dense over own, FLOP`` is what is attainable if every operation takes the same time. GFLOP are for the forward
    pass, counted as in LongLoRA: a multiplication with its addition is two. Per layer, attention is 4 N G d with
    groups of G (N if dense), projections are 8 N d², and the MLP is 16 N d². The head is 2 N d V.
    - ``peak MiB`` is of the step, beyond the weights.

    Args:
        lengths: N; the groups are a quarter of it.

    Raises:
        SettingError: a length below 8.
    """
    for length in lengths:
        if length < 8:
            raise SettingError("--lengths", "at least 8", length)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return pl.DataFrame([row for length in lengths for row in _rows(length)])
    finally:
        torch.set_num_threads(threads)


def _rows(length: int) -> list[dict[str, object]]:
    steps = {name: _Step(*method, length) for name, method in _METHODS.items()}
    for step in steps.values():
        step()
    times = [{name: seconds(step) for name, step in steps.items()} for _ in range(_ROUNDS)]
    dense = sum(forward_flops(steps["dense"].config, length).values())
    rows = []
    for name, step in steps.items():
        flops = forward_flops(step.config, length)
        rows.append(
            {
                "case": name,
                "N": length,
                "ms a step": 1e3 * statistics.median(one[name] for one in times),
                "dense over own": statistics.median(one["dense"] / one[name] for one in times),
                "dense over own, FLOP": dense / sum(flops.values()),
                **{f"{part}, GFLOP": count / 1e9 for part, count in flops.items()},
                "peak MiB": peak_memory(step) / 2**20,
                "trained weights": trainable_parameters(step.model),
            }
        )
    return rows


class _Step:
    """One step of training, to be called again and again."""

    def __init__(self, kernel: Kernel, adapter: Adapter | None, length: int) -> None:
        self.config = Decoder(num_layers=7, d_model=128, kernel=kernel)
        self.model: nn.Module = self.config.build(0, vocab_size=_VOCABULARY)
        if adapter:
            adapter.attach(self.model, 0)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, _VOCABULARY, (1, length + 1), generator=generator)

    def __call__(self) -> None:
        logits, auxiliary_losses = self.model(self.tokens[:, :-1])
        loss: Tensor = sum(auxiliary_losses.values(), cross_entropy(logits[0], self.tokens[0, 1:]))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()


def forward_flops(config: Decoder, length: int, vocab_size: int = _VOCABULARY) -> dict[str, float]:
    """Operations of a forward pass of one sequence by part, as LongLoRA counts them (arXiv 2309.12307).

    The causal half of dense attention, and of each group, counts as if it were computed.
    """
    N, d, layers = length, config.d_model, config.num_layers
    reached = [kernel.group_size(N) if isinstance(kernel, ShiftedSparse) else N for kernel in config.kernels]
    return {
        "attention": float(sum(4 * N * G * d for G in reached)),
        "projections": 8.0 * N * d * d * layers,
        "MLP": 4.0 * N * d * (config.d_ff or 4 * d) * layers,
        "head": 2.0 * N * d * vocab_size,
    }
