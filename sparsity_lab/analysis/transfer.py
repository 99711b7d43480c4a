"""Does sparse functional attention that fits short sequences stay right on long ones, and what does locality do?

Two answers. ``exact_transfer`` counts, over random hypotheses, what the lab's claim of exact transfer rules out. Here
small kernels are fitted by gradient at one length L = 2W and tested at longer ones, on the parity of k planted
tokens, in four arms:

    local, W-local kernel       planted sets of span at most W; the kernel sees no set that training did not show.
    local, kernel of any span   the same sequences; sets of span above L are first met in the test, with the weight
                                that they started from.
    scattered, by position      the same sequences in a random order of their tokens: planted sets of any span, and a
                                kernel of any span.
    scattered, by coupled ID    the same, with position IDs that are neighbors where tokens belong together (the
                                places before scattering); the kernel is W-local in IDs.

Every token has an ID, so the IDs alone do not tell which tokens are planted. With them the scattered task is the
local one again, read in the order of IDs, and so the last line lies on the first. That is the repair: what has to be
bounded is the span in IDs. With k = 1 a set has no span, and all lines are one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from sparsity_lab.analysis.attention.measure import mean_row
from sparsity_lab.analysis.exact_transfer import exact_transfer
from sparsity_lab.analysis.findings import change_finding
from sparsity_lab.analysis.length_axis import TrainedRange, length_axis
from sparsity_lab.analysis.lines import draw_curve, draw_level, name_lines
from sparsity_lab.analysis.measurement import Measurement
from sparsity_lab.analysis.style import look, new_axes, styled
from sparsity_lab.generators import Parity, Planted, Stream, Window
from sparsity_lab.models.functional_attention import FunctionalAttention
from sparsity_lab.settings import SettingError, check_least
from sparsity_lab.settings.markup import details, join, table

_VOCABULARY = 4  # two planted tokens, two of the background
_LEARNING_RATE = 0.1
_EVALUATION_BATCH = 64
_ANY_SPAN = 9  # the test length of the exact counts


@dataclass(frozen=True)
class _Arm:
    """One line of the figure.

    Attributes:
        local: the kernel is W-local; otherwise it takes sets of any span.
    """

    name: str
    local: bool
    scattered: bool = False
    coupled: bool = False


_ARMS = (
    _Arm("local, W-local kernel", local=True),
    _Arm("local, kernel of any span", local=False),
    _Arm("scattered, by position", local=False, scattered=True),
    _Arm("scattered, by coupled ID", local=True, scattered=True, coupled=True),
)


@dataclass(frozen=True, repr=False)
class TransferCheck(Measurement):
    """Errors by length of kernels fitted at one length, and the exact counts. Made by ``transfer_check``.

    >>> found = transfer_check(k=2, width=3, length=8, hypotheses=50, steps=5, sequences=8)
    >>> found.frame().columns
    ['arm', 'kernel_width', 'train_length', 'length', 'sequences', 'error', 'error_se', 'wrong']

    Attributes:
        k, width, train_length: of the fitted kernels.
        exact: the frame of ``exact_transfer``, for local kernels and for kernels of any span.
        models: the fitted kernels by arm.
    """

    k: int
    width: int
    train_length: int
    exact: pl.DataFrame
    models: Mapping[str, FunctionalAttention]
    _frame: pl.DataFrame

    @property
    def violations(self) -> int:
        """Hypotheses that fail although the claim guarantees that none does. Above 0 the claim, or this code, is
        wrong."""
        return int(self.exact.filter("guaranteed")["failing"].sum())

    def frame(self) -> pl.DataFrame:
        """One row per arm and length.

        Columns: ``arm``, ``kernel_width``, ``train_length``, ``length``, ``sequences``, ``error`` (mean of
        1 - h(X)[label]), ``error_se``, ``wrong`` (share of sequences where the label is not the likeliest).
        """
        return self._frame

    def summary(self) -> pl.DataFrame:
        """The error: one row per arm, one column per length."""
        return self._frame.pivot("length", index=["arm", "kernel_width"], values="error", aggregate_function=None)

    @property
    def finding(self) -> str:
        """From where to where the error goes."""
        return change_finding(self._frame, "length", "error", "error")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the error against length; returns the axes.

        Args:
            ax: where to draw; by default axes of a new figure of their own.
        """
        with styled():
            ax = new_axes(5.8, 3.3) if ax is None else ax
            draw_level(ax, 0.5, "chance")
            for index, arm in enumerate(_ARMS):
                part = self._frame.filter(arm=arm.name)
                words = f"{arm.name} (W = {part['kernel_width'][0]})"
                # Lines that lie on each other: the earlier ones are larger, and dashes let them through.
                size = 8 - 1.2 * index
                style = look(index)
                draw_curve(ax, part["length"], part["error"], style, words, markersize=size)
                ax.errorbar(part["length"], part["error"], part["error_se"], fmt="none", ecolor=style.color)
            lengths = self._frame["length"].unique().sort().to_list()
            trained = TrainedRange(self.train_length, self.train_length, same=True)
            length_axis(ax, lengths, trained, "length (tokens, log scale)")
            ax.set_ylabel("error: 1 − h(X)[label]\n(mean over sequences)")
            ax.set_ylim(-0.02, 0.56)
            name_lines(ax)
        return ax

    def __repr__(self) -> str:
        counts = [
            f"  kernel of span <= {row['kernel_width']}, L = {row['train_length']}: {row['failing']} of "
            f"{row['fitting']} fail later{', none may' if row['guaranteed'] else ''}"
            for row in self.exact.iter_rows(named=True)
        ]
        return "\n".join([super().__repr__(), f"exact transfer (W = {self.exact['width'][0]})", *counts])

    def _repr_html_(self) -> str:
        counts = details("exact transfer", table(self.exact.columns, self.exact.iter_rows()))
        return join([super()._repr_html_(), counts])


