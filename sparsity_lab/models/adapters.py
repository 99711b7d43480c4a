"""Adapters: which part of a trained model is trained further, and how; the rest is frozen.

A run with an adapter stores all its weights, including the frozen ones, and loading refuses a file that lacks any. So
the embeddings and norms that were trained with the low-rank maps cannot be lost.

Shapes: d inputs of a map, o outputs, r rank.
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsity_lab.models.block import Block
from sparsity_lab.models.config import ModelConfig
from sparsity_lab.models.initial import named_seed
from sparsity_lab.settings import LARGEST_SIZE, Setting, SettingError, check_least, register


class Adapter(Setting, family="adapter"):
    """Which part of a trained model is trained further, and how."""

    largest = LARGEST_SIZE

    @abstractmethod
    def check_model(self, config: ModelConfig) -> None:
        """Raise ``SettingError`` if models of this setting do not have what the adapter is put on."""

    @abstractmethod
    def attach(self, model: nn.Module, seed: int) -> None:
        """Change ``model`` in place: freeze it but for what is to be trained, new parts included, which start as a
        pure function of the seed and change no output yet.

        Raises:
            SettingError: as ``check_model``; or an adapter is there already.
        """


@register
class LoRA(Adapter):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685): W + (α / r) B A instead of W, with A (r, d) and B (o, r).

    W is frozen, A starts uniform within ± 1 / sqrt(d), B at zero, so that the model starts as it was. No dropout, no
    bias. Queries, keys and values are one projection here, and three to an adapter, each with its A.

    ``lora_embed_norm`` is what LongLoRA (arXiv 2309.12307) trains: low-rank maps and whole embeddings and norms.
    That paper calls it "LoRA+", which is also the name of an optimizer of 2024.

    The ``peft`` package does this and much more for models of ``transformers``: many kinds of adapters, several on
    one model, quantized weights, and small adapter files to share. Take it for such models. The lab does not use it
    for three reasons. The lab's models are its own. Whole embeddings and norms are trained with the maps and always
    stored with them. And an interrupted run must resume bit for bit.

    Attributes:
        rank: r.
        alpha: α; the product B A is multiplied by α / r.
        projections: names of the linear maps that are adapted in every layer: ``q``, ``k``, ``v``, ``output``,
            ``up``, ``down``. If present, also ``mlp_gate`` (the third map of SwiGLU), ``gate`` (the output gate) and
            ``gate_projection`` (the gates of the attention mechanism).
        also_train: what is trained as a whole: every parameter whose name contains one of these words. A head that is
            tied to the token embedding is trained with it.
    """

    rank: int = 8
    alpha: float = 16.0
    projections: tuple[str, ...] = ("q", "k", "v", "output")
    also_train: tuple[Literal["embedding", "norm", "head"], ...] = ()

    def check(self) -> None:
        check_least(1, rank=self.rank)
        if self.alpha <= 0:
            raise SettingError("alpha", "a positive number", self.alpha)
        if not self.projections and not self.also_train:
            raise SettingError("projections", "nothing to train; set projections or also_train")
        for name in ("projections", "also_train"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise SettingError(name, "different names", getattr(self, name))

    def check_model(self, config: ModelConfig) -> None:
        _check_projections(self.projections, config.projections)

    def attach(self, model: nn.Module, seed: int) -> None:
        if any(isinstance(module, Adapted) for module in model.modules()):
            raise SettingError(
                "model", "a model without an adapter (merge the existing one first)", type(model).__name__
            )
        blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, Block)]
        maps = [(path, block, name, parts) for path, block in blocks for name, parts in block.projections().items()]
        _check_projections(self.projections, [part for *_, parts in maps for part in parts])
        model.requires_grad_(False)
        for path, block, name, parts in maps:
            if chosen := [part for part in parts if part in self.projections]:
                adapted = Adapted(getattr(block, name), parts, chosen, self.rank, self.alpha / self.rank)
                for part, low_rank in adapted.low_rank.items():
                    seed_of_part = named_seed(seed, f"{path}.{name}.low_rank.{part}")
                    low_rank.initialize(torch.Generator().manual_seed(seed_of_part))
                setattr(block, name, adapted)
        # Both names of a tied weight are seen, so that either trains it.
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if any(word in name for word in self.also_train):
                parameter.requires_grad_(True)


