"""What the rows of a trained model see, and how well it does with that.

Attention is exact on the keys that are kept. So a dense row's weights, the choice of keys and a division by what is
left are all there is to it, and any choice can be tried on any model: also one that no mechanism could make, because
it looks at the weights first.

Shapes: B batch, H heads, T positions, n blocks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from sparsity_lab.generators import Batch, Stream
from sparsity_lab.kernels import AdaptiveSparse, AuxiliaryOutputs, Kernel, KernelPosition, Softmax
from sparsity_lab.models import DecoderModel
from sparsity_lab.training import RunConfig

__all__ = ["Choice", "Performance", "by_chance", "by_kernel", "by_mass", "performance", "trained_scores"]

Choice = Callable[[int, Tensor, Tensor, KernelPosition | None, Tensor], Tensor]
"""From a layer, its un-rotated q and k (B, H, T, D), the position and the dense weights (B, H, T, T), to the keys
that are kept, (B, H, T, T) bool."""


def by_kernel(kernel: Kernel, params: Sequence[nn.Module | None] | None = None) -> Choice:
    """The keys that a softmax mechanism gives weight to; ``params``: of each layer."""

    def choose(layer: int, q: Tensor, k: Tensor, position: KernelPosition | None, dense: Tensor) -> Tensor:
        own = None if params is None else params[layer]
        return kernel.weights(q, k, training=False, position=position, params=own) != 0

    return choose


def by_mass(kernel: AdaptiveSparse) -> Choice:
    """The oracle: as many blocks as the mechanism takes, those with the most mass of dense attention."""

    def choose(layer: int, q: Tensor, k: Tensor, position: KernelPosition | None, dense: Tensor) -> Tensor:
        return _best_blocks(kernel, _in_blocks(dense, kernel.block_size).log())

    return choose


def by_chance(kernel: AdaptiveSparse, seed: int) -> Choice:
    """As many blocks as the mechanism takes, drawn for each row and head."""
    generator = torch.Generator().manual_seed(seed)

    def choose(layer: int, q: Tensor, k: Tensor, position: KernelPosition | None, dense: Tensor) -> Tensor:
        like = _in_blocks(dense, kernel.block_size)
        return _best_blocks(kernel, torch.rand(like.shape, generator=generator))

    return choose


def _in_blocks(dense: Float[Tensor, "B H T T"], block_size: int) -> Float[Tensor, "B H T n"]:
    """Mass of each block."""
    rest = -dense.shape[-1] % block_size
    return pad(dense, (0, rest)).unflatten(-1, (-1, block_size)).sum(-1)  # type: ignore[no-any-return, no-untyped-call]


def _best_blocks(kernel: AdaptiveSparse, importance: Float[Tensor, "B H T n"]) -> Bool[Tensor, "B H T T"]:
    """The keys of sinks, local blocks and the ``k_free`` most important others, as the mechanism takes them."""
    size, length, number = kernel.block_size, importance.shape[2], importance.shape[3]
    rows, blocks = torch.arange(length), torch.arange(number)
    own = rows[:, None] // size
    always = (blocks < kernel.n_sink) | (blocks > own - kernel.n_local)
    # A block without any mass is the last to take, not one that takes no part.
    others = importance.clamp_min(torch.finfo(importance.dtype).min).masked_fill(always | (blocks > own), -math.inf)
    best = others.topk(min(kernel.k_free, number), dim=-1)
    chosen = torch.zeros_like(others, dtype=torch.bool).scatter(-1, best.indices, best.values > -math.inf)
    kept = (chosen | always).repeat_interleave(size, -1)[..., :length]
    return kept & (rows <= rows[:, None])


@dataclass(frozen=True)
class Performance:
    """How a model does on some sequences.

    Attributes:
        accuracy: share of the scored targets.
        loss: nats a scored target.
        budget: pairs of query and key over those of dense attention, mean over layers and heads.
        mass: share of the layer's dense attention that is kept, mean over rows, heads and layers.
    """

    accuracy: float
    loss: float
    budget: float
    mass: float


@torch.inference_mode()
def performance(model: DecoderModel, batch: Batch, choices: Sequence[Choice | None]) -> Performance:
    """How a model does under these choices, one for each layer; None is dense."""
    budgets: list[float] = []
    masses: list[float] = []

    def mix(q: Tensor, k: Tensor, v: Tensor, *, layer: int, position: KernelPosition | None) -> Tensor:
        dense = Softmax().weights(q, k, position=position)
        choice = choices[layer]
        seen = torch.ones(dense.shape[-2:], dtype=torch.bool).tril().expand_as(dense)
        kept = seen if choice is None else choice(layer, q, k, position, dense)
        weights = dense * kept
        mass = weights.sum(-1, keepdim=True)
        budgets.append(float(kept.sum() / seen.sum()))
        masses.append(float(mass.mean()))
        return weights / mass.clamp_min(torch.finfo(mass.dtype).tiny) @ v

    logits = _logits(model, batch.tokens, mix)[batch.scored]
    targets = batch.targets[batch.scored]
    return Performance(
        accuracy=float((logits.argmax(-1) == targets).double().mean()),
        loss=float(cross_entropy(logits.double(), targets)),
        budget=sum(budgets) / len(budgets),
        mass=sum(masses) / len(masses),
    )


def _logits(model: DecoderModel, tokens: Int64[Tensor, "B T"], mix: Callable[..., Tensor]) -> Float[Tensor, "B T V"]:
    """The model with another way to mix positions, which is told the layer and the position."""
    indices = model.sequence_indices(tokens, None)
    x = model.embed(tokens, None, indices)
    for layer, (block, _, position) in enumerate(model.layers(indices)):
        x = block(x, partial(mix, layer=layer, position=position))
    logits: Tensor = model.head(model.final_norm(x))
    return logits


def trained_scores(
    model: DecoderModel, config: RunConfig, kernel: AdaptiveSparse, steps: int, rate: float = 0.05
) -> tuple[list[nn.Module], list[float]]:
    """The weights of the block score of each layer, trained on a frozen model that attends densely, and the losses.

    A step takes the training sequences after those that the model has seen.
    """
    model = model.requires_grad_(False)
    # With a budget of as many blocks as there are tokens, rows attend densely; the loss is over all past blocks.
    length = config.training.curriculum.range()[1]
    watching = kernel.replace(k_free=config.task.sequence_length(length), lambda_sel=1.0)
    sizes = model.config
    scores = [watching.build(sizes.kv_heads, sizes.head_dim, layer) for layer in range(sizes.num_layers)]
    modules: list[nn.Module] = [score for score in scores if score is not None]
    optimizer = torch.optim.Adam([one for module in modules for one in module.parameters()], lr=rate)
    training, stream = config.training, Stream(seed=config.data_seed, name="train")
    generator, losses = torch.Generator().manual_seed(config.model_seed), []
    for step in range(training.steps, training.steps + steps):
        batch = config.task.sample(stream, step * training.batch_size, training.batch_size, length)
        auxiliary = AuxiliaryOutputs()

        def mix(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            *,
            layer: int,
            position: KernelPosition | None,
            auxiliary: AuxiliaryOutputs = auxiliary,
        ) -> Tensor:
            return watching.attend(
                q,
                k,
                v,
                training=True,
                position=position,
                params=modules[layer],
                generator=generator,
                auxiliary=auxiliary,
            )

        _logits(model, batch.tokens, mix)
        loss = torch.stack(auxiliary.losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return modules, losses