def transfer_check(
    *,
    k: int = 3,
    width: int = 8,
    length: int = 50,
    lengths: Iterable[int] | None = None,
    train_length: int | None = None,
    hypotheses: int = 6000,
    steps: int = 300,
    batch_size: int = 64,
    sequences: int = 256,
    seed: int = 0,
) -> TransferCheck:
    """Exact transfer counted, and the error by length of kernels fitted by gradient (see the module).

    >>> found = transfer_check(k=2, width=3, length=8, hypotheses=50, steps=5, sequences=8)
    >>> found.exact["width"].unique().to_list()
    [3]

    Args:
        k: planted tokens, 1 to 3.
        width: W, the largest span of a planted set.
        length: the largest test length, and the width of the kernels of any span, whose time and memory grow as
            C(length, k).
        lengths: test lengths; by default six from the training length to ``length``.
        train_length: L; by default 2W, where the claim of exact transfer begins.
        hypotheses: of ``exact_transfer``, which has its own small k, W and lengths.
        steps, batch_size: of the fit, by Adam, on fresh sequences.
        sequences: at each test length.
        seed: of everything random.

    Raises:
        SettingError: names the argument, what was expected and what came.
    """
    trained = 2 * width if train_length is None else train_length
    if trained < width:
        raise SettingError("train_length", f"at least the width {width}", trained)
    if length <= trained:
        raise SettingError("length", f"above the training length {trained}", length)
    check_least(1, steps=steps, batch_size=batch_size)
    spread = np.geomspace(trained, length, 6).round().astype(int).tolist() if lengths is None else lengths
    tested = sorted({int(one) for one in spread})
    if not tested or not width <= tested[0] <= tested[-1] <= length:
        raise SettingError("lengths", f"lengths from {width} to {length}", lengths)
    if sequences < 2:
        raise SettingError("sequences", "at least 2, for a standard error", sequences)
    task = Planted(k=k, locality=Window(width=width), rule=Parity(), vocab_size=_VOCABULARY + 2)
    exact = [exact_transfer(hypotheses=hypotheses, kernel_width=one, seed=seed) for one in (None, _ANY_SPAN)]
    models, rows = {}, []
    for arm in _ARMS:
        model = FunctionalAttention.uniform(
            k=k, width=width if arm.local else length, vocab_size=_VOCABULARY, num_labels=task.num_labels
        )
        probability = partial(_label_probability, model, task, arm)
        optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE, fused=True)
        for step in range(steps):
            loss = -probability(Stream(seed, "train"), step * batch_size, batch_size, trained).log().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        models[arm.name] = model.requires_grad_(False)
        for at in tested:
            starts = range(0, sequences, _EVALUATION_BATCH)
            seen = Stream(seed, "evaluation")
            parts = [probability(seen, one, min(_EVALUATION_BATCH, sequences - one), at) for one in starts]
            right = torch.cat(parts)[:, 0].double().numpy()
            row = {"arm": arm.name, "kernel_width": model.width, "train_length": trained, "length": at}
            row |= {"sequences": sequences} | mean_row({"error": 1 - right}, errors=("error",))
            rows.append(row | {"wrong": float((right <= 0.5).mean())})
    frame = pl.DataFrame(rows)
    return TransferCheck(k=k, width=width, train_length=trained, exact=pl.concat(exact), models=models, _frame=frame)


def _label_probability(
    model: FunctionalAttention, task: Planted, arm: _Arm, stream: Stream, start: int, count: int, length: int
) -> Float[Tensor, "B 1"]:
    """h(X)[label] of each sequence: tokens x_1 .. x_l with their coupled IDs, the same for all arms but for the order
    of tokens."""
    batch = task.sample(stream, start, count, length)
    X, labels, ids = batch.tokens[:, 1:-1], batch.targets[:, -1:], None
    if arm.scattered:
        order = torch.from_numpy(stream.words("scatter", length, start, count, length).argsort(axis=1))
        X, ids = X.gather(1, order), order + 1 if arm.coupled else None
    h: Tensor = model(X, ids)
    return h.gather(1, labels)
