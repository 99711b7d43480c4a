"""How many far tokens a prediction needs, and how far away they are.

For a target with n tokens before it, the last w are near and always shown, the others far and hidden from attention
one by one; all keep their positions. With the loss on the target

    loss_near   with the near tokens alone,        loss_full   with all tokens,
    loss_k      with the near tokens and k far ones that a search chose (``search``),

the share of the gain of long context that k tokens recover is

    recovered_k = (loss_near - loss_k) / (loss_near - loss_full),

over the targets with loss_near - loss_full of at least ``least_gain``. Sums are taken before the quotient, so that a
target counts by its gain. The distance of the token at position j is n - j: the last token before the target has 1.

A search chooses by the loss on a single target, so it also finds tokens that help by chance. So the share that k
chosen tokens recover is an upper bound, and the share that random tokens recover is a lower bound. A model's needs
are not the data's: a model that has not learned a dependency does not show it.

Source: lab procedure of sheet "sparse planted correlations" 5.8; no claim about the paper's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sparsity_lab.analysis.attention.subjects import run_of
from sparsity_lab.analysis.dependencies.search import Contexts, Found, Predictor, contexts_of, predictor_of, search
from sparsity_lab.analysis.lines import draw_curve, draw_level, name_lines
from sparsity_lab.analysis.measurement import Measurement, rows_frame
from sparsity_lab.analysis.statistics import Floats, Interval, quantile_over_groups, ratio_over_groups
from sparsity_lab.analysis.style import look, new_axes, styled
from sparsity_lab.generators import Batch, Task
from sparsity_lab.models import DecoderModel
from sparsity_lab.settings import SettingError, check_least
from sparsity_lab.training import Run, RunVariant

SEARCHES = ("best", "greedy", "elimination", "random")
_WORDS = {
    "best": "the better search",
    "greedy": "greedy",
    "elimination": "elimination",
    "random": "random far tokens",
}


@dataclass(frozen=True, repr=False)
class DependencySparsity(Measurement):
    """What ``dependency_sparsity`` found.

    >>> found = dependency_sparsity(model, task, 8, sequences=4, largest=2, least_gain=0.01)
    >>> found.frame()["search"].unique().sort().to_list()
    ['best', 'elimination', 'greedy', 'random']

    Attributes:
        near: w, the number of tokens always shown.
        largest: K, the largest set that was searched for.
        least_gain: loss_near - loss_full of a target that counts, nats.
        share: of the gain that a set must recover to count as enough.
    """

    near: int
    largest: int
    least_gain: float
    share: float
    _targets: pl.DataFrame
    _losses: dict[str, Floats]  # by search, (targets, K + 1)

    def frame(self) -> pl.DataFrame:
        """One row per search and size of the set.

        Columns: ``search``, ``k``, ``targets`` (how many count), and ``recovered`` with its 95 % interval over groups
        of sequences, ``low`` and ``high`` (null if no target counts). ``search`` is ``greedy``, ``elimination``,
        ``best`` (the better of the two for each target) or ``random``. Recovered is 1 where k tokens do as well as
        all, and more where the others are a burden.
        """
        counted = self._targets["counted"].to_numpy()
        groups = self._targets["group"].to_numpy()[counted]
        near, full = (self._targets[name].to_numpy()[counted] for name in ("loss_near", "loss_full"))
        rows = []
        for name in SEARCHES:
            for k in range(self.largest + 1):
                share = ratio_over_groups(near - self._losses[name][counted, k], near - full, groups)
                rows.append({"search": name, "k": k, "targets": len(near), **share.columns("recovered")})
        return rows_frame(rows)

    def targets(self) -> pl.DataFrame:
        """One row per target: ``sequence``, its ``group``, ``position`` (n), ``loss_near``, ``loss_full`` and
        ``counted`` (whether the gain is large enough). ``needed`` is k of the smallest set that recovers ``share`` of
        the gain, null if no set of at most K does. ``distances`` are those of its tokens, ascending; for a target
        that needs more than K tokens, those of the best K found."""
        return self._targets

    def needed(self) -> pl.DataFrame:
        """How many counted targets need just ``k`` far tokens: columns ``k`` (null: more than K), ``targets``,
        ``share``."""
        found = self._targets.filter("counted").group_by(k="needed").len("targets")
        total = pl.col("targets") / pl.col("targets").sum()
        return found.sort("k", nulls_last=True).with_columns(share=total).cast({"targets": pl.Int64})

    def distances(self) -> pl.DataFrame:
        """Histogram of the distances of needed tokens: ``distance``, ``tokens``, ``share`` of all needed tokens, and
        ``cumulative``, the share up to this distance. Locality is where it reaches one. Targets that need more than
        K tokens are not here, for nobody knows which; ``needed`` tells how many they are."""
        needed = self._targets.drop_nulls("needed").select(distance=pl.col("distances").explode().drop_nulls())
        found = needed.group_by("distance").len("tokens").sort("distance").cast({"tokens": pl.Int64})
        found = found.with_columns(share=pl.col("tokens") / pl.col("tokens").sum())
        return found.with_columns(cumulative=pl.col("share").cum_sum())

    @property
    def k(self) -> Interval:
        """Median number of far tokens that a target needs, with its 95 % bootstrap interval over groups. K + 1 stands
        for more than K, as for targets without a sufficient set."""
        counted = self._targets.filter("counted")
        values = counted["needed"].fill_null(self.largest + 1).to_numpy()
        return quantile_over_groups(values, counted["group"].to_numpy(), 0.5)

    def reach(self, share: float = 0.9) -> Interval:
        """The distance within which this share of all needed tokens lies, with a 95 % bootstrap interval over groups.

        Of a target that needs more than K tokens the best K are known, and that there is one more, somewhere. The
        estimate leaves these out. The lower end of the interval assumes that all of them are as near as a far token
        can be. The upper end assumes that all are at the start of their context.
        """
        counted = self._targets.filter("counted")
        known = self._reach(counted, share)
        open_ended = pl.col("needed").is_null()
        if not counted.select(open_ended.any()).item():
            return known
        nearest, farthest = (
            counted.with_columns(
                distances=pl.when(open_ended).then(pl.concat_list("distances", place)).otherwise("distances")
            )
            for place in (pl.lit(self.near + 1, pl.Int64), pl.col("position").cast(pl.Int64))
        )
        low, high = self._reach(nearest, share), self._reach(farthest, share)
        return Interval(known.estimate, low.low, high.high, low.count)

    @staticmethod
    def _reach(targets: pl.DataFrame, share: float) -> Interval:
        tokens = targets.select("group", "distances").explode("distances").drop_nulls()
        return quantile_over_groups(tokens["distances"].to_numpy(), tokens["group"].to_numpy(), share)

    def summary(self) -> pl.DataFrame:
        """Recovered shares by k, a column for each search."""
        return self.frame().pivot("search", index="k", values="recovered")

    @property
    def finding(self) -> str:
        """How much of the gain the best far tokens recover."""
        best = self.frame().filter(search="best").drop_nulls("recovered")
        if best.is_empty():
            return f"No target gains {self.least_gain:g} nats from far tokens"
        enough = best.filter(pl.col("recovered") >= self.share).head(1)
        row = (enough if enough.height else best.tail(1)).row(0, named=True)
        noun = "token recovers" if row["k"] == 1 else "tokens recover"
        return f"{row['k']} far {noun} {row['recovered']:.0%} of the gain of long context"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the recovered share against k for both searches and random tokens; returns the axes."""
        frame = self.frame()
        with styled():
            ax = new_axes(5.6, 3.4) if ax is None else ax
            draw_level(ax, 1.0, "all tokens")
            for index, name in enumerate(SEARCHES[1:]):
                part = frame.filter(pl.col("search") == name).drop_nulls("recovered")
                low, high = part["low"], part["high"]
                draw_curve(ax, part["k"], part["recovered"], look(index), _WORDS[name], low=low, high=high)
            shown = [value for value in frame["recovered"].to_list() if value is not None]
            ax.set_ylim(min([-0.05, *(value - 0.05 for value in shown)]), max([1.08, *(v + 0.05 for v in shown)]))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            count = self._targets["counted"].sum()
            last = "token" if self.near == 1 else self.near
            beside = f" in addition to the last {last}" if self.near else ""
            ax.set_xlabel(f"k, far tokens shown{beside}\n{count} targets; bands: 95 % intervals")
            ax.set_ylabel("recovered share of the gain\nof long context")
            name_lines(ax, 18)
            if not shown:
                words = f"no target gains {self.least_gain:g} nats\nfrom far tokens"
                ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center")
        return ax

    def plot_distances(self, ax: Axes | None = None) -> Axes:
        """Draw the histogram of the distances of needed tokens; returns the axes."""
        found = self.distances()
        with styled():
            ax = new_axes(4.9, 3.2) if ax is None else ax
            ax.bar(found["distance"], found["share"], width=0.85, color=look(0).color)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            counted = self._targets.filter("counted")
            more = counted["needed"].null_count()
            rest = f"\nnot shown: {more} of {len(counted)} targets, which need more than {self.largest}"
            ax.set_xlabel(f"distance from the target (tokens){rest if more else ''}")
            ax.set_ylabel("share of needed far tokens")
            if not len(found):
                words = "no target needs so few" if more else "no far token is needed"
                ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center")
                ax.set(xticks=[], yticks=[])
        return ax


