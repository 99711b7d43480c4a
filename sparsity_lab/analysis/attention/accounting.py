"""What the loss beyond the trained length is due to: distances that were never trained, too many keys, or the rest.

The same weights read the same sequences four times:

- *trained*: cut into windows of the trained length L, as in training;
- *full*: whole;
- *clamped*: whole, but every layer takes a distance of L or more for L - 1, the largest that it was trained on;
- *windowed*: whole, but every row sees its last L keys alone.

The growth of the loss is G = full - trained. *positional* is (full - clamped) / G, the share that vanishes when no
distance is new. *keys* is (clamped - windowed) / G, the further share that vanishes when no row has more keys than in
training. *rest* is the remainder, (windowed - trained) / G. The rest is below 0 where a window that moves along
serves the first bytes of each piece better than a cut does.

The measure is this lab's own. It needs positions that act by distance, so it refuses embedded ones.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from sparsity_lab.analysis.attention.measure import each_layer, losses
from sparsity_lab.analysis.attention.subjects import Models, Sequences, sequences_of, subjects_of
from sparsity_lab.generators import Task
from sparsity_lab.models import PositionScheme
from sparsity_lab.models.block import Mix
from sparsity_lab.settings import SettingError


def extrapolation_accounting(
    models: Models,
    data: Task | None = None,
    lengths: Iterable[int] | None = None,
    *,
    trained_length: int | None = None,
    sequences: int = 16,
    seed: int = 0,
) -> pl.DataFrame:
    """How much of the loss beyond the trained length is due to what, by model and length.

    >>> decoder = Decoder(num_layers=1, num_heads=2, d_model=16, position=RoPE(), vocab_size=9).build(seed=0)
    >>> found = extrapolation_accounting(decoder, SparseMarkov(), [16], trained_length=8, sequences=2)
    >>> found["length"].to_list()
    [16]

    Args:
        models: a run, a decoder, or a mapping of names to these.
        data: a task that scores every position, such as text; None is a run's own.
        lengths: multiples of the trained length; by default a run's evaluated lengths beyond it.
        trained_length: L; by default a run's longest trained length.
        sequences: of each length.

    Returns:
        One row per model and length. Its columns are ``arm``, ``length`` and ``sequences``, the losses ``trained``,
        ``full``, ``clamped`` and ``windowed`` (nats per target), and ``growth`` (G). The shares ``positional``,
        ``keys`` and ``rest`` are null if the loss does not grow.

    Raises:
        SettingError: there is no trained length, or a length is not a larger multiple of it. Or the task does not
            score every position, or the position scheme is not relative.
    """
    rows = []
    for subject in subjects_of(models):
        longest = trained_length or (subject.trained.high if subject.trained else None)
        if longest is None:
            raise SettingError("trained_length", "missing; a decoder on its own needs its longest training length")
        for scheme in subject.decoder().config.positions:
            if not scheme.relative:
                raise SettingError("models", "a relative position scheme, such as RoPE", str(scheme))
        wanted = [length for length in subject.lengths if length > longest] if lengths is None else list(lengths)
        for length in wanted:
            if length <= longest or length % longest:
                raise SettingError("lengths", f"multiples of {longest}, above it", length)
        for length, pieces in sequences_of(subject, data, wanted, sequences, seed):
            found = zip(*(_four_losses(piece, longest) for piece in pieces), strict=True)
            trained, full, clamped, windowed = (
                math.fsum(loss.sum().item() for loss in own) / sum(map(len, own)) for own in found
            )
            growth = full - trained
            shares = {"positional": full - clamped, "keys": clamped - windowed, "rest": windowed - trained}
            row = {"arm": subject.label, "length": length, "sequences": sequences, "trained": trained, "full": full}
            row |= {"clamped": clamped, "windowed": windowed, "growth": growth}
            rows.append(row | {name: part / growth if growth > 1e-9 else None for name, part in shares.items()})
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(("positional", "keys", "rest"), pl.Float64()))


def _four_losses(piece: Sequences, longest: int) -> list[Float[Tensor, " N"]]:
    """Losses of these sequences in windows, whole, clamped and windowed."""
    batch, model = piece.known_batch(), piece.subject.decoder()
    if not bool(batch.scored.all()):
        raise SettingError("data", "a task that scores every position, such as text", str(piece.subject.task))
    with torch.no_grad():
        logits = model(piece.tokens.reshape(-1, longest)).logits.double().flatten(0, 1)
    views = [each_layer(piece, _by_row, longest, windowed) for windowed in (False, True)]
    cut = cross_entropy(logits.cpu(), batch.targets.flatten(), reduction="none")
    return [cut, *(losses(piece, batch.scored, view)[0] for view in (None, *views))]


def _by_row(
    attend: Mix,
    scheme: PositionScheme,
    longest: int,
    windowed: bool,
    mix: Mix,
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G T D"],
    v: Float[Tensor, "B G T D"],
    gates: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "B H T D"]:
    """A row beyond the trained length sees its last keys alone, or all of them, each no farther than trained."""

    def piece(row: slice, keys: slice) -> dict[str, Any]:
        own = {} if gates is None else {"gates": {name: logits[..., keys] for name, logits in gates.items()}}
        return {"q": q[:, :, row], "k": k[:, :, keys], "v": v[:, :, keys], **own}

    within = slice(0, longest)
    rows = [mix(**piece(within, within))]
    for row in range(longest, q.shape[2]):
        nearest = row - longest + 1
        first = nearest if windowed else 0
        indices = torch.arange(first, row + 1, device=q.device).clamp(min=nearest)
        position = scheme.kernel_position(indices[None], q.shape[1], q.shape[3], q.dtype)
        own = piece(slice(row, row + 1), slice(first, row + 1))
        rows.append(attend(**own, query_start=row - first, position=position))
    return torch.cat(rows, dim=2)
