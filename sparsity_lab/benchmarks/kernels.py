"""Speed and memory of the attention mechanisms, compared with PyTorch's fused softmax in the same run.

Every registered kernel takes part with the instances that its ``benchmarked`` gives. Times are medians of a few
calls that alternate with ``scaled_dot_product_attention(is_causal=True)``; what counts are the ratios.
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from sparsity_lab.analysis.memory import peak_memory
from sparsity_lab.benchmarks.measure import alternate, measured_device, seconds, wait_for
from sparsity_lab.kernels import AdaptiveSparse, Audit, Kernel, KernelState, KeyValueCache
from sparsity_lab.kernels.adaptive.audit import spread_rows
from sparsity_lab.settings import SettingError, from_text, kinds

LENGTHS = (2048, 4096, 8192)
DECODED_LENGTHS = (1024, 131_072)

_H, _D = 4, 64
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 21
_STEPS = 4
"""Consecutive decoding steps, as in real use. A single step after other work would find its code and data gone from
the caches."""
_PIECE = 1024
"""Tokens of a prompt that are taken up at once."""
_AUDITED = 64
"""AttendInputs of the second half in which retained mass is looked at."""

# A frame needs the types also of columns where nothing was measured.
_COLUMNS = {
    "kernel": pl.String,
    "runs": pl.String,
    "where": pl.String,
    "input": pl.String,
    "T": pl.Int64,
    "pass": pl.String,
    "ms": pl.Float64,
    "SDPA ms": pl.Float64,
    "over SDPA": pl.Float64,
    "peak MiB": pl.Float64,
    "peak over SDPA": pl.Float64,
    "first, s": pl.Float64,
    "retained": pl.Float64,
    "over oracle": pl.Float64,
}


@dataclass(frozen=True)
class AttendInputs:
    """Queries, keys and values (1, H, T, D) that want a gradient, and the gradient of the output."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor


def kernels(only: Sequence[str] = (), lengths: Sequence[int] = LENGTHS, device: str = "cpu") -> pl.DataFrame:
    """Attention mechanisms compared with fused softmax (SDPA): time and peak memory of forward, backward and
    decoding.

    B=1, H=4, D=64, float32, causal, in training. On ``cuda`` forward + backward in bfloat16, with D=64 and 128, which
    ``input`` names.

    - ``runs`` is the implementation that ran: that of ``"auto"``, and ``"native"`` where a kernel has it.
    - ``pass`` is ``forward``; or ``both``, forward + backward with gradients of queries, keys, values and parameters;
      or ``decode``, one step on a state of T tokens. The ratio of a decoding step comes from a few steps that
      alternate with single queries of SDPA on T keys. Its time comes from steps without such breaks.
    - ``SDPA ms`` is SDPA's time in these turns, of the same pass.
    - ``peak MiB`` is what ``peak_memory`` says: results, gradients and all between.
    - ``first, s`` is the first forward + backward at that length, before any timing; where an implementation is
      compiled, that is paid there.
    - ``retained`` is the share of dense attention's mass in the blocks that ``AdaptiveSparse`` keeps. It is a mean
    over all heads and some rows drawn from the second half. ``over oracle`` divides it by the mean mass that the same
    number of blocks would retain if they were the best ones for each row and head.
    - ``input`` is standard normal rows, or ``structured``: see ``structured_rows``.

    Args:
        only: kinds of kernels, or kernels in short form; nothing means all.
        lengths: T of the forward and backward passes.
        device: ``cpu`` or ``cuda``.

    Raises:
        SettingError: no such kernel or device, or a length below 1.
    """
    accelerated = measured_device(device).type != "cpu"
    for length in lengths:
        if length < 1:
            raise SettingError("--lengths", "at least 1", length)
    rows: list[dict[str, object]] = []
    for kernel in chosen(only):
        for name in kernel.benchmark_inputs:
            for T in lengths:
                if accelerated:
                    rows += _device_rows(kernel, name, T, device)
                    continue
                for implementation in ("auto", *({"native"} & {*kernel.implementations})):
                    rows += _attend_rows(kernel, name, T, implementation)
        for implementation in () if accelerated else ("auto", *kernel.decoders):
            rows += [_decode_row(kernel, T, implementation) for T in DECODED_LENGTHS]
    return pl.DataFrame(rows, schema=_COLUMNS)


