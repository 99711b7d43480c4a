"""Softplus attention by a compiled form, ``native.cpp``: one pass over a small tile, not eight over a large one.

The file is compiled when it is first used, and kept. It makes the products too. The alternative was numba: compiled
passes between PyTorch's products. For LSSA (T=4096, forward and backward, one thread of AVX-512, CPU time) that took
1.15 times as long as fused softmax with tiles of 256 x 256 scores. It took 1.2 with 256 x 1024, 1.6 with 64 x 256.
A pass wants tiles that stay in a core's own cache. PyTorch's products of small tiles are slow, since each call packs
its operands anew. With products whose sums stay in registers, tiles are as small as a pass wants: 0.87.
"""

import ctypes
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values
from sparsity_lab.kernels.parts.backward import own_backward
from sparsity_lab.kernels.parts.compiler import library

_SOURCE = Path(__file__).with_name("native.cpp")
_LOG2_E = math.log2(math.e)

_POINTERS = (
    *("q", "k", "v", "row_groups", "key_groups", "counts", "out", "statistics"),
    *("grad", "grad_q", "grad_k", "grad_v"),
)
_NUMBERS = ("N", "H", "R", "K", "D", "E", "start", "threads")


class _Call(ctypes.Structure):
    """``Call`` of native.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ("p", ctypes.c_double),
    )


def native_rows(q: Queries, k: Keys, v: Values, context: Context, p: float | None) -> Outputs:
    """``tiled_rows`` of softplus, in float32.

    Raises:
        SettingError: native.cpp does not compile here.
        MemoryError: there is too little for a tile.
    """
    library(_SOURCE)
    width = v.shape[3]
    q, k, v = (pad(x, (0, -x.shape[3] % 16)) for x in (q * _LOG2_E, k, v))
    counts = context.counts(q, k).squeeze(1).float().expand(len(q), -1).contiguous()
    out: Tensor = _NativeRows.apply(q, k, v, *_groups(q, k, context), counts, _start(context), p)  # type: ignore[no-untyped-call]
    return out[..., :width]


def _start(context: Context) -> int:
    return context.query_start if context.causal else -1


def _groups(q: Queries, k: Keys, context: Context) -> tuple[Tensor, Tensor]:
    """The document of each row, and that of each key, -1 of those that are hidden and of places up to a multiple of
    64."""
    batch_size, start = len(q), context.query_start
    keys = torch.zeros(batch_size, k.shape[2], dtype=torch.int64)
    rows = torch.zeros(batch_size, q.shape[2], dtype=torch.int64)
    if context.document_ids is not None:
        _, keys = torch.unique(context.document_ids[:, : k.shape[2]], return_inverse=True)
        rows = keys[:, start : start + q.shape[2]]
    if context.key_mask is not None:
        keys = keys.masked_fill(~context.key_mask[:, : k.shape[2]], -1)
    return rows.int().contiguous(), pad(keys.int(), (0, -k.shape[2] % 64), value=-1)


class _NativeRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        row_groups: Tensor,
        key_groups: Tensor,
        counts: Tensor,
        start: int,
        p: float | None,
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, statistics = q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(4, *q.shape[:3])
        tensors = q, k, v, row_groups, key_groups, counts, out, statistics
        _run_native(library(_SOURCE).softplus_forward, tensors, start, p)
        ctx.save_for_backward(*tensors)
        ctx.numbers = start, p
        return out

    @staticmethod
    @own_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = tuple(torch.zeros_like(x) for x in ctx.saved_tensors[:3])
        tensors = (*ctx.saved_tensors, grad.contiguous(), *gradients)  # they live on while C++ has their addresses
        _run_native(library(_SOURCE).softplus_backward, tensors, *ctx.numbers)
        return (*gradients, *[None] * 5)


def _run_native(function: Any, tensors: tuple[Tensor, ...], start: int, p: float | None) -> None:
    q, k, v = tensors[:3]
    pointers = [x.data_ptr() for x in tensors] + [None] * (len(_POINTERS) - len(tensors))
    numbers = q.shape[0] * q.shape[1], q.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3]
    if function(ctypes.byref(_Call(*pointers, *numbers, start, torch.get_num_threads(), p or 0.0))):
        raise MemoryError("too little memory for a tile of implementation='native'")
