"""Free-running evaluation of models with coupled position IDs: what they answer when nothing but the prompt is given.

Shapes: B batch, T positions, C kinds of position ID.
"""

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.generators import Batch
from sparsity_lab.models import DecoderModel
from sparsity_lab.models.generation import free_run
from sparsity_lab.models.ppc import EmbeddedCoupling, moved, next_position_ids

Values = NDArray[np.float64]


def free_running(
    model: DecoderModel, batch: Batch, position_ids: Int64[Tensor, "B C T"], words: UInt64[np.ndarray, "B C"]
) -> dict[str, Values]:
    """For each sequence with a scored target: ``free_exact_match`` and, if the model predicts IDs, ``id_accuracy``.
    Also ``offset_agreement``, the agreement of answers at offset 0 and at a random larger one, for sequences whose
    IDs have room to move in the table.

    The prompt reaches to the first scored position; its position IDs are given, and the rest too where the model does
    not predict them.

    Args:
        position_ids: as the model's coupling arranges them.
        words: of the random offset.
    """
    coupling = model.config.coupling
    if not isinstance(coupling, EmbeddedCoupling):
        return {}
    any_scored = batch.scored.any(1)
    answers = _answers(model, batch, position_ids)
    offset_ids = torch.from_numpy(moved(words, position_ids.numpy(), coupling.max_id, least=1))
    # A table as large as the longest sequence needs leaves nothing to compare there.
    compared = any_scored & (offset_ids != position_ids).flatten(1).any(1)
    values = {}
    # All is started before anything is copied back, which waits for the device.
    elsewhere = _answers(model, batch, offset_ids) if compared.any() else None
    predicted = None
    if model.id_heads is not None:
        _, predicted = model.predict(batch.tokens.to(answers.device), position_ids.to(answers.device))
    answers = answers.cpu()
    if elsewhere is not None:
        values["offset_agreement"] = _all_scored(answers == elsewhere.cpu(), batch.scored)[compared]
    if predicted is not None:
        values["free_exact_match"] = _all_scored(answers == batch.targets, batch.scored)[any_scored]
        right = (predicted.cpu() == next_position_ids(position_ids)).all(-1) & batch.scored
        values["id_accuracy"] = (right.sum(1).double() / batch.scored.sum(1).clamp(min=1))[any_scored]
    return {name: value.double().numpy() for name, value in values.items()}


def _answers(model: DecoderModel, batch: Batch, position_ids: Int64[Tensor, "B C T"]) -> Int64[Tensor, "B T"]:
    """The free-running tokens on the model's device, each at the position that predicts it; -1 in the prompt."""
    device = next(model.parameters()).device
    answers = torch.full_like(batch.tokens, -1, device=device)
    size = batch.tokens.shape[1]
    first = batch.scored.int().argmax(1)
    for query in set(first[batch.scored.any(1)].tolist()):
        rows = ((first == query) & batch.scored.any(1)).nonzero()[:, 0]
        prompt = batch.tokens[rows, : query + 1].to(device)
        given = position_ids[rows].to(device)
        if model.id_heads is not None:
            given = given[:, :, : query + 1]
        else:
            # What is generated last is not fed back, so its IDs do not matter.
            given = torch.cat([given, torch.zeros_like(given[:, :, :1])], dim=2)
        sequence, _ = free_run(model, prompt, size - query, given)
        answers[rows.to(device), query:] = sequence[:, query + 1 :]
    return answers


def _all_scored(right: Bool[Tensor, "B T"], scored: Bool[Tensor, "B T"]) -> Bool[Tensor, " B"]:
    """(B,) whether all scored positions are right."""
    return (right | ~scored).all(1)
