"""Exact transfer: what zero error at a short length says about longer ones, counted over random hypotheses.

The claim is the lab's own, about sparse functional attention (``models.functional_attention``), and no theorem of
the paper that the model comes from:

    Let the labels and g be one-hot and the kernel A shift-invariant and W-local. Let every planted set have span at
    most W, and every placement of a planted pattern be possible at the training length L. If L >= 2W and h has no
    error on any sequence that is possible at length L, it has none at any l >= L.

Why: h errs if a set of positive weight has another label than the planted set. That is a condition on pairs of sets.
Overlapping and interleaved pairs fit in 2W - 1 positions, and disjoint pairs in 2W, since their gap does not matter.
Or h errs because no set has positive weight, and one that a window of length L around the planted set holds stays.

This module tests the claim by brute force. Each hypothesis is a random 0/1 kernel with a random g and a random task,
and h is compared with the label on every possible sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsity_lab.models.functional_attention import table_entries
from sparsity_lab.settings import SettingError, check_least

NUM_LABELS = 2

_MOST_SEQUENCES = 1 << 17
_PRODUCT_ENTRIES = 1 << 22  # sequences times hypotheses in one product


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
