"""``swap_report``: what an existing model loses or gains when its attention is exchanged.

The same targets are predicted with every length of context. Each document gives one window of the largest length plus
one token. At context T the model reads the T tokens before the window's end. The loss is the mean over the last S
targets, where S is half the smallest length. So neither lengths nor mechanisms differ in what is predicted, and
differences are paired by document.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsity_lab.analysis.findings import titled
from sparsity_lab.analysis.length_axis import length_axis
from sparsity_lab.analysis.lines import draw_curve, name_lines
from sparsity_lab.analysis.measurement import Measurement, rows_frame
from sparsity_lab.analysis.memory import peak_memory
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.analysis.report.page import Section, page
from sparsity_lab.analysis.statistics import Interval, mean_interval
from sparsity_lab.analysis.style import GRAY, figure_svg, look, new_axes, styled
from sparsity_lab.interop.attach import attach, check_kernel, detach
from sparsity_lab.interop.attention import check_detached, kernels_of
from sparsity_lab.interop.documents import Text, windows_of
from sparsity_lab.interop.extra import pretrained
from sparsity_lab.kernels import Kernel, Reweighted
from sparsity_lab.settings import SettingError, check_that, counted, whole
from sparsity_lab.settings.markup import Markup, element, join, table

AS_IT_IS = "as it is"
"""The model with its own attention."""

REWEIGHTED = "re-weighted"
"""The same, with its softmax weights re-weighted at test time."""

_CONFIDENCE = 0.95
_DIFFERENCE = {"difference": "estimate", "difference_low": "low", "difference_high": "high"}

Losses = Mapping[int, NDArray[np.float64]]
"""By length, (documents, targets) losses in nats; of the largest length, of all its positions."""


SwapProgress = Callable[[str, int, int], None]
"""Called with the arm that was measured, how many passes of the model are done, and how many there are."""

_SHARPENED = Reweighted()
_LENGTHS = (128, 256, 512, 1024)


@dataclass(frozen=True, repr=False)
class SwapReport(Measurement):
    """What ``swap_report`` found.

    >>> found = swap_report(llama, torch.arange(400) % 8, [LSSA()], lengths=(8, 16))
    >>> found.lengths
    (8, 16)

    Attributes:
        model: class of the model.
        kernels: mechanism of each arm but ``AS_IT_IS``, in short form.
        lengths: of context, ascending.
        targets: S, how many tokens of each document are predicted.
        documents: how many.
        declared: the context that the model's config declares; None if it does not.
    """

    model: str
    kernels: Mapping[str, str]
    lengths: tuple[int, ...]
    targets: int
    documents: int
    declared: int | None
    _losses: Mapping[str, Losses]
    _seconds: Mapping[tuple[str, int], float]
    _bytes: Mapping[str, int]

    @property
    def arms(self) -> tuple[str, ...]:
        """The model as it is, and each mechanism."""
        return tuple(self._losses)

    def frame(self) -> pl.DataFrame:
        """One row per arm and length of context.

        Columns: ``arm``, ``length``, ``documents``, and ``loss`` (nats per target, mean over documents) with its 95 %
        interval ``low`` and ``high``. ``difference`` from the original model is paired by document. Its interval,
        ``_low`` and ``_high``, holds for all mechanisms of a length together (Bonferroni).
        ``seconds_per_1000_tokens`` is for a forward pass.
        """
        rows = []
        for arm in self.arms:
            for length in self.lengths:
                loss = mean_interval(list(self._by_document(arm, length)), _CONFIDENCE)
                row: dict[str, Any] = {"arm": arm, "length": length, "documents": loss.count, "loss": loss.estimate}
                row |= {"low": loss.low, "high": loss.high}
                known = None if arm == AS_IT_IS else self.difference(arm, length)
                row |= {name: known and getattr(known, end) for name, end in _DIFFERENCE.items()}
                rows.append(row | {"seconds_per_1000_tokens": self._seconds[arm, length]})
        return rows_frame(rows)

    def summary(self) -> pl.DataFrame:
        """Losses, a row for each arm and a column for each length."""
        return self.frame().pivot("length", index="arm", values="loss")

    def positions(self) -> pl.DataFrame:
        """Loss by position within the largest context, in bins that double: ``arm``, ``first`` and ``last`` position
        (from 1, the number of tokens that are seen), ``loss``, ``low``, ``high``."""
        ends = [0, *(2**i for i in range(self.lengths[-1].bit_length()) if 2**i < self.lengths[-1]), self.lengths[-1]]
        rows = []
        for arm in self.arms:
            for first, last in pairwise(ends):
                one = mean_interval(list(self._losses[arm][self.lengths[-1]][:, first:last].mean(1)), _CONFIDENCE)
                row = {"arm": arm, "first": first + 1, "last": last, "loss": one.estimate}
                rows.append(row | {"low": one.low, "high": one.high})
        return rows_frame(rows)

    def cost(self) -> pl.DataFrame:
        """Time and memory of a forward pass at the largest length: ``arm``, ``seconds_per_1000_tokens``, ``peak_MiB``
        of tensors beyond the weights, and both as ``_ratio`` to the model as it is."""
        length = self.lengths[-1]
        seconds, space = self._seconds[AS_IT_IS, length], self._bytes[AS_IT_IS]
        return pl.DataFrame(
            {
                "arm": arm,
                "seconds_per_1000_tokens": self._seconds[arm, length],
                "time_ratio": self._seconds[arm, length] / seconds,
                "peak_MiB": self._bytes[arm] / 2**20,
                "memory_ratio": self._bytes[arm] / space,
            }
            for arm in self.arms
        )

    def difference(self, arm: str, length: int) -> Interval:
        """Loss of an arm minus that of the model as it is, mean over documents, with the interval of ``frame``.

        Raises:
            SettingError: no such arm or length.
        """
        check_that(arm in self.arms, "arm", "an arm", arm, self.arms)
        check_that(length in self.lengths, "length", f"one of {self.lengths}", length)
        pairs = self._by_document(arm, length) - self._by_document(AS_IT_IS, length)
        return mean_interval(list(pairs), 1 - (1 - _CONFIDENCE) / max(1, len(self.kernels)))

    @property
    def verdict(self) -> str:
        """What to do, in one or two sentences."""
        short, long = self.lengths[0], self.lengths[-1]
        found = {arm: self.difference(arm, long) for arm in self.arms if arm != AS_IT_IS}
        order = sorted(found, key=lambda arm: found[arm].estimate or 0.0)
        better = [arm for arm in order if found[arm].high is not None and (found[arm].high or 0.0) < 0]
        if better:
            cost = (
                "" if short == long else f" At {short:,} tokens it is {_change(self.difference(better[0], short))}."
            )
            return f"{better[0]} helps: at {long:,} tokens its loss is {_change(found[better[0]])}.{cost}"
        open_arms = [arm for arm in order if not found[arm].decided]
        if open_arms:
            best = open_arms[0]
            ends = _ends(found[best])
            words = f"Not decided: at {long:,} tokens {best} changes the loss by {ends} nats a token."
            return f"{words} Take more documents."
        return (
            f"Keep the attention as it is: at {long:,} tokens the loss of every mechanism is higher; the least, with "
            f"{order[0]}, is {_change(found[order[0]])}."
        )

    def to_data(self) -> dict[str, Any]:
        """All numbers as plain data."""
        shown = ("model", "lengths", "targets", "documents", "declared", "verdict")
        frames = {"losses": self.frame(), "positions": self.positions(), "cost": self.cost()}
        facts = {name: getattr(self, name) for name in shown} | {"kernels": dict(self.kernels)}
        return facts | {name: frame.to_dicts() for name, frame in frames.items()}

    @property
    def finding(self) -> str:
        """The verdict."""
        return self.verdict

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss by length of context with its intervals; returns the axes."""
        ax = draw_losses(ax, self.frame(), "length", self.lengths)
        low, high = ax.get_xlim()
        if self.declared is not None and low <= self.declared <= high:
            ax.axvline(self.declared, color=GRAY, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
            ax.set_title(f"declared context {self.declared:,}", fontsize=9, fontweight="normal", color=GRAY)
        return ax

    def plot_differences(self, ax: Axes | None = None) -> Axes:
        """Draw the difference of each mechanism from the model as it is, by length of context, with the intervals of
        ``frame``; returns the axes."""
        others = self.frame().filter(pl.col("arm") != AS_IT_IS).drop("loss", "low", "high")
        named = others.rename({"difference": "loss", "difference_low": "low", "difference_high": "high"})
        ax = draw_losses(ax, named, "length", self.lengths, first=1)
        ax.axhline(0, color=GRAY, linewidth=1, zorder=0)
        ax.set_ylabel(f"loss minus that of the model\n{AS_IT_IS} (nats a token)")
        return ax

    def plot_positions(self, ax: Axes | None = None) -> Axes:
        """Draw the loss by position within the largest context, with its intervals; returns the axes."""
        frame = self.positions().with_columns(middle=(pl.col("first") * pl.col("last")).cast(pl.Float64).sqrt())
        label = f"position within {self.lengths[-1]:,} tokens (log scale)"
        return draw_losses(ax, frame, "middle", frame["last"].unique().sort().to_list(), label)

    def write(self, path: Path | str, *, title: str | None = None) -> Path:
        """Write all of it as one HTML file that loads nothing from elsewhere; returns its path.

        Raises:
            SettingError: the file cannot be written.
        """
        sections = [
            Section("verdict", "Verdict", self._verdict_part()),
            Section("context", "Loss by length of context", self._losses_part()),
            Section("positions", "Loss by position", self._positions_part()),
            Section("cost", "Time and memory", self._cost_part()),
        ]
        text = page(title or f"{self.model}: attention swapped", sections)
        return write_whole(Path(path), text.encode(errors="backslashreplace"))

    def __repr__(self) -> str:
        size = f"{counted(self.documents, 'document')}, {counted(self.targets, 'target')} of each"
        head = f"SwapReport: {self.model}, {size}"
        return "\n".join([head, f"  {self.verdict}", super().__repr__().partition("\n")[2]])

    # --- inside

    def _by_document(self, arm: str, length: int) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = self._losses[arm][length][:, -self.targets :].mean(1)
        return mean

    def _difference_finding(self) -> str:
        long = self.lengths[-1]
        each = (f"{arm} {_ends(self.difference(arm, long))}" for arm in self.arms if arm != AS_IT_IS)
        return f"Loss at {long:,} tokens minus that of the model as it is: {', '.join(each)}"

    def _position_finding(self) -> str:
        last = self.positions().filter(last=self.lengths[-1]).sort("loss")
        each = ", ".join(f"{arm} {loss:.3f}" for arm, loss in last.select("arm", "loss").iter_rows())
        return f"Loss of positions {last['first'][0]:,} to {last['last'][0]:,}: {each}"

    def _verdict_part(self) -> Markup:
        facts = [
            ("model", self.model),
            ("documents", self.documents),
            ("targets of each document", self.targets),
            ("declared context", self.declared),
            *((f"arm: {arm}", kernel) for arm, kernel in self.kernels.items()),
        ]
        return join([element("p", self.verdict, class_="lead"), table(["measured", "value"], facts)])

    def _losses_part(self) -> Markup:
        note = (
            f"The same {self.targets} last tokens of each document are predicted with every context. Bands are 95 % "
            "intervals of the mean over documents. Differences from the model as it is are paired by document; their "
            "intervals hold for all mechanisms of a length together."
        )
        losses = _picture(self.plot(), self.finding)
        differences = _picture(self.plot_differences(), self._difference_finding())
        pictures = element("div", losses, differences, class_="figures")
        return _part(note, self.frame().drop("seconds_per_1000_tokens"), pictures)

    def _positions_part(self) -> Markup:
        note = f"One reading of {self.lengths[-1]:,} tokens of each document; the first target sees one token."
        return _part(note, self.positions(), _picture(self.plot_positions(), self._position_finding()))

    def _cost_part(self) -> Markup:
        note = (
            f"A forward pass of {self.lengths[-1]:,} tokens on this machine: median time, in which the arms took "
            "turns, and the most memory of tensors at a time beyond the weights."
        )
        return _part(note, self.cost())


def draw_losses(
    ax: Axes | None,
    frame: pl.DataFrame,
    x: str,
    ticks: Sequence[int],
    label: str = "context (tokens, log scale)",
    *,
    by: str = "arm",
    first: int = 0,
) -> Axes:
    """Draw losses with their intervals; returns the axes.

    Args:
        by: column that names the curves.
        first: place of the first look.
    """
    with styled():
        ax = new_axes(5.8, 3.6) if ax is None else ax
        for index, part in enumerate(frame.partition_by(by, maintain_order=True), first):
            ends: dict[str, Any] = {"low": part["low"], "high": part["high"]}
            draw_curve(ax, part[x], part["loss"], look(index), part[by][0], **ends)
        length_axis(ax, ticks, None, label)
        ax.set_ylabel("loss (nats a token)")
        name_lines(ax)
    return ax


def _part(note: str, frame: pl.DataFrame, *pictures: Markup) -> Markup:
    """A part of the page: a note, pictures, and their numbers."""
    head = [name.replace("_", " ") for name in frame.columns]
    return join([element("p", note, class_="note"), *pictures, table(head, frame.iter_rows())])


def _picture(ax: Axes, finding: str) -> Markup:
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return element("div", Markup(figure_svg(titled(figure, finding), finding)), class_="picture")


def _ends(one: Interval) -> str:
    return f"{one.estimate:+.3f} [{one.low:+.3f}, {one.high:+.3f}]".replace("-", "−")


def _change(one: Interval) -> str:
    """In words, of a difference from the model as it is."""
    if not one.decided:
        return f"not told apart from the model as it is ({_ends(one)} nats a token)"
    estimate, low, high = (abs(value or 0.0) for value in (one.estimate, one.low, one.high))
    side = "lower" if (one.estimate or 0.0) < 0 else "higher"
    return f"{estimate:.3f} [{min(low, high):.3f}, {max(low, high):.3f}] nats a token {side} than as it is"


def swap_report(
    model: nn.Module,
    text: Text,
    kernels: Sequence[Kernel],
    lengths: Sequence[int] = _LENGTHS,
    *,
    tokenizer: Any = None,
    documents: int = 16,
    reweighted: Kernel | None = _SHARPENED,
    seed: int = 0,
    progress: SwapProgress | None = None,
) -> SwapReport:
    """Measure an existing model unchanged, with each mechanism in place of its attention, and with its own softmax
    attention re-weighted at test time alone. Weights are never changed, and the model leaves as it came.

    >>> swap_report(llama, torch.arange(400) % 8, [LSSA()], lengths=(8, 16)).arms
    ('as it is', 'LSSA()', 're-weighted')

    Args:
        model: as for ``attach``, with no kernel attached.
        text: documents, as texts or as tokens; a single one is cut into parts of its own.
        kernels: the mechanisms; learned parameters have their initial values.
        lengths: of context, in tokens.
        tokenizer: of ``transformers``, for texts.
        documents: at most so many are read.
        reweighted: the last arm; None leaves it out.
        seed: of learned parameters.
        progress: called after each pass.

    Raises:
        SettingError: a model or a kernel that ``attach`` refuses, lengths that the model cannot read, or documents
            that are too short.
    """
    base: Any = pretrained(model)
    whole("documents", documents, 2)
    whole("seed", seed, None)
    check_detached(model)
    for name, several in {"kernels": kernels, "lengths": lengths}.items():
        check_that(isinstance(several, list | tuple), name, "a list", several)
    config = base.config.get_text_config(decoder=True)
    for i, one in enumerate(kernels):
        check_kernel(one, f"kernels[{i}]", config)
    if not kernels and reweighted is None:
        raise SettingError("kernels", "at least one, where nothing is re-weighted", kernels)
    ordered = _checked_lengths(lengths, config)
    arms: dict[str, Kernel | None] = {AS_IT_IS: None, **{str(kernel): kernel for kernel in kernels}}
    if reweighted is not None:
        arms[REWEIGHTED] = reweighted
    windows = windows_of(text, tokenizer, ordered[-1] + 1, documents, config.vocab_size)
    for kernel in arms.values():
        if kernel is not None:
            detach(attach(model, kernel, seed=seed))
    was_training = model.training
    model.eval()
    try:
        return _measured(model, base, arms, windows, ordered, seed, progress)
    finally:
        if kernels_of(model):
            detach(model)
        model.train(was_training)


def _checked_lengths(lengths: Sequence[int], config: Any) -> tuple[int, ...]:
    ordered = tuple(sorted({whole("lengths", length, 2) for length in lengths}))
    check_that(ordered, "lengths", "one or more", ())
    most = _declared(config)
    # A table of positions ends; a rotation does not.
    if getattr(config, "rope_parameters", None) is None and most is not None and ordered[-1] > most:
        raise SettingError("lengths", f"at most {most}, the model's number of positions", ordered[-1])
    return ordered


def _declared(config: Any) -> int | None:
    most = getattr(config, "max_position_embeddings", None)
    return None if most is None else int(most)


def _measured(
    model: nn.Module,
    base: Any,
    arms: Mapping[str, Kernel | None],
    windows: Int64[Tensor, "documents size"],
    lengths: tuple[int, ...],
    seed: int,
    progress: SwapProgress | None,
) -> SwapReport:
    windows = windows.to(next(model.parameters()).device)
    longest, targets = lengths[-1], max(1, lengths[0] // 2)
    groups = {length: torch.split(windows, max(1, longest // length)) for length in lengths}
    total = len(arms) * (sum(map(len, groups.values())) + 1)
    done, losses, seconds, space = 0, {arm: {} for arm in arms}, {}, {}  # type: ignore[var-annotated]
    token_losses(
        model, groups[longest][0], longest, 1
    )  # the first pass of a model pays for what all later ones find ready
    for length in lengths:
        found: dict[str, list[tuple[Tensor, float]]] = {arm: [] for arm in arms}
        for group in groups[length]:
            for arm, kernel in arms.items():  # in turns, so that drift of the machine's speed falls on all
                if kernel is not None:
                    attach(model, kernel, seed=seed)
                keep = longest if length == longest else targets
                start = time.perf_counter()
                losses_of_group = token_losses(model, group, length, keep).cpu()
                found[arm].append((losses_of_group, time.perf_counter() - start))
                if length == longest and group is groups[length][0]:
                    space[arm] = peak_memory(lambda: token_losses(model, group, longest, targets), windows.device)  # noqa: B023
                    done += 1
                if kernel is not None:
                    detach(model)
                done += 1
                if progress is not None:
                    progress(f"{arm}, {length} tokens", done, total)
        for arm, parts in found.items():
            losses[arm][length] = torch.cat([part for part, _ in parts]).double().cpu().numpy()
            tokens = [length * len(group) for group in groups[length]]
            rates = [1000 * own / count for (_, own), count in zip(parts, tokens, strict=True)]
            seconds[arm, length] = median(rates)
    return SwapReport(
        model=type(base).__name__,
        kernels={arm: str(kernel) for arm, kernel in arms.items() if kernel is not None},
        lengths=lengths,
        targets=targets,
        documents=len(windows),
        declared=_declared(base.config),
        _losses=losses,
        _seconds=seconds,
        _bytes=space,
    )


@torch.no_grad()
def token_losses(
    model: nn.Module, windows: Int64[Tensor, "B size"], length: int, keep: int
) -> Float[Tensor, "B keep"]:
    """Of the last ``keep`` targets of windows, each read from ``length`` tokens before its end, in nats."""
    logits = model(windows[:, -length - 1 : -1], use_cache=False, logits_to_keep=keep).logits[:, -keep:]
    return nn.functional.cross_entropy(logits.transpose(1, 2).float(), windows[:, -keep:], reduction="none")
