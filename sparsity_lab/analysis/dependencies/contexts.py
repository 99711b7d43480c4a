"""What is searched: targets, the tokens before them, and a predictor that can be told which of these it may see.

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
        data: a task; a batch; or (N, T + 1) tokens, of which each but the first is a target.
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
