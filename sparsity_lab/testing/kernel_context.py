"""What a kernel makes of its context: where rows begin, documents, no causality, wide values, gates."""

from typing import Any

import torch
from torch import Tensor

from sparsity_lab.kernels import Kernel
from sparsity_lab.settings import SettingError
from sparsity_lab.testing.failing import differs, require
from sparsity_lab.testing.kernel_rows import (
    H,
    Rows,
    gates_of,
    normal,
    params_of,
    require_close,
    rows_of,
    tolerance_of,
)

_LENGTH, _START, _STOP = 29, 11, 20

_ELSEWHERE = "Count rows from `context.query_start`, and keys from 0."
_DOCUMENTS = "Ask `context.visible` which keys a row sees, or refuse `document_ids` in `_check_call`."
_LATER = "Read `context.causal`, or refuse `causal` in `_check_call`."
_WIDTH = "Take the width of the output from the values, or refuse `v` in `_check_call`."
_GATES = "Use it in every form, or do not declare it."


@torch.no_grad()
def check_context(kernel: Kernel, training: bool) -> None:
    """Each implementation serves what the context asks for, or refuses it with ``SettingError`` at its name.

    Raises:
        AssertionError: something does not hold.
    """
    for implementation in kernel.implementations:
        dtype = torch.float64 if implementation == kernel.implementations[0] else torch.float32
        options = {
            "implementation": implementation,
            "training": training,
            "params": params_of(kernel, dtype),
            **gates_of(kernel, _LENGTH, dtype),
        }
        subject, tolerance = f"{kernel}, {implementation!r}, training={training}", tolerance_of(kernel, dtype)
        rows = rows_of(_LENGTH, dtype)
        for documents in (None, _documents()):
            for causal in (True, False):
                asked: dict[str, Any] = {"causal": causal}
                if documents is not None:
                    asked["document_ids"] = documents
                _check_asked(
                    kernel,
                    rows,
                    options,
                    asked,
                    f"{subject}, causal={causal}, with{'out' * (documents is None)} documents",
                    tolerance,
                )
        _check_later_keys(kernel, rows, options, subject)
        _check_width(kernel, rows, options, subject, tolerance)
        _check_gates(kernel, rows, options, subject)


def _documents() -> Tensor:
    """Those of the first sequence follow each other, those of the second lie among each other."""
    place = torch.arange(_LENGTH)
    return torch.stack([(place >= 9) * 7 - 7, place % 2 * 5])


def _served(kernel: Kernel, rows: Rows, options: dict[str, Any], asked: dict[str, Any]) -> Tensor | None:
    """The output; None where one of the arguments that were asked for is refused by name."""
    try:
        q, k, v = rows
        return kernel.attend(q, k, v, **options, **asked)
    except SettingError as error:
        if error.path in asked:
            return None
        raise


def _check_asked(
    kernel: Kernel, rows: Rows, options: dict[str, Any], asked: dict[str, Any], subject: str, tolerance: float
) -> None:
    """Rows that begin elsewhere are rows of the whole; a row of a document is that row under a mask of its keys."""
    whole = _served(kernel, rows, options, asked)
    if whole is None:
        return
    q, k, v = rows
    part = kernel.attend(q[:, :, _START:_STOP], k, v, query_start=_START, **options, **asked)
    what = f"the output of rows {_START} .. {_STOP - 1} alone"
    require_close(subject, what, part, whole[:, :, _START:_STOP], 10 * tolerance, _ELSEWHERE)
    if "document_ids" not in asked:
        return
    expected, ids = torch.zeros_like(whole), asked["document_ids"]
    for document in ids.unique().tolist():
        own = ids == document
        row = kernel.attend(*rows, key_mask=own, **options, causal=asked["causal"])
        expected += row.masked_fill(~own[:, None, :, None], 0.0)
    require_close(subject, "the output of documents", whole, expected, 10 * tolerance, _DOCUMENTS)


def _check_later_keys(kernel: Kernel, rows: Rows, options: dict[str, Any], subject: str) -> None:
    before = _served(kernel, rows, options, {"causal": False})
    if before is None:
        return
    for t in range(_LENGTH - 1, 0, -1):
        changed = tuple(x.clone() for x in rows)
        for x in changed:
            x[:, :, t] += 1.0
        after = kernel.attend(*changed, **options, causal=False)
        if differs(after[:, :, :t], before[:, :, :t]):
            return
    require(False, subject, "without causal no row sees a later key", _LATER)


def _check_width(kernel: Kernel, rows: Rows, options: dict[str, Any], subject: str, tolerance: float) -> None:
    """Wide values, and narrow ones, give the columns that parts of them give."""
    q, k, v = rows
    plain = kernel.attend(q, k, v, **options)
    for wide in (torch.cat([v, -v[..., :3]], -1), v[..., :3].contiguous()):
        width = wide.shape[-1]
        try:
            out = kernel.attend(q, k, wide, **options)
        except SettingError as error:
            if error.path != "v":
                raise
            continue
        expected = torch.cat([plain, -plain[..., :3]], -1)[..., :width]
        require_close(subject, f"the output of values of width {width}", out, expected, 10 * tolerance, _WIDTH)


def _check_gates(kernel: Kernel, rows: Rows, options: dict[str, Any], subject: str) -> None:
    if not kernel.gates:
        return
    before = kernel.attend(*rows, **options)
    for name in kernel.gates:
        other = normal(1, H, _LENGTH, seed=4)[0][..., 0].to(rows[0].dtype)
        after = kernel.attend(*rows, **{**options, "gates": {**options["gates"], name: other}})
        require(differs(after, before), subject, f"the gate {name!r} changes nothing", _GATES)
