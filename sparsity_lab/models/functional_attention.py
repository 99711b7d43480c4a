"""Sparse functional attention: a weighted vote of all k-subsets of a sequence, by enumeration.

A hypothesis is a kernel A and a value map g. The kernel gives a weight to every k-subset S of the positions with its
tokens X[S]. The value map takes k tokens to a distribution over labels:

    h(X) = Σ_S A(S, X[S]) g(X[S]) / Σ_S A(S, X[S])

Here A and g are tables, so they are arbitrary functions of what they see. A is *W-local*, zero for sets of
span(S) = max S - min S + 1 above W, and *shift-invariant*, a function of S - min S and X[S] only. There are
Σ_{a=1..l} C(min(W-1, l-a), k-1) such sets among l positions. With k = 1 and A = exp(score) this is a softmax head.

With position IDs, a set's order and span are those of its IDs: tokens far apart make a local set if their IDs are
neighbors or equal.

Source: Golowich et al. (arXiv 2502.16792) call their idealized model sparse functional attention; this form of it,
and all terms here, are the lab's.
"""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sparsity_lab.settings import SettingError, whole

_LARGEST_K = 3


class FunctionalAttention(nn.Module):
    """h(X) with A and g as tables, trainable by gradient. W is the width, V the vocabulary, Y the number of labels.

    ``uniform`` makes one to be trained, ``from_tables`` one with known A and g, zeros included.

    >>> hypothesis = FunctionalAttention.uniform(k=2, width=3, vocab_size=2, num_labels=2)
    >>> hypothesis(torch.tensor([[0, 1, 1, 0]])).shape
    torch.Size([1, 2])

    Attributes:
        log_kernel: shape W, .., W (k - 1 times), V, .., V (k times). The entry [d_2, .., d_k, x_1, .., x_k] is log A
            of a set with offsets d_j = s_j - s_1 and tokens x_j, in order of position. Minus infinity is a weight of
            exactly 0, which gradients leave alone. Entries whose offsets do not ascend belong to no set (equal
            offsets only to sets with equal IDs).
        value_logits: V, .., V (k times), Y; g is their softmax over labels.
    """

    def __init__(self, log_kernel: Float[Tensor, "*kernel_axes"], value_logits: Float[Tensor, "*value_axes"]) -> None:
        super().__init__()
        self.k = value_logits.ndim - 1
        self.vocab_size, self.num_labels = value_logits.shape[0], value_logits.shape[-1]
        _check_k(self.k)
        self.width = log_kernel.shape[0] if self.k > 1 else 1
        expected = (self.width,) * (self.k - 1) + (self.vocab_size,) * self.k
        if log_kernel.shape != expected or value_logits.shape[:-1] != expected[self.k - 1 :]:
            shapes = tuple(log_kernel.shape), tuple(value_logits.shape)
            raise SettingError("log_kernel", "tables over (W,)*(k-1) + (V,)*k and (V,)*k + (Y,)", shapes)
        whole("width", self.width, self.k)
        self.log_kernel = nn.Parameter(log_kernel)
        self.value_logits = nn.Parameter(value_logits)

    @classmethod
    def uniform(cls, *, k: int, width: int, vocab_size: int, num_labels: int) -> "FunctionalAttention":
        """Every W-local set has weight 1 and a uniform value: where training starts.

        Raises:
            SettingError: k outside 1 .. 3, or a width, vocabulary or number of labels that is too small.
        """
        _check_k(k)
        whole("width", width, k)
        whole("vocab_size", vocab_size)
        whole("num_labels", num_labels)
        contents = (vocab_size,) * k
        return cls(torch.zeros((width,) * (k - 1) + contents), torch.zeros((*contents, num_labels)))

    @classmethod
    def from_tables(
        cls, kernel: Float[Tensor, "*kernel_axes"], values: Float[Tensor, "*value_axes"]
    ) -> "FunctionalAttention":
        """From A and g themselves, with the axes of ``log_kernel`` and ``value_logits``; a weight may be 0.

        Raises:
            SettingError: a weight that is negative or not finite, values that are no distributions, or axes that do
                not fit.
        """
        if not ((kernel >= 0) & kernel.isfinite()).all():
            raise SettingError("kernel", "finite weights of at least 0", kernel)
        if not ((values >= 0).all() and torch.allclose(values.sum(-1), values.new_ones(()))):
            raise SettingError("values", "a distribution over labels in each row", values)
        return cls(kernel.log(), values.log())

    def forward(
        self, tokens: Int64[Tensor, "B L"], position_ids: Int64[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B Y"]:
        """h: probabilities of the labels, not logits.

        If no set has a positive weight, h is undefined as a quotient and all its entries are 0: it gives no answer,
        which is an error for every label.

        Memory and time are proportional to B times the number of sets, which is Σ_a C(min(W-1, L-a), k-1), and
        C(L, k) if there are position IDs.

        Args:
            position_ids: read order and span of a set from these; 0 is none, and belongs to no set.

        Raises:
            SettingError: fewer than k positions, or, on a CPU, tokens outside the vocabulary.
        """
        entries, inside = table_entries(tokens, self.k, self.width, self.vocab_size, position_ids)
        if entries.shape[1] == 0:
            return self.value_logits.new_zeros(len(tokens), self.num_labels)
        log_weights = self.log_kernel.flatten().take(entries).masked_fill(~inside, -torch.inf)
        # Relative to the largest, which cancels; a row without any keeps its zeros.
        largest = log_weights.detach().amax(1, keepdim=True).clamp(min=torch.finfo(log_weights.dtype).min)
        weights = (log_weights - largest).exp()
        # g is the same for all sets that hold the same tokens, so their weights are added first.
        num_contents = self.vocab_size**self.k
        mass = weights.new_zeros(len(tokens), num_contents).scatter_add(1, entries % num_contents, weights)
        total = weights.sum(1, keepdim=True)
        values = self.value_logits.flatten(0, -2).softmax(-1)
        return (mass @ values) / torch.where(total > 0, total, 1.0)


def table_entries(
    tokens: Int64[Tensor, "B L"],
    k: int,
    width: int,
    vocab_size: int,
    position_ids: Int64[Tensor, "B L"] | None = None,
) -> tuple[Int64[Tensor, "B M"], Bool[Tensor, "one_or_B M"]]:
    """Which entry of the flattened kernel table each of M sets reads, and whether the set is W-local and so counts.

    The entry is Σ_j d_j W^(k-j) V^k + Σ_j x_j V^(k-j); its remainder modulo V^k is the index of the tokens alone. An
    entry of a set that does not count has the right tokens and offsets 0. Without position IDs all sets count; with
    them, M are on a CPU the sets that count in at least one sequence, which may be none.

    Raises:
        SettingError: fewer than k positions, or, on a CPU, tokens outside the vocabulary.
    """
    length = tokens.shape[1]
    if length < k:
        raise SettingError("tokens", f"at least k={k} positions", length)
    # A GPU would have to stop for a look at the numbers.
    looks = tokens.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and tokens.numel() and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise SettingError("tokens", f"tokens 0 to {vocab_size - 1}", [tokens.min().item(), tokens.max().item()])
    if position_ids is None:
        sets = local_subsets(length, k, width).to(tokens.device)
        places = torch.arange(1, length + 1, device=tokens.device)[None]
    else:
        # The sequence is read in the order of its IDs; equal IDs keep the order of their positions.
        places, order = position_ids.sort(dim=1, stable=True)
        tokens = tokens.gather(1, order)
        sets = local_subsets(length, k, length).to(tokens.device)
        if looks:
            sets = sets[_inside(places, sets, width).any(0)]
    inside = _inside(places, sets, width)
    first, *others = sets.unbind(1)
    start = places.index_select(1, first)
    pattern = torch.zeros_like(start)
    content = tokens.index_select(1, first)
    for place in others:
        pattern = pattern * width + (places.index_select(1, place) - start)
        content = content * vocab_size + tokens.index_select(1, place)
    return (pattern * vocab_size**k).where(inside, 0) + content, inside


def _inside(places: Int64[Tensor, "B L"], sets: Int64[Tensor, "M k"], width: int) -> Bool[Tensor, "B M"]:
    """Whether all members of each set have a place, and its span is at most the width; places ascend."""
    first, last = places.index_select(1, sets[:, 0]), places.index_select(1, sets[:, -1])
    return (first > 0) & (last - first < width)


@lru_cache(maxsize=64)
def local_subsets(length: int, k: int, width: int) -> Int64[Tensor, "M k"]:
    """All k-subsets of 0 .. length - 1 with span at most ``width``, ascending in each row."""
    width = min(width, length)
    patterns = torch.combinations(torch.arange(1, width), k - 1) if k > 1 else torch.empty(1, 0, dtype=torch.int64)
    patterns = torch.cat([torch.zeros(len(patterns), 1, dtype=torch.int64), patterns], dim=1)
    placed = (torch.arange(length)[:, None, None] + patterns).flatten(0, 1)
    return placed[placed[:, -1] < length]


def _check_k(k: int) -> None:
    if not 1 <= k <= _LARGEST_K:
        raise SettingError("k", f"1 to {_LARGEST_K}, since all sets are enumerated", k)
