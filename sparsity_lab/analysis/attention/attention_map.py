"""The attention map: one sequence, the weights of every head, and where the true sources are.

A cell is the share of a query row's absolute weight that a key has (``tiles``). The map distinguishes three similar
cases. The row may not see a key, because it comes later. The row sees a key but gives it a weight of exactly zero, as
sparse attention does. Or the weight is small.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparsity_lab.analysis.attention.map_view import MAP_LOOKS, Head, MapView, draw_map, map_data, map_figure
from sparsity_lab.analysis.attention.subjects import (
    Models,
    Sequences,
    Subject,
    sequences_of,
    subjects_of,
    with_module_names,
)
from sparsity_lab.analysis.attention.tiles import row_tiles
from sparsity_lab.analysis.measurement import Measurement, rows_frame
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.analysis.report.page import document, framed
from sparsity_lab.analysis.runs import nearest_length
from sparsity_lab.analysis.style import figure_image
from sparsity_lab.generators import Batch, Task
from sparsity_lab.generators.token_view import TokenView
from sparsity_lab.models.record import LayerRecord
from sparsity_lab.settings import SettingError, Shown, check_least
from sparsity_lab.settings.markup import details, element, join, table
from sparsity_lab.training import Run

MOST_HEADS, MOST_ROWS, MOST_VIEWS = 16, 48, 4
_MOST_CELLS = 48 * 512
"""Of one head: beyond 512 tokens fewer rows are shown."""


@dataclass(frozen=True, repr=False, eq=False)
class AttentionMap(Measurement):
    """The maps of some heads at some lengths. Made by ``attention_map``.

    Attributes:
        views: one for each model and length.
        left_out: how many heads are not shown, because there are more than 16 and none were named.
    """

    views: tuple[MapView, ...]
    left_out: int = 0
    _modules: pl.DataFrame = field(default_factory=pl.DataFrame)

    def frame(self) -> pl.DataFrame:
        """One row per cell: query row and key that it sees.

        Columns: ``arm``, ``length``, ``layer``, ``head``, ``row`` and ``key`` (positions), ``query`` and ``token``
        (their names), ``share``, ``distance`` (row - key) and ``source``. ``share`` is that of the row's absolute
        weight, negative where the weight is. ``source`` says whether the key enters the rule for the row's target.
        """
        return with_module_names(pl.concat([view.frame() for view in self.views]), self._modules)

    def summary(self) -> pl.DataFrame:
        """One row per model, length and head. ``mass`` is the share that the scored rows shown put on their sources.
        ``uniform`` is the share that uniform attention would put there. Both are null for a sequence without
        sources."""
        rows = [
            {"arm": view.arm, "length": view.length, "layer": head[0], "head": head[1]}
            | {"mass": view.source_mass(*head), "uniform": view.uniform}
            for view in self.views
            for head in view.heads
        ]
        return with_module_names(rows_frame(rows), self._modules)

    @property
    def head(self) -> Head:
        """Layer and head of the map that is shown large: in the first view that with most of its weight on the
        sources, or without sources the most concentrated one."""
        first = self.views[0]
        return max(first.heads, key=lambda head: first.interest(*head))

    @cached_property
    def finding(self) -> str:
        """What the maps show, in one sentence: ``head``'s share on the sources, and what becomes of it in the other
        views."""
        first = self.views[0]
        learned = f" ({first.learned})" if first.learned else ""
        layer, head = self.head
        mass, uniform = first.source_mass(layer, head), first.uniform
        if mass is None or uniform is None:
            return f"What each head looks at, {' and '.join(view.name for view in self.views)}{learned}"
        if mass < 2 * uniform:
            return f"No head gives the sources twice what uniform attention would{learned}"
        each = [(view.source_mass(layer, head), view.name) for view in self.views]
        parts = ", ".join(f"{mass:.2f} {name}" for mass, name in each if mass is not None)
        return f"Share of layer {layer}, head {head} on the sources: {parts}{learned}"

    def plot(
        self, ax: Axes | None = None, *, view: int = 0, layer: int | None = None, head: int | None = None
    ) -> Axes:
        """Draw the map of one head; returns the axes. ``figure`` draws all of them.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
            view: number of the model and length, in the order of ``views``.
            layer: by default that of ``head``.

        Raises:
            SettingError: what is not in the map.
        """
        if not 0 <= view < len(self.views):
            raise SettingError("view", f"0 to {len(self.views) - 1}", view)
        shown = self.views[view]
        layer = self.head[0] if layer is None else layer
        head = self.head[1] if head is None else head
        if (layer, head) not in shown.weights:
            known = [f"{one[0]}, {one[1]}" for one in shown.heads]
            raise SettingError("layer and head", "a pair that is in the map", Shown(f"{layer}, {head}"), known)
        return draw_map(ax, shown, (layer, head), self.largest)

    def figure(self) -> Figure:
        """One block for each model and length: the map of ``head`` with the names of tokens, and small maps of all
        heads. Names have the color of the part that a token plays; of more than 32 tokens only those are named."""
        return map_figure(self.views, self.head, self.largest, self.finding, self.left_out)

    def page(self) -> str:
        """All maps as one self-contained HTML document. The pointer or the arrow keys show the token, weight and
        distance of a cell, and whether it is a source."""
        numbers = MAP_LOOKS | map_data(self.views, self.head, self.largest)
        return document("attention_map.html", title=self.finding, left_out=self.left_out, numbers=numbers)

    def write(self, path: Path | str) -> Path:
        """Write ``page`` to a file; returns its path.

        Raises:
            SettingError: the file cannot be written.
        """
        return write_whole(Path(path), self.page().encode(errors="backslashreplace"))

    @property
    def largest(self) -> float:
        """The end of the scale, which all maps share."""
        found = [np.nanmax(np.abs(weights)) for view in self.views for weights in view.weights.values()]
        return max(float(max(found)), 1e-9)

    def _repr_html_(self) -> str:
        summary = self.summary()
        shown = element("div", figure_image(self.figure(), self.finding))
        inside = details("point at cells", framed(self.finding, self.page(), "map.html"))
        return join([shown, inside, details("values", table(summary.columns, summary.iter_rows()))])


def attention_map(
    models: Models,
    sequence: int = 0,
    data: Task | Batch | None = None,
    lengths: Iterable[int] | None = None,
    *,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    rows: Iterable[int] | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> AttentionMap:
    """The attention of every head in one sequence, at a trained length and at a longer one.

    Args:
        models: see ``subjects``: a run, a decoder, records of layers (``interop.record`` makes them of a model of
            ``transformers``), or several by name. Models and lengths together make four views at most.
        sequence: its index in the stream, or in the batch.
        data: a task, a batch, or None for a run's own task; records without a batch have no tokens to name.
        lengths: of the task; by default a run's largest trained length and the evaluated one nearest to four times
            that.
        layers, heads: which; by default all, or of more than 16 in all those with most weight on the sources, or
            without sources the most concentrated ones.
        rows: positions of queries; by default all of up to 48 tokens, and else the scored ones and others between.
        names: of the tokens by number, where the data have no vocabulary.
        seed: of the sequences.

    Raises:
        SettingError: names the argument, what was expected and what came.

    >>> from sparsity_lab.generators import Planted
    >>> from sparsity_lab.models import Decoder
    >>> task = Planted(k=2)
    >>> model = Decoder(num_layers=1, num_heads=2, d_model=16).build(0, vocab_size=task.vocab_size)
    >>> found = attention_map(model, 0, task, (8, 32))
    >>> found.summary().select("length", "layer", "head").rows()
    [(8, 0, 0), (8, 0, 1), (32, 0, 0), (32, 0, 1)]
    """
    check_least(0, sequence=sequence)
    subjects = subjects_of(models)
    views = []
    for subject in subjects:
        own_length = isinstance(data, Batch) or subject.model is None
        wanted = _lengths(subject) if lengths is None and not own_length else lengths
        for length, pieces in sequences_of(subject, data, wanted, 1, seed, first=sequence):
            piece = next((one for one in pieces if one.start <= sequence < one.start + len(one)), None)
            if piece is None:
                raise SettingError("sequence", "a sequence of the batch", sequence)
            where = f"over {length} tokens" if own_length else f"at length {length}"
            trained = " (trained)" if subject.trained and subject.trained.holds(length) else ""
            name = f"{where}{trained}{f' with {subject.label}' if len(subjects) > 1 else ''}"
            views.append(_view(piece, sequence, name, names, layers=layers, heads=heads, rows=rows))
            if len(views) > MOST_VIEWS:
                raise SettingError("lengths", f"too many; at most {MOST_VIEWS} models and lengths together")
    picked, left_out = _picked(views, layers is None and heads is None)
    return AttentionMap(views=tuple(picked), left_out=left_out, _modules=subjects.modules)


def _learned(run: Run | None) -> str:
    """What is to be said of a run that did not learn."""
    if run is None or all(run.summary["learned"].drop_nulls()):
        return ""
    worst = min(run.evaluation.filter("trained").drop_nulls("accuracy")["accuracy"].to_list())
    return f"the run did not learn: accuracy {worst:.2f} at the trained lengths"


def _lengths(subject: Subject) -> list[int] | None:
    if subject.trained is None:
        return None
    high = subject.trained.high
    longer = nearest_length([length for length in subject.lengths if length > high], 4 * high)
    return [high, *([] if longer is None else [longer])]


def _view(
    piece: Sequences, sequence: int, name: str, names: Sequence[str] | None, **wanted: Iterable[int] | None
) -> MapView:
    at = sequence - piece.start
    records = list(piece.records())
    num_tokens = records[0].q.shape[2]
    sources = _sources(piece.batch, at)
    shown = _rows(wanted["rows"], num_tokens, list(sources))
    weights: dict[Head, NDArray[np.float64]] = {}
    for layer in _known("layers", wanted["layers"], len(records)):
        of_layer = _weights(records[layer], at, shown)
        for head in _known("heads", wanted["heads"], len(of_layer)):
            weights[layer, head] = of_layer[head]
    return MapView(
        arm=piece.subject.label,
        length=piece.length,
        name=name,
        learned=_learned(piece.subject.run),
        tokens=_tokens(piece.batch, at, num_tokens, names),
        rows=tuple(shown),
        sources={row: own for row, own in sources.items() if row in shown},
        weights=weights,
    )


def _tokens(batch: Batch | None, at: int, count: int, names: Sequence[str] | None) -> tuple[TokenView, ...]:
    if batch is None:
        return tuple(TokenView(f"token {place}", "data", place) for place in range(count))
    found = [token for token in batch.view(at) if not token.after]
    if names is not None:
        numbers = batch.tokens[at].tolist()
        if len(names) <= max(numbers):
            raise SettingError("names", f"a name for each token up to {max(numbers)}", Shown(f"{len(names)} names"))
        found = [TokenView(names[n], one.part, one.position) for n, one in zip(numbers, found, strict=True)]
    return tuple(found)


def _sources(batch: Batch | None, at: int) -> dict[int, tuple[int, ...]]:
    """The sources of each scored row, ascending; of tasks without a rule none."""
    if batch is None:
        return {}
    scored: list[int] = batch.scored[at].nonzero()[:, 0].tolist()
    if batch.sources is None:
        return dict.fromkeys(scored, ())
    places = batch.sources[at].tolist()
    return {row: tuple(place for place in places[row] if place >= 0) for row in scored}


def _rows(rows: Iterable[int] | None, count: int, scored: Sequence[int]) -> list[int]:
    if rows is not None:
        return _known("rows", rows, count)
    most = min(MOST_ROWS, max(8, _MOST_CELLS // count))
    if count <= most:
        return list(range(count))
    kept = set(_spread(scored, most if len(scored) > count // 2 else most // 2))
    others = [row for row in range(count) if row not in kept]
    return sorted(kept | set(_spread(others, most - len(kept))))


def _spread(places: Sequence[int], count: int) -> list[int]:
    """So many of them, evenly, the last one among them."""
    if len(places) <= count:
        return list(places)
    return [places[int(at)] for at in np.linspace(len(places) - 1, 0, count).round()] if count else []


def _known(path: str, wanted: Iterable[int] | None, count: int) -> list[int]:
    """The wanted numbers, ascending; all if None.

    Raises:
        SettingError: none, or one that does not exist.
    """
    found = sorted(set(range(count) if wanted is None else wanted))
    for number in found:
        if not 0 <= number < count:
            raise SettingError(path, f"numbers from 0 to {count - 1}", number)
    if not found:
        raise SettingError(path, "give at least one number")
    return found


def _weights(record: LayerRecord, at: int, rows: Sequence[int]) -> list[NDArray[np.float64]]:
    """(R, T) shares of each head, with the sign of the weight; NaN where a row may not see a key."""
    batch_size, num_heads, num_tokens, _ = record.q.shape
    counted = torch.zeros(batch_size, num_tokens, dtype=torch.bool)
    counted[at, list(rows)] = True
    found = np.full((num_heads, len(rows), num_tokens), np.nan)
    place = {row: index for index, row in enumerate(rows)}
    for tile in row_tiles(record, counted):
        total = tile.total.masked_fill(tile.total == 0, 1.0)
        share: Float[torch.Tensor, "H R T"] = (tile.weights / total[..., None])[at]
        for row, own in enumerate(share.unbind(1), tile.start):
            found[:, place[row], : row + 1] = own[:, : row + 1].double().cpu().numpy()
    return list(found)


def _picked(views: Sequence[MapView], free: bool) -> tuple[list[MapView], int]:
    """The views with at most so many heads, the same in each; and how many were left out."""
    known = [head for head in views[0].heads if all(head in view.weights for view in views)]
    if not free or len(known) <= MOST_HEADS:
        return list(views), 0
    first = views[0]
    ranked = sorted(known, key=lambda head: (-first.interest(*head), head))
    kept = sorted(ranked[:MOST_HEADS])
    shown = [replace(view, weights={head: view.weights[head] for head in kept}) for view in views]
    return shown, len(known) - MOST_HEADS
