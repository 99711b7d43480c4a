"""Small sets of far tokens that lower the loss on a target: two searches, and random sets for comparison.

*Greedy*: from the near tokens alone, show one far token more at a time, each time the one that lowers the loss most.
It finds tokens that help one by one and passes by those that help only together: of two bits whose parity is the
target, neither says anything alone.

*Elimination*: from all tokens, hide the far ones whose hiding raises the loss least, half of them at a time and in
the end one at a time. It finds tokens that are needed together and passes by those that stand in for each other: of
two copies of a token neither is missed alone.

Each gives an upper bound of the loss of the best k tokens, so the smaller of the two is one too.

Source: the greedy search is the lab procedure of sheet "sparse planted correlations" 5.8; elimination is the lab's
addition for rules such as parity.

Shapes: N contexts of the same number n of tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsity_lab.generators import Batch, Stream, Task
from sparsity_lab.models import DecoderModel
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Run, RunVariant

Predictor = Callable[[Tensor, Tensor], Tensor]
"""From tokens (N, n) int64 and a mask (N, n) bool, True where a token may be seen, to logits or log-probabilities
(N, V) of the token that follows. Tokens keep their places, whatever the mask."""


@dataclass(frozen=True)
class Contexts:
    """Targets with equally many tokens before them.

    Attributes:
        sequence: (N,) which sequence each target belongs to.
        tokens: (N, n), all tokens before the target.
        targets: (N,).
        last: n - 1, the row that predicts the target.
    """

    sequence: Int64[Tensor, " N"]
    tokens: Int64[Tensor, "N n"]
    targets: Int64[Tensor, " N"]

    @property
    def last(self) -> int:
        return self.tokens.shape[1] - 1


def predictor_of(model: Run | RunVariant | DecoderModel | Predictor) -> Predictor:
    """The model as a predictor: a decoder masks keys in every layer, so that no layer sees them.

    Raises:
        SettingError: no model; or one that needs position IDs.
    """
    decoder = model.model() if isinstance(model, Run | RunVariant) else model
    if not isinstance(decoder, DecoderModel):
        if isinstance(model, Run | RunVariant) or not callable(decoder):
            expected = "a run of a Decoder, a Decoder, or a function of tokens and key_mask"
            raise SettingError("model", expected, model)
        function: Predictor = decoder
        return function
    coupling = decoder.config.coupling
    if decoder.coupling_embedding is not None:
        raise SettingError("model", "a model without coupled position IDs", coupling)
    device = decoder.token_embedding.weight.device

    def predict(tokens: Tensor, key_mask: Tensor) -> Tensor:
        scored = torch.zeros_like(key_mask)
        scored[:, -1] = True
        was_training = decoder.training
        decoder.eval()
        output = decoder(tokens.to(device), scored=scored.to(device), key_mask=key_mask.to(device))
        decoder.train(was_training)
        last: Tensor = output.logits.cpu()
        return last

    return predict


def contexts_of(
    data: Task | Batch | Tensor, length: int | None, sequences: int, targets: int, least: int, seed: int
) -> Iterator[Contexts]:
    """The last scored targets of each sequence, by the number of tokens before them.

    Args:
        data: a task; a batch; or (N, T + 1) tokens. Each token but the first is a target.
        length: of the task.
        sequences: of the task; of the others, all.
        targets: how many targets of each sequence at most.
        least: a target with fewer tokens before it is left out.

    Raises:
        SettingError: no target is left, or a length without a task.
    """
    batch = _batch_of(data, length, sequences, seed)
    scored = batch.scored & (torch.arange(batch.tokens.shape[1]) + 1 >= least)
    from_the_end = scored.flip(1).cumsum(1).flip(1)
    rows = (scored & (from_the_end <= targets)).nonzero()
    if not len(rows):
        raise SettingError("data", f"no scored target has {least} tokens before it")
    for last in sorted(set(rows[:, 1].tolist())):
        sequence = rows[rows[:, 1] == last, 0]
        yield Contexts(sequence, batch.tokens[sequence, : last + 1], batch.targets[sequence, last])


def _batch_of(data: Task | Batch | Tensor, length: int | None, sequences: int, seed: int) -> Batch:
    if isinstance(data, Task):
        if length is None:
            raise SettingError("length", "missing; a task needs a length")
        return data.sample(Stream(seed=seed, name="analysis"), 0, sequences, length)
    if length is not None:
        raise SettingError("length", "None, since the data fix the length", length)
    if isinstance(data, Batch):
        return data
    if not isinstance(data, Tensor) or data.ndim != 2 or data.is_floating_point() or data.shape[1] < 2:
        given = tuple(data.shape) if isinstance(data, Tensor) else data
        raise SettingError("data", "a task, a batch, or integers (N, T + 1) with T >= 1", given)
    return Batch(data[:, :-1].long(), data[:, 1:].long())


@torch.no_grad()
def losses(
    predict: Predictor,
    contexts: Contexts,
    visible: Bool[Tensor, "N n"],
    batch_tokens: int,
    changed: Int64[Tensor, "M 2"] | None = None,
) -> Float[Tensor, " M"]:
    """Loss of the target in nats, float64, in blocks of at most ``batch_tokens`` tokens.

    Args:
        visible: what each context shows.
        changed: M pairs of a context and a position whose visibility is turned over, one at a time; None: each
            context once as it is.

    Raises:
        SettingError: the predictor gives something else than logits, or a target no probability.
    """
    which = torch.arange(len(visible)) if changed is None else changed[:, 0]
    size = max(1, batch_tokens // visible.shape[1])
    found = [torch.zeros(0, dtype=torch.float64)]
    for start in range(0, len(which), size):
        block = which[start : start + size]
        mask = visible[block]
        if changed is not None:
            place = torch.arange(len(block)), changed[start : start + size, 1]
            mask[place] = ~mask[place]
        logits = predict(contexts.tokens[block], mask)
        if logits.ndim != 2 or len(logits) != len(block):
            raise SettingError("model", f"logits of shape ({len(block)}, V)", tuple(logits.shape))
        found.append(-logits.double().log_softmax(-1).gather(1, contexts.targets[block, None])[:, 0])
    loss = torch.cat(found)
    if not loss.isfinite().all():
        raise SettingError("model", "a predictor that gives every target a positive probability", float(loss.max()))
    return loss


Losses = Callable[[Bool[Tensor, "N n"], Int64[Tensor, "M 2"] | None], Float[Tensor, " M"]]


@dataclass(frozen=True)
class Nested:
    """Sets of 0, 1 .. K far tokens, each inside the next.

    Attributes:
        positions: (N, K), in the order in which they join; the first k are the set of k.
        loss: (N, K + 1), with the near tokens and the set of k.
    """

    positions: Int64[Tensor, "N K"]
    loss: Float[Tensor, "N sizes"]


@dataclass(frozen=True)
class Found:
    """What the searches found for the contexts of one length.

    Attributes:
        near: (N,) loss with the near tokens alone.
        full: (N,) loss with all tokens.
        greedy, elimination: their sets.
        random: (N, K + 1) mean loss over random sets of k.
    """

    near: Float[Tensor, " N"]
    full: Float[Tensor, " N"]
    greedy: Nested
    elimination: Nested
    random: Float[Tensor, "N sizes"]


def search(
    predict: Predictor,
    contexts: Contexts,
    near: int,
    largest: int,
    draws: int,
    batch_tokens: int,
    generator: torch.Generator,
) -> Found:
    """Search the far tokens of every context, all but the last ``near``.

    Args:
        largest: K; at most the number of far tokens.
        draws: random sets of each size.
    """
    count, n = contexts.tokens.shape
    visible = (torch.arange(n) >= n - near).expand(count, -1)
    everything = torch.ones_like(visible)

    def loss_of(shown: Bool[Tensor, "N n"], changed: Int64[Tensor, "M 2"] | None = None) -> Float[Tensor, " M"]:
        return losses(predict, contexts, shown, batch_tokens, changed)

    with_near, with_all = loss_of(visible), loss_of(everything)
    drawn = [_random(loss_of, visible, with_near, largest, generator) for _ in range(draws)]
    return Found(
        near=with_near,
        full=with_all,
        greedy=_greedy(loss_of, visible, with_near, largest),
        elimination=_elimination(loss_of, visible, with_near, with_all, largest),
        random=torch.stack(drawn).mean(0),
    )


def _greedy(loss_of: Losses, near: Tensor, with_near: Tensor, largest: int) -> Nested:
    visible, positions, loss = near.clone(), [], [with_near]
    for _ in range(largest):
        trial = _tried(loss_of, visible, ~visible)
        best = trial.min(1)
        visible[torch.arange(len(visible)), best.indices] = True
        positions.append(best.indices)
        loss.append(best.values)
    return Nested(torch.stack(positions, 1), torch.stack(loss, 1))


def _elimination(loss_of: Losses, near: Tensor, with_near: Tensor, with_all: Tensor, largest: int) -> Nested:
    visible, rows = torch.ones_like(near), torch.arange(len(near))[:, None]
    remaining, dropped, loss = int((~near)[0].sum()), [], [with_all]
    while remaining > 1:
        trial = _tried(loss_of, visible, visible & ~near)
        if remaining > largest:
            removed = remaining - max(largest, remaining // 2)
            least = trial.argsort(dim=1, stable=True)[:, :removed]
            visible[rows, least] = False
            remaining -= removed
            if remaining == largest:
                loss = [loss_of(visible, None)]
        else:
            best = trial.min(1)
            visible[rows[:, 0], best.indices] = False
            dropped.append(best.indices)
            loss.append(best.values)
            remaining -= 1
    dropped.append((visible & ~near).int().argmax(1))
    loss.append(with_near)
    return Nested(torch.stack(dropped[::-1], 1), torch.stack(loss[::-1], 1))


def _tried(loss_of: Losses, visible: Tensor, candidates: Tensor) -> Float[Tensor, "N n"]:
    """Loss with the visibility of each candidate turned over; infinite for the others."""
    changed = candidates.nonzero()
    trial = torch.full(candidates.shape, torch.inf, dtype=torch.float64)
    trial[candidates] = loss_of(visible, changed)
    return trial


def _random(
    loss_of: Losses, near: Tensor, with_near: Tensor, largest: int, generator: torch.Generator
) -> Float[Tensor, "N sizes"]:
    words = torch.rand(near.shape, generator=generator).masked_fill(near, torch.inf)
    order = words.argsort(dim=1)[:, :largest]
    visible, loss = near.clone(), [with_near]
    for step in range(largest):
        visible[torch.arange(len(near)), order[:, step]] = True
        loss.append(loss_of(visible, None))
    return torch.stack(loss, 1)