def random_rows(length: int, head_dim: int, dtype: torch.dtype, device: str) -> AttendInputs:
    """Standard normal rows."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = torch.randn(4, 1, _H, length, head_dim, generator=generator).to(device, dtype)
    return _leaves(q, k, v, grad)


def structured_rows(length: int, head_dim: int, dtype: torch.dtype, device: str) -> AttendInputs:
    """Queries and keys of norm one whose neighbors are alike: x_t = 0.99 x_(t-1) + sqrt(1 - 0.99²) ε_t, normalized.

    The queries are scaled so that logits, <q, k> / sqrt(D), are 8 times the cosine.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = torch.randn(4, 1, _H, length, head_dim, generator=generator)
    for x in (q, k):
        for t in range(1, length):
            x[:, :, t] = 0.99 * x[:, :, t - 1] + (1 - 0.99**2) ** 0.5 * x[:, :, t]
    q, k = 8 * head_dim**0.5 * normalize(q, dim=-1), normalize(k, dim=-1)
    q, k, v, grad = (x.to(device, dtype) for x in (q, k, v, grad))
    return _leaves(q, k, v, grad)


_INPUTS = {"random": random_rows, "structured": structured_rows}


def _leaves(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> AttendInputs:
    return AttendInputs(
        q.clone().requires_grad_(), k.clone().requires_grad_(), v.clone().requires_grad_(), grad.clone()
    )


@functools.lru_cache(maxsize=4)
def _rows(name: str, length: int, head_dim: int, dtype: torch.dtype, device: str) -> AttendInputs:
    """AttendInputs are drawn once for all kernels."""
    return _INPUTS[name](length, head_dim, dtype, device)


def chosen(only: Sequence[str]) -> list[Kernel]:
    """The instances to measure."""
    known = {kind: cls for kind, cls in kinds("kernel").items() if issubclass(cls, Kernel)}
    chosen: list[Kernel] = []
    for text in only or known:
        chosen += known[text].benchmarked() if text in known else [from_text(Kernel, text, "--only")]
    return chosen


def _attend_rows(kernel: Kernel, name: str, T: int, implementation: str) -> list[dict[str, object]]:
    """Forward, and forward + backward, at one length."""
    rows = _rows(name, T, _D, torch.float32, "cpu")
    dense, own = _sdpa(rows), _attention(kernel, rows, implementation)
    first_call = seconds(own.both)
    measured = []
    for which in ("forward", "both"):
        dense_time, time, ratio = _alternated(getattr(dense, which), getattr(own, which))
        peak = peak_memory(getattr(own, which))
        measured.append(
            _common(kernel, rows.q, implementation)
            | {
                "input": name,
                "T": T,
                "pass": which,
                "ms": 1e3 * time,
                "SDPA ms": 1e3 * dense_time,
                "over SDPA": ratio,
                "peak MiB": peak / 2**20,
                "peak over SDPA": peak / _sdpa_peak(which, T),
            }
        )
    measured[-1] |= {"first, s": first_call}
    if isinstance(kernel, AdaptiveSparse):
        audit = _audit(kernel, rows)
        measured[-1] |= {"retained": float(audit.retained.mean()), "over oracle": audit.over_oracle()}
    return measured


def _audit(kernel: AdaptiveSparse, rows: AttendInputs) -> Audit:
    """Of rows that have a choice; drawn, since evenly spaced ones would all lie alike in their blocks."""
    length = rows.q.shape[2]
    looked_at = spread_rows(length, length // 2, _AUDITED, 1, torch.Generator().manual_seed(0), rows.q.device)
    return kernel.audit(rows.q, rows.k, rows=looked_at, params=_params(kernel, rows.q))


@functools.cache
def _sdpa_peak(which: str, T: int) -> int:
    """SDPA's peak memory does not depend on what is attended to."""
    return peak_memory(getattr(_sdpa(_rows("random", T, _D, torch.float32, "cpu")), which))


def _decode_row(kernel: Kernel, T: int, implementation: str) -> dict[str, object]:
    """One decoding step on a state of T tokens."""
    rows = _rows("random", T, _D, torch.float32, "cpu")
    q, k, v = (x.detach() for x in (rows.q, rows.k, rows.v))
    params, room = _params(kernel, q), _STEPS * (2 * max(_FEWEST_ROUNDS, _MOST_ROUNDS) + 3)
    state = kernel.init_state(1, kernel.own_heads(_H, _H), _D, T + room, implementation=implementation)
    _take_up(kernel, state, q, k, v, params)
    step = [x[:, :, :1] for x in (q, k, v)]

    def own() -> None:
        for _ in range(_STEPS):
            kernel.decode(*step, state=state, params=params)

    def dense() -> None:
        for _ in range(_STEPS):
            scaled_dot_product_attention(step[0], k, v)

    own()
    dense_time, _, ratio = _alternated(dense, own)
    # Dense steps in between empty the processor's cache of what a small state has in it.
    own()
    ms = 1e3 / _STEPS * statistics.median(seconds(own) for _ in range(_MOST_ROUNDS))
    dense_ms = 1e3 / _STEPS * dense_time
    times = {"ms": ms, "SDPA ms": dense_ms, "over SDPA": ratio}
    return _common(kernel, q, implementation) | {"input": "random", "T": T, "pass": "decode"} | times


def _take_up(kernel: Kernel, state: KernelState, q: Tensor, k: Tensor, v: Tensor, params: nn.Module | None) -> None:
    """Bring the state to T tokens. A plain cache is filled directly: a dense prompt of that length takes minutes."""
    # A state that remembers more than the cache is left to its kernel.
    if type(state) is KeyValueCache:
        state.append(k, v)
        return
    for start in range(0, q.shape[2], _PIECE):
        piece = (x[:, :, start : start + _PIECE] for x in (q, k, v))
        kernel.prefill(*piece, state=state, params=params)


@dataclass(frozen=True)
class _Passes:
    """The two calls that are timed."""

    forward: Callable[[], object]
    both: Callable[[], object]


def _sdpa(rows: AttendInputs) -> _Passes:
    def attend() -> Tensor:
        return scaled_dot_product_attention(rows.q, rows.k, rows.v, is_causal=True)

    return _passes(attend, rows, ())


def _attention(kernel: Kernel, rows: AttendInputs, implementation: str = "auto") -> _Passes:
    params, generator = _params(kernel, rows.q), torch.Generator(rows.q.device)

    def attend() -> Tensor:
        drawn = generator.manual_seed(0)
        return kernel.attend(rows.q, rows.k, rows.v, params=params, generator=drawn, implementation=implementation)

    return _passes(attend, rows, () if params is None else tuple(params.parameters()))


def _passes(attend: Callable[[], Tensor], rows: AttendInputs, parameters: Sequence[Tensor]) -> _Passes:
    leaves = (rows.q, rows.k, rows.v, *parameters)
    wait = functools.partial(wait_for, rows.q.device)

    @torch.no_grad()
    def forward() -> None:
        attend()
        wait()

    def both() -> None:
        # Parameters of an auxiliary loss alone get no gradient from the output.
        torch.autograd.grad(attend(), leaves, rows.grad, allow_unused=True)
        wait()

    return _Passes(forward, both)


def _device_rows(kernel: Kernel, name: str, T: int, device: str) -> list[dict[str, object]]:
    """Forward + backward in bfloat16 on a GPU, for two sizes of a head."""
    measured: list[dict[str, object]] = []
    for D in (64, 128):
        rows = _rows(name, T, D, torch.bfloat16, device)
        dense, own = _sdpa(rows), _attention(kernel, rows)
        first_call = seconds(own.both)
        dense_time, time, ratio = _alternated(dense.both, own.both)
        peaks = [_peak_on_device(passes.both, rows.q.device) for passes in (own, dense)]
        times = {"ms": 1e3 * time, "SDPA ms": 1e3 * dense_time, "over SDPA": ratio, "first, s": first_call}
        memory = {"peak MiB": peaks[0] / 2**20, "peak over SDPA": peaks[0] / peaks[1]}
        measured.append(
            _common(kernel, rows.q) | {"input": f"{name}, D={D}", "T": T, "pass": "both"} | times | memory
        )
    return measured


def _peak_on_device(function: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call needs in addition to what is already allocated."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def _params(kernel: Kernel, q: Tensor) -> nn.Module | None:
    params = kernel.build(kernel.own_heads(_H, _H), q.shape[-1], 0)
    return None if params is None else params.to(q.device)


def _alternated(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float, float]:
    """``alternate`` for about a second, but three rounds at least, after a call of each."""
    once = seconds(first) + seconds(second)
    return alternate(first, second, rounds=max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(1.0 / once))))


def _common(kernel: Kernel, q: Tensor, implementation: str = "auto") -> dict[str, object]:
    dtype = str(q.dtype).removeprefix("torch.")
    return {
        "kernel": str(kernel),
        "runs": kernel.implementation(q) if implementation == "auto" else implementation,
        "where": f"{q.device.type} {dtype}" + (f", {torch.get_num_threads()} threads" if not q.is_cuda else ""),
    }
