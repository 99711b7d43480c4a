"""A decoding step of adaptive sparse attention by a compiled form, ``native.cpp``: one call, where PyTorch takes some
forty whose overhead is most of the time."""

import ctypes
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels.adaptive.fast import AdaptiveState, RowOutputs
from sparsity_lab.kernels.adaptive.formula import Rows, SelectionRule
from sparsity_lab.kernels.parts.compiler import library

SOURCE = Path(__file__).with_name("native.cpp")

_POINTERS = ("q", "beta", "moments", "box", "log_count", "blocks", "out")
_NUMBERS = (
    *("heads", "of_sequence", "M", "D", "E", "room", "held", "size"),
    *("length", "sinks", "local", "count", "threads"),
)


class _Step(ctypes.Structure):
    """``Step`` of native.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
    )


def native_row(q: Rows, state: AdaptiveState, rule: SelectionRule, beta: Float[Tensor, "G 2"]) -> RowOutputs:
    """``decoded_row`` in float32, where the rule alone says how many blocks a row keeps, for scores without a
    residual.

    Raises:
        SettingError: native.cpp does not compile here.
        MemoryError: there is too little for the scores of blocks.
    """
    summaries, q, (_, size, width) = state.summaries, q.contiguous(), state.blocks.shape
    batch_size, num_heads, group, _, head_dim = q.shape
    out = q.new_empty(batch_size, num_heads, group, 1, width - head_dim)
    # They live on while C++ has their addresses.
    tensors = q, beta.float().contiguous(), summaries.moments, summaries.box, summaries.log_count, state.blocks, out
    step = _Step(
        *(x.data_ptr() for x in tensors),
        *(batch_size * num_heads, num_heads, group, head_dim, width - head_dim),
        *(summaries.log_count.shape[1], len(state.blocks) // (batch_size * num_heads), size),
        *(state.length, rule.n_sink, rule.n_local, rule.k_free + rule.k_slack, torch.get_num_threads()),
    )
    if library(SOURCE).adaptive_step(ctypes.byref(step)):
        raise MemoryError("too little memory for a step of implementation='native'")
    return out
