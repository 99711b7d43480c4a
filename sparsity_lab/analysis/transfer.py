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

**Exact transfer**: what zero error at a short length says about longer ones, counted over random hypotheses.
The claim is the lab's own, about sparse functional attention (``models.functional_attention``), and no theorem of
the paper that the model comes from:

    Let the labels and g be one-hot and the kernel A shift-invariant and W-local. Let every planted set have span at
    most W, and every placement of a planted pattern be possible at the training length L. If L >= 2W and h has no
    error on any sequence that is possible at length L, it has none at any l >= L.

Why: h errs if a set of positive weight has another label than the planted set. That is a condition on pairs of sets.
Overlapping and interleaved pairs fit in 2W - 1 positions, and disjoint pairs in 2W, since their gap does not matter.
Or h errs because no set has positive weight, and one that a window of length L around the planted set holds stays.

``exact_transfer`` tests the claim by brute force. Each hypothesis is a random 0/1 kernel with a random g and a random
task, and h is compared with the label on every possible sequence.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int64
from matplotlib.axes import Axes
from torch import Tensor

from sparsity_lab.analysis.attention.measure import mean_row
from sparsity_lab.analysis.findings import change_finding
from sparsity_lab.analysis.length_axis import TrainedRange, length_axis
from sparsity_lab.analysis.lines import draw_curve, draw_level, name_lines
from sparsity_lab.analysis.measurement import Measurement
from sparsity_lab.analysis.style import look, new_axes, styled
from sparsity_lab.generators import Parity, Planted, Stream, Window
from sparsity_lab.models.functional_attention import FunctionalAttention, table_entries
from sparsity_lab.settings import SettingError, check_least
from sparsity_lab.settings.markup import details, join, table

_VOCABULARY = 4  # two planted tokens, two of the background
_LEARNING_RATE = 0.1
_EVALUATION_BATCH = 64
_ANY_SPAN = 9  # the test length of the exact counts

NUM_LABELS = 2
_MOST_SEQUENCES = 1 << 17
_PRODUCT_ENTRIES = 1 << 22  # sequences times hypotheses in one product


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


