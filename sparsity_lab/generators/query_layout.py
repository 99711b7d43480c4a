"""Shared parts of tasks with the layout ``BOS x_1 .. x_l =`` and the first target at the query ``=``.

BOS is at position 0, x_i at position i, the query at l + 1. An answer of several tokens follows the query.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsity_lab.generators.batch import IGNORE, Batch, Vocabulary
from sparsity_lab.generators.stream import Ints, Stream, bounded, open_unit

EXTRA_POSITIONS = 2  # BOS and the query
_TOKENS_PER_CHUNK = 1 << 15  # the words, products and tokens of one chunk fit into the second-level cache


def rows_of_chunks(start: int, count: int, length: int) -> Iterator[tuple[slice, int]]:
    """Cut a batch into chunks of rows that fit the cache: (rows of the batch, stream index of the first)."""
    size = max(1, _TOKENS_PER_CHUNK // (length + EXTRA_POSITIONS))
    for first in range(0, count, size):
        yield slice(first, min(first + size, count)), start + first


def background_tokens(stream: Stream, start: int, out: Ints, low: int, size: int, bos: int, query: int) -> None:
    """Fill ``out`` (count, l + 2) with BOS, l tokens uniform on low .. low + size - 1, and the query.

    >>> out = np.empty((1, 6), np.int64)
    >>> background_tokens(Stream(seed=0), 0, out, low=0, size=2, bos=2, query=3)
    >>> out[0, 0].item(), out[0, -1].item()
    (2, 3)
    """
    count, length = out.shape[0], out.shape[1] - EXTRA_POSITIONS
    words = stream.words("background", length, start, count, (length + 1) // 2)
    halves = np.ascontiguousarray(words, dtype="<u8").view("<u4")
    tokens = bounded(halves, size)
    tokens += low
    out[:, 0] = bos
    out[:, 1:-1] = tokens[:, :length]
    out[:, -1] = query


def noisy_labels(stream: Stream, start: int, length: int, labels: Ints, num_labels: int, noise: float) -> Ints:
    """Labels, each replaced with probability ``noise`` by a uniform other one.

    >>> noisy_labels(Stream(seed=0), 0, 8, np.array([0, 1, 1]), num_labels=2, noise=0.0).tolist()
    [0, 1, 1]
    """
    if noise == 0:
        return labels
    words = stream.words("noise", length, start, len(labels), 2)
    shift = 1 + bounded(words[:, 1], num_labels - 1)
    return np.where(open_unit(words[:, 0]) < noise, (labels + shift) % num_labels, labels)


def noisy_log_posterior(labels: Ints, num_labels: int, noise: float, vocab_size: int) -> Float[Tensor, "scored V"]:
    """Rows of log-probabilities: 1 - noise on the label, the rest shared by the other labels, nothing elsewhere.

    >>> noisy_log_posterior(np.array([1]), num_labels=2, noise=0.25, vocab_size=4).exp().tolist()
    [[0.25, 0.75, 0.0, 0.0]]
    """
    posterior = np.zeros((len(labels), vocab_size))
    posterior[:, :num_labels] = noise / (num_labels - 1)
    posterior[np.arange(len(labels)), labels] = 1 - noise
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(posterior))


def query_batch(
    vocabulary: Vocabulary, tokens: Ints, labels: Ints, sources: Callable[[], Ints], coupled: int = 0
) -> Batch:
    """The batch with its one target at the query.

    >>> from functools import partial
    >>> vocabulary = Vocabulary(names=("0", "1", "="), roles=("data", "data", "query"))
    >>> batch = query_batch(vocabulary, np.array([[0, 1, 2]]), np.array([1]), partial(np.array, [[1]]))
    >>> batch.targets.tolist()
    [[-100, -100, 1]]

    Args:
        tokens: (B, T).
        labels: (B,) target tokens.
        sources: a function that makes the (B, k) ascending source positions, padded with -1; not a lambda, see
            ``Batch``.
        coupled: k, to give the j-th source ID j and the query k + 1. 0 gives no IDs.
    """
    count, T = tokens.shape
    targets = np.full((count, T), IGNORE, dtype=np.int64)
    targets[:, -1] = labels
    position_ids = None
    if coupled:
        ids = np.zeros((count, 1, T), dtype=np.int64)
        np.put_along_axis(ids[:, 0], sources(), np.arange(1, coupled + 1)[None, :], axis=1)
        ids[:, 0, -1] = coupled + 1
        position_ids = torch.from_numpy(ids)

    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(targets),
        position_ids,
        partial(_at_the_query, sources, T),
        vocabulary=vocabulary,
    )


def recited_batch(vocabulary: Vocabulary, tokens: Ints, answers: Ints, places: Callable[[], Ints]) -> Batch:
    """The batch whose m answers, starting at the query, each repeat a token of the prompt.

    >>> from functools import partial
    >>> vocabulary = Vocabulary(names=("a", "b", "="), roles=("data", "data", "query"))
    >>> tokens, answers = np.array([[0, 1, 2, 0]]), np.array([[0, 1]])
    >>> batch = recited_batch(vocabulary, tokens, answers, partial(np.array, [[0, 1]]))
    >>> batch.targets.tolist()
    [[-100, -100, 0, 1]]

    Args:
        tokens: (B, T) with the prompt filled in; the m - 1 positions after the query are filled here.
        answers: (B, m).
        places: a function that makes the (B, m) repeated positions, or the (B, m, K) ascending sources of each
            answer; not a lambda, see ``Batch``.
    """
    count, T = tokens.shape
    m = answers.shape[1]
    tokens[:, T - m + 1 :] = answers[:, :-1]
    targets = np.full((count, T), IGNORE, dtype=np.int64)
    targets[:, T - m :] = answers
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(targets),
        None,
        partial(_from_the_query_on, places, T),
        vocabulary=vocabulary,
    )


def _at_the_query(sources: Callable[[], Ints], T: int) -> Int64[Tensor, "B T K"]:
    """The sources (B, K) of the one target."""
    one = sources()
    spread = np.full((len(one), T, one.shape[1]), -1, dtype=np.int64)
    spread[:, -1] = one
    return torch.from_numpy(spread)


def _from_the_query_on(places: Callable[[], Ints], T: int) -> Int64[Tensor, "B T K"]:
    """The sources of each of the last m targets, from (B, m) or (B, m, K)."""
    each = places()
    each = each[:, :, None] if each.ndim == 2 else each
    spread = np.full((len(each), T, each.shape[2]), -1, dtype=np.int64)
    spread[:, T - each.shape[1] :] = each
    return torch.from_numpy(spread)