def dependency_sparsity(
    model: Run | RunVariant | DecoderModel | Predictor,
    data: Task | Batch | Tensor | None = None,
    length: int | None = None,
    *,
    near: int = 1,
    largest: int = 4,
    least_gain: float = 0.5,
    share: float = 0.9,
    sequences: int = 64,
    targets: int = 1,
    draws: int = 2,
    groups: Sequence[int] | None = None,
    seed: int = 0,
    batch_tokens: int = 2**15,
) -> DependencySparsity:
    """How many far tokens recover how much of the gain of long context.

    Costs about (K + 2) F forward passes for each target with F far tokens, in blocks of ``batch_tokens`` tokens.

    >>> found = dependency_sparsity(model, task, 8, sequences=4, largest=2, least_gain=0.01)
    >>> found.targets().height
    4

    Args:
        model: a run or variant of a Decoder, a Decoder without coupled IDs, or any ``Predictor``. A predictor maps
            tokens (N, n) and key_mask (N, n), True where a token is visible, to next-token logits (N, V).
        data: a task, or a batch, whose scored targets are searched. Or (N, T + 1) integer tokens, such as your own
            text, where every token but the first is a target. None means the run's task.
        length: of the task.
        near: w, how many of the last tokens are always shown; of a run or decoder at least 1, for it reads the last
            token whatever attention may see.
        largest: K, the largest set.
        least_gain: nats that a target must gain from its far tokens to count.
        share: of the gain that is enough.
        sequences: of the task; of a batch or of tokens, all.
        targets: how many targets of each sequence are searched, the last ones.
        draws: random sets of each size.
        groups: a number for each sequence; those with the same one depend on each other, as windows of one text do,
            and count as one in intervals. By default each stands for itself.
        seed: of the sequences and the random sets.
        batch_tokens: in one forward pass.

    Raises:
        SettingError: names the argument, what was expected and what came.
    """
    check_least(1, largest=largest, sequences=sequences, targets=targets, draws=draws, batch_tokens=batch_tokens)
    check_least(1 if isinstance(model, Run | RunVariant | DecoderModel) else 0, near=near)
    if least_gain <= 0:
        raise SettingError("least_gain", "a positive number of nats", least_gain)
    if not 0 < share <= 1:
        raise SettingError("share", "a share above 0, at most 1", share)
    if data is None:
        if not isinstance(model, Run | RunVariant):
            raise SettingError("data", "missing; a model that is not a run needs a task, a batch or tokens")
        data = run_of(model).config.task
    predict = predictor_of(model)
    if groups is not None and not isinstance(data, Task) and len(groups) != len(data):
        raise SettingError("groups", f"a number for each of {len(data)} sequences", len(groups))
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    parts: dict[str, list[Floats]] = {name: [] for name in SEARCHES}
    for contexts in contexts_of(data, length, sequences, targets, near + largest, seed):
        found = search(predict, contexts, near, largest, draws, batch_tokens, generator)
        greedy, elimination = found.greedy.loss, found.elimination.loss
        losses = (torch.minimum(greedy, elimination), greedy, elimination, found.random)
        for name, loss in zip(SEARCHES, losses, strict=True):
            parts[name].append(loss.numpy())
        rows += _rows(contexts, found, least_gain, share, groups)
    schema = {"needed": pl.Int64(), "distances": pl.List(pl.Int64())}
    return DependencySparsity(
        near=near,
        largest=largest,
        least_gain=least_gain,
        share=share,
        _targets=pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None),
        _losses={name: np.concatenate(part) for name, part in parts.items()},
    )


