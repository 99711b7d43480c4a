"""The cache of keys and values: what goes in comes out, however it grew."""

import itertools
from typing import Any

import pytest
import torch

from sparsity_lab.kernels import KeyValueCache, RowKind
from sparsity_lab.settings import SettingError

ROWS = torch.randn(2, 2, 3, 100, 4, generator=torch.Generator().manual_seed(0))


def cache(capacity: int = 100) -> KeyValueCache:
    return KeyValueCache(RowKind(2, 3, 4, 4, torch.float32, torch.device("cpu")), capacity)


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [0, 17, 1, 1, 40, 2, 39]], ids=["one piece", "tokens", "pieces"])
def test_it_holds_what_was_added(sizes: list[int]) -> None:
    """Bit by bit at every length, with little room to spare, up to the whole capacity."""
    k, v = ROWS
    state = cache()
    seen = torch.rand(2, 100, generator=torch.Generator().manual_seed(1)) < 0.5
    masked_from = 0
    for piece, size in enumerate(sizes):
        now = slice(state.length, state.length + size)
        # A mask that comes late: all before it count.
        masked = piece >= len(sizes) // 2
        masked_from = masked_from if masked else now.stop
        state.append(k[:, :, now], v[:, :, now], seen[:, now] if masked else None)
        assert torch.equal(state.keys, k[:, :, : now.stop])
        assert torch.equal(state.values, v[:, :, : now.stop])
        assert state.keys.stride(1) <= 4 * (now.stop + 16), "a head's rows are far from the next one's"
    assert state.key_mask is not None
    assert state.key_mask[:, :masked_from].all()
    assert torch.equal(state.key_mask[:, masked_from:], seen[:, masked_from:])
    with pytest.raises(SettingError, match=r"state.capacity: expected enough room for 101 tokens, got 100"):
        state.append(k[:, :, :1], v[:, :, :1])


def test_growing_copies_little() -> None:
    """Of 3,000 tokens that come one by one, few make the cache move to a larger buffer."""
    state, row = cache(3000), ROWS[0, :, :, :1]
    buffers = []
    for _ in range(3000):
        state.append(row, row)
        buffers.append(state.keys.data_ptr())
    assert 30 < sum(one != other for one, other in itertools.pairwise(buffers)) < 80


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"device": "meta"}, r"state: expected rows of .* on cpu, got .* on meta"),
    ({"dtype": torch.bfloat16}, r"state: expected rows of .*float32 .*, got .*bfloat16 on cpu"),
]


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize(("other", "message"), OTHERS, ids=["device", "dtype"])
def test_other_rows_are_refused_before_anything(which: str, other: dict[str, Any], message: str) -> None:
    state = cache()
    first = {"k": ROWS[0, :, :, :5], "v": ROWS[1, :, :, :5]}
    state.append(**first)
    with pytest.raises(SettingError, match=message):
        state.append(**{name: x.to(**other) if name == which else x for name, x in first.items()})
    assert state.length == 5
    assert torch.equal(state.keys, first["k"])
    assert torch.equal(state.values, first["v"])