@dataclass(frozen=True, kw_only=True)
class Hypotheses:
    """H random triples of a kernel, a value map and a task.

    With W the task's width, W' the kernel's and V the vocabulary, the axes are those of the tables of
    ``FunctionalAttention``: P = W^(k-1) and P' = W'^(k-1) patterns, C = V^k contents.

    Attributes:
        kernel: A, 0 or 1.
        labels: g, and the planted rule too, which it matters for only where a content can be planted.
        patterns, contents: what can be planted, in which pattern.
        background: the tokens that can stand elsewhere.
    """

    k: int
    width: int
    kernel_width: int
    kernel: Bool[Tensor, "H kernel_P C"]
    labels: Int64[Tensor, "H C"]
    patterns: Bool[Tensor, "H P"]
    contents: Bool[Tensor, "H C"]
    background: Bool[Tensor, "H V"]

    @classmethod
    def draw(cls, count: int, *, k: int, width: int, kernel_width: int, vocab_size: int, seed: int) -> "Hypotheses":
        """Every entry of A is 1 with probability 1/2, every label uniform; each task can plant at least one pattern
        and content and has at least one background token."""
        random = np.random.Generator(np.random.PCG64(seed))
        num_contents = vocab_size**k
        # Of the rows of a table only those with ascending offsets are patterns; with one token, entries are rows.
        rows = torch.unique(table_entries(torch.zeros(1, width, dtype=torch.int64), k, width, 1)[0])
        patterns = torch.zeros(count, width ** (k - 1), dtype=torch.bool)
        patterns[:, rows] = _some(random, count, len(rows), 0.5)
        return cls(
            k=k,
            width=width,
            kernel_width=kernel_width,
            kernel=torch.from_numpy(random.random((count, kernel_width ** (k - 1), num_contents)) < 0.5),
            labels=torch.from_numpy(random.integers(NUM_LABELS, size=(count, num_contents))),
            patterns=patterns,
            contents=_some(random, count, num_contents, 0.15),
            background=_some(random, count, vocab_size, 0.3),
        )

    def chosen(self, which: Bool[Tensor, " H"] | Int64[Tensor, " some"]) -> "Hypotheses":
        """Some of them."""
        names = ("kernel", "labels", "patterns", "contents", "background")
        return replace(self, **{name: getattr(self, name)[which] for name in names})

    def without_error(self, length: int) -> Bool[Tensor, " H"]:
        """Whether h(X) is one-hot at the label for every X and label that are possible at this length."""
        right = torch.ones(len(self.kernel), dtype=torch.bool)
        for tokens in torch.unique(self.background, dim=0):
            group = (self.background == tokens).all(1).nonzero()[:, 0]
            sequences = _possible(length, tokens, self.k)
            for some in group.split(max(1, _PRODUCT_ENTRIES // len(sequences))):
                right[some] = ~self.chosen(some)._err(sequences, tokens)
        return right

    def _err(self, X: Int64[Tensor, "N L"], background: Bool[Tensor, " V"]) -> Bool[Tensor, " H"]:
        """Whether h errs on a sequence that the task can make; all tasks have this background."""
        V, C = len(background), self.kernel.shape[2]
        # A is shift-invariant, so h depends on X through the number of sets that read each entry of the tables:
        # Σ_S A(S, X[S]) [g(X[S]) = y] is their sum over the entries where A = 1 and g = y.
        read, _ = table_entries(X, self.k, self.kernel_width, V)
        votes = _sums(read, torch.ones(read.shape), self.kernel, self.labels)
        # S can be planted if all tokens that are foreign to the background are inside it.
        foreign = (~background).long()
        inside = sum(foreign[torch.arange(C) // V**j % V] for j in range(self.k))
        read, _ = table_entries(X, self.k, self.width, V)
        rest = foreign[X].sum(1, keepdim=True) - torch.as_tensor(inside)[read % C]
        planted = _sums(read, (rest == 0).float(), self.patterns[:, :, None] & self.contents[:, None], self.labels)
        h = votes / votes.sum(0)  # without any vote not a number, and so no label's
        return ((planted > 0) & (h != 1)).any(dim=(0, 1))


def exact_transfer(
    *,
    hypotheses: int = 6000,
    train_lengths: Sequence[int] = (3, 4, 6),
    test_length: int = 9,
    k: int = 2,
    width: int = 3,
    kernel_width: int | None = None,
    vocab_size: int = 3,
    seed: int = 0,
) -> pl.DataFrame:
    """How many random hypotheses without error at a training length err at a longer one.

    One row per training length, with columns ``width``, ``kernel_width``, ``train_length`` and ``hypotheses``.
    ``fitting`` counts those without error there, and ``failing`` those of them that err at a length up to
    ``test_length``. ``guaranteed`` says that by the claim none fails: the kernel is W-local and the length at least
    2W. The counts depend on the draw; the zeros that are guaranteed do not.

    >>> exact_transfer(hypotheses=50, train_lengths=(3, 6), test_length=7)["failing"].to_list()[-1]
    0

    Args:
        width: W of the tasks, whose planted sets have at most this span.
        kernel_width: W of the kernels; by default that of the tasks. A larger one takes locality away.
        seed: of the draw.

    Raises:
        SettingError: a training length below W, no longer test length, or more sequences than can be enumerated.
    """
    kernel_width = width if kernel_width is None else kernel_width
    if not train_lengths or min(train_lengths) < max(width, k):
        raise SettingError("train_lengths", f"lengths of at least {max(width, k)}", tuple(train_lengths))
    if test_length <= max(train_lengths):
        raise SettingError("test_length", f"above the training length {max(train_lengths)}", test_length)
    if vocab_size**test_length > _MOST_SEQUENCES:
        raise SettingError("test_length", f"at most {_MOST_SEQUENCES} sequences", f"{vocab_size}^{test_length}")
    check_least(1, hypotheses=hypotheses)
    drawn = Hypotheses.draw(hypotheses, k=k, width=width, kernel_width=kernel_width, vocab_size=vocab_size, seed=seed)
    fitting = {length: drawn.without_error(length) for length in train_lengths}
    # Only those that fit somewhere are tried at the other lengths.
    tried = torch.stack(list(fitting.values())).any(0)
    right = {
        length: fitting[length][tried] if length in fitting else drawn.chosen(tried).without_error(length)
        for length in range(min(train_lengths), test_length + 1)
    }
    rows = []
    for train_length, fits in fitting.items():
        later = torch.stack([right[length] for length in range(train_length + 1, test_length + 1)]).all(0)
        rows.append(
            {
                "width": width,
                "kernel_width": kernel_width,
                "train_length": train_length,
                "hypotheses": hypotheses,
                "fitting": int(fits.sum()),
                "failing": int((fits[tried] & ~later).sum()),
                "guaranteed": kernel_width <= width and train_length >= 2 * width,
            }
        )
    return pl.DataFrame(rows)


def _some(random: np.random.Generator, count: int, size: int, share: float) -> Bool[Tensor, "count size"]:
    """Random subsets: one member each, and every other with this probability."""
    member = random.random((count, size)) < share
    member[np.arange(count), random.integers(size, size=count)] = True
    return torch.from_numpy(member)


def _possible(length: int, background: Bool[Tensor, " V"], k: int) -> Int64[Tensor, "N L"]:
    """All sequences with at most k tokens that are foreign to the background."""
    X = torch.cartesian_prod(*[torch.arange(len(background))] * length).reshape(-1, length)
    return X[(~background)[X].sum(1) <= k]


def _sums(
    read: Int64[Tensor, "N M"],
    counts: Float[Tensor, "N M"],
    table: Bool[Tensor, "H P C"],
    labels: Int64[Tensor, "H C"],
) -> Float[Tensor, "Y N H"]:
    """For each label y, sequence and hypothesis: Σ over sets of counts table [label = y], exact in whole numbers."""
    entries = torch.zeros(len(read), table.shape[1] * table.shape[2]).scatter_add(1, read, counts)
    of_label = [(table & (labels == y)[:, None]).flatten(1).float() for y in range(NUM_LABELS)]
    return torch.stack([entries @ one.T for one in of_label])