def _rows(
    contexts: Contexts, found: Found, least_gain: float, share: float, groups: Sequence[int] | None
) -> list[dict[str, Any]]:
    gain = found.near - found.full
    # The first size that is enough, K + 1 if none is.
    enough = found.near - share * gain
    searches = (found.greedy, found.elimination)
    sizes = [_first(nested.loss <= enough[:, None]).tolist() for nested in searches]
    rows = []
    for i, sequence in enumerate(contexts.sequence.tolist()):
        needed, nested = min(
            ((size[i], nested) for size, nested in zip(sizes, searches, strict=True)), key=itemgetter(0)
        )
        counted = bool(gain[i] >= least_gain)
        reached = counted and needed < nested.loss.shape[1]
        if not reached:
            # Where neither search does better, elimination: what it keeps is at least missed together.
            nested = min(searches[::-1], key=lambda one: float(one.loss[i, -1]))
        distances = contexts.last + 1 - nested.positions[i, : needed if counted else 0]
        row: dict[str, Any] = {"sequence": sequence, "group": sequence if groups is None else int(groups[sequence])}
        row |= {"position": contexts.last + 1, "loss_near": float(found.near[i]), "loss_full": float(found.full[i])}
        row |= {"counted": counted, "needed": needed if reached else None}
        rows.append(row | {"distances": sorted(distances.tolist())})
    return rows


def _first(enough: Tensor) -> Tensor:
    """(N,) index of the first True of each row, the number of columns if there is none."""
    return torch.where(enough.any(1), enough.int().argmax(1), enough.shape[1])