def lora_embed_norm(rank: int = 8, alpha: float = 16.0) -> LoRA:
    """What LongLoRA trains: LoRA on queries, keys, values and output, and whole embeddings and norms.

    The head is not among them, unless it is tied to the token embedding.

    >>> lora_embed_norm(rank=4).projections
    ('q', 'k', 'v', 'output')
    """
    return LoRA(rank=rank, alpha=alpha, also_train=("embedding", "norm"))


class LowRank(nn.Module):
    """x to (α / r) B A x.

    Attributes:
        A: (r, d).
        B: (o, r).
        scale: α / r.
    """

    def __init__(self, like: Tensor, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(like.new_empty(rank, like.shape[1]))
        self.B = nn.Parameter(like.new_empty(outputs, rank))
        self.scale = scale

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """A uniform within ± 1 / sqrt(d), B zero."""
        bound = 1 / math.sqrt(self.A.shape[1])
        self.A.uniform_(-bound, bound, generator=generator)
        self.B.zero_()

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows o"]:
        # Never the product (o, d): its gradient would cost as much as that of a full weight.
        return nn.functional.linear(nn.functional.linear(x, self.A), self.scale * self.B)

    def delta(self) -> Float[Tensor, "o d"]:
        """(α / r) B A."""
        return self.scale * self.B @ self.A


class Adapted(nn.Module):
    """A linear map with low-rank additions to some of its parts.

    Attributes:
        linear: the map itself, frozen.
        parts: number of outputs of each part by name, in order.
        low_rank: the additions, by the name of their part.
    """

    def __init__(
        self, linear: nn.Linear, parts: Mapping[str, int], chosen: Iterable[str], rank: int, scale: float
    ) -> None:
        super().__init__()
        self.linear = linear
        self.parts = dict(parts)
        self.low_rank: Mapping[str, LowRank] = nn.ModuleDict(  # type: ignore[assignment]
            {name: LowRank(linear.weight, parts[name], rank, scale) for name in chosen}
        )

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows o"]:
        pieces = self.linear(x).split(list(self.parts.values()), dim=-1)
        outs = [
            piece + self.low_rank[name](x) if name in self.low_rank else piece
            for name, piece in zip(self.parts, pieces, strict=True)
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The map with its additions in its weight."""
        rows = torch.split(self.linear.weight, list(self.parts.values()))
        for name, own in zip(self.parts, rows, strict=True):
            if name in self.low_rank:
                own.add_(self.low_rank[name].delta())
        return self.linear


def merged(model: nn.Module) -> nn.Module:
    """A copy of the model in which adapters are part of the weights they adapt, and nothing is frozen.

    It computes the same function up to rounding, and its parameters are those of the model before ``attach``. Without
    an adapter it is a plain copy.

    >>> model = Decoder(num_layers=1, num_heads=2, d_model=16, vocab_size=8).build(seed=0)
    >>> LoRA(rank=2).attach(model, seed=0)
    >>> trainable_parameters(model) < trainable_parameters(merged(model))
    True
    """
    model = copy.deepcopy(model)
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        for name, module in list(block.named_children()):
            if isinstance(module, Adapted):
                setattr(block, name, module.merged())
    return model.requires_grad_(True)


def trainable_parameters(model: nn.Module) -> int:
    """Number of weights that training changes; tied ones count once.

    >>> trainable_parameters(torch.nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _check_projections(chosen: tuple[str, ...], known: Sequence[str]) -> None:
    for i, name in enumerate(chosen):
        if name not in known:
            raise SettingError(f"projections[{i}]", "a projection of the model", name, dict.fromkeys(known))
