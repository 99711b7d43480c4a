"""What every position scheme must do."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sparsity_lab.kernels import KernelPosition
from sparsity_lab.models import Decoder, PositionScheme
from sparsity_lab.settings import SettingError
from sparsity_lab.testing.failing import differs, made, must_raise, require, without_global_randomness
from sparsity_lab.testing.setting import check_setting

_HEADS, _SIZE, _LENGTH = 4, 8, 12
_FURTHEST = 2**20
_SOME = [0, 2, 3, 7, 11]
_SERVE = f"Serve every index up to {_FURTHEST}, or say the largest one in `limit()`."
_OF_THE_INDEX = "Compute it from each index alone, independent of its place and of all other input."
_DTYPES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def check_position(scheme: PositionScheme) -> None:
    """Check a position scheme on its own and inside a small decoder.

    What it gives to kernels is of the declared ``kernel_kind``: a rotation keeps norms, any tile of a bias is that
    tile of the whole, both keep shapes and types. The result for an index depends only on that index, not on its
    place, other sequences or global generators. Other indices give other results. The indices stay unchanged. Every
    index up to ``limit()`` is served, up to 2^20 if there is none, and those beyond are refused with
    ``SettingError``, in a decoder too. A scheme that is ``relative`` gives the same outputs when all indices move. A
    decoder with it is causal, and treats a sequence alone as it does in a batch.

    Raises:
        AssertionError: something does not hold; the message says what, and what to do.

    Example:
        >>> from sparsity_lab.models import RoPE
        >>> check_position(RoPE(base=500.0))
    """
    check_setting(scheme)
    scheme.check_heads(_HEADS, _SIZE)
    _check_limit(scheme)
    _check_embedding(scheme)
    _check_kernel_position(scheme)
    _check_in_a_decoder(scheme)


def _indices(scheme: PositionScheme) -> Tensor:
    """(2, T) indices of two sequences, the second as far as the scheme goes."""
    top = scheme.limit()
    far = _FURTHEST if top is None else top
    require(
        far >= _LENGTH, scheme, f"its largest index is {far}", f"Check an instance that serves {_LENGTH} or more."
    )
    first = torch.arange(_LENGTH) + min(1, far + 1 - _LENGTH)
    second = first * (far // _LENGTH)
    second[-1] = far
    return torch.stack([first, second])


def _check_limit(scheme: PositionScheme) -> None:
    top = scheme.limit()
    if top is None:
        made(lambda: scheme.check_index(10**7), scheme, "it refuses an index", "Say the largest one in `limit()`.")
        return
    made(lambda: scheme.check_index(top), scheme, f"it refuses index {top}, its limit", "See `check_index`.")
    beyond = f"index {top + 1}, beyond its limit,"
    must_raise(lambda: scheme.check_index(top + 1), SettingError, scheme, beyond, "See `check_index`.")


def _served(scheme: PositionScheme, make: Callable[[Tensor], Tensor], indices: Tensor, what: str) -> Tensor:
    """What is made of the indices, which stay as they are; the same under every global seed."""
    given = indices.clone()
    made(partial(make, indices), scheme, f"{what} fails", _SERVE)
    require(not differs(indices, given), scheme, f"{what} changes the indices it is given", "Work on a copy.")
    return without_global_randomness(partial(make, indices), scheme, what)


def _check_embedding(scheme: PositionScheme) -> None:
    width = _HEADS * _SIZE
    module = scheme.build(width)
    if module is None:
        return
    indices = _indices(scheme)
    with torch.no_grad():
        whole = _served(scheme, module, indices, "its embedding")
        shape = f"the embedding of {tuple(indices.shape)} indices has shape {tuple(whole.shape)}"
        require(whole.shape == (2, _LENGTH, width), scheme, shape, "Give (B, T, d_model).")
        require(bool(whole.isfinite().all()), scheme, "the embedding of an index is not finite", _OF_THE_INDEX)
        found = "an index has another embedding at another place"
        for order in (_SOME, _SOME[::-1]):
            some = module(indices[1:, order])
            require(not differs(some, whole[1:, order]), scheme, found, _OF_THE_INDEX)
        moves = differs(whole[0], whole[0, :1].expand_as(whole[0]))
        require(moves, scheme, "all indices have the same embedding", _OF_THE_INDEX)


def _check_kernel_position(scheme: PositionScheme) -> None:
    kind = scheme.kernel_kind
    remedy = 'Set `kernel_kind` to "rotate" or "bias", and return such a position; or neither.'
    require(kind in (None, "rotate", "bias"), scheme, f"its kernel_kind is {kind!r}", remedy)
    for dtype, tolerance in _DTYPES.items():
        indices = _indices(scheme)
        make = partial(scheme.kernel_position, indices.clone(), _HEADS, _SIZE, dtype)
        position = made(make, scheme, "its position fails", _SERVE)
        got = None if position is None else position.kind
        require(got == kind, scheme, f"kernel_kind is {kind!r}, and kernel_position gives {got!r}", remedy)
        if position is None:
            continue
        covers = (position.batch_size, position.length)
        found = f"for indices of shape {tuple(indices.shape)} its position says (batch_size, length) = {covers}"
        require(covers == tuple(indices.shape), scheme, found, "Take both from the indices.")
        position.check_heads(_HEADS, _SIZE)
        apply = partial(_applied, scheme, dtype)
        whole = _served(scheme, apply, indices, "its position")
        if kind == "rotate":
            _check_rotation(scheme, position, dtype, tolerance)
        else:
            _check_bias(scheme, position, whole)
        _check_of_the_index(scheme, apply, indices, whole, tolerance)


def _applied(scheme: PositionScheme, dtype: torch.dtype, indices: Tensor) -> Tensor:
    """Rows of ones rotated, or the biases, at these indices."""
    position = scheme.kernel_position(indices, _HEADS, _SIZE, dtype)
    assert position is not None
    if scheme.kernel_kind == "rotate":
        return position.rotate(torch.ones(len(indices), _HEADS, indices.shape[1], _SIZE, dtype=dtype))
    bias = position.bias(slice(0, indices.shape[1]), slice(0, indices.shape[1]))
    require(bias is not None, scheme, "kernel_kind is 'bias' and there is none", "Return it from `bias`.")
    assert bias is not None
    return bias


def _check_of_the_index(
    scheme: PositionScheme, apply: Callable[[Tensor], Tensor], indices: Tensor, whole: Tensor, tolerance: float
) -> None:
    """Some of the indices of one sequence by themselves give what they give among all; other indices do not."""
    some, expected = apply(indices[1:, _SOME]), whole[-1:, :, _SOME]
    if scheme.kernel_kind == "bias":
        seen = torch.ones(len(_SOME), len(_SOME)).tril().bool()
        some, expected = (x.masked_fill(~seen, 0.0) for x in (some, expected[..., _SOME]))
    off = float((some - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    found = f"what its position does at an index depends on more than the index, by {off:.2g}"
    require(off <= tolerance, scheme, found, _OF_THE_INDEX)
    of_places = whole[0, :, -1].T if scheme.kernel_kind == "bias" else whole[0].transpose(0, 1)
    moves = differs(of_places, of_places[:1].expand_as(of_places))
    require(moves, scheme, "its position does the same at all indices", _OF_THE_INDEX)


def _check_rotation(scheme: PositionScheme, position: KernelPosition, dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(2, _HEADS, _LENGTH, _SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)
    given = x.clone()
    turned = position.rotate(x)
    require(not differs(x, given), scheme, "rotate changes the rows it is given", "Return new rows.")
    form = f"rotate makes {dtype} rows of shape {tuple(x.shape)} into {turned.dtype} of shape {tuple(turned.shape)}"
    require(turned.shape == x.shape and turned.dtype == dtype, scheme, form, "Keep shape and type.")
    off = float((turned.double().norm(dim=-1) / x.double().norm(dim=-1) - 1).abs().max())
    require(
        off < tolerance, scheme, f"rotate changes norms by a factor of up to 1 ± {off:.2g}", "A rotation keeps them."
    )
    part = position.rotate(x[:, :, 5:], start=5)
    same = float((part - turned[:, :, 5:]).abs().max()) <= tolerance
    require(same, scheme, "rows 5 and on, rotated with start=5, are not those of all rows", "Count from `start`.")


def _check_bias(scheme: PositionScheme, position: KernelPosition, whole: Tensor) -> None:
    fits = whole.ndim == 4 and all(
        size in allowed
        for size, allowed in zip(whole.shape, ((1, 2), (1, _HEADS), (_LENGTH,), (_LENGTH,)), strict=True)
    )
    form = f"the bias of {_LENGTH} rows on as many keys has shape {tuple(whole.shape)}"
    require(fits, scheme, form, "Give (B or 1, H or 1, rows, keys).")
    seen = whole[..., torch.ones(_LENGTH, _LENGTH).tril().bool()]
    require(
        bool(seen.isfinite().all()), scheme, "the bias on a visible key is not finite", "Leave masks to the kernel."
    )
    tile = position.bias(slice(3, 7), slice(1, 6))
    assert tile is not None
    same = torch.equal(tile, whole[:, :, 3:7, 1:6])
    require(same, scheme, "the bias of rows 3 .. 6 on keys 1 .. 5 is not that of all", "Use both slices.")


@torch.no_grad()
def _check_in_a_decoder(scheme: PositionScheme) -> None:
    model = Decoder(position=scheme, num_layers=2, num_heads=_HEADS, d_model=_HEADS * _SIZE).build(0).double()
    tokens = torch.randint(8, (2, _LENGTH), generator=torch.Generator().manual_seed(1))
    logits = model(tokens).logits
    changed = tokens.clone()
    changed[:, -1] = (tokens[:, -1] + 1) % 8
    off = float((model(changed).logits - logits)[:, :-1].abs().max())
    require(
        off < 1e-12, scheme, f"in a decoder, the last token changes earlier outputs by {off:.2g}", "Look back only."
    )
    alone = float((model(tokens[1:]).logits - logits[1:]).abs().max())
    require(
        alone < 1e-10, scheme, f"a sequence alone differs from the same in a batch by {alone:.2g}", "Do not mix rows."
    )
    again = differs(copy.deepcopy(model)(tokens).logits, logits)
    require(not again, scheme, "the same model gives other outputs the second time", "Draw nothing at random.")
    top = scheme.limit()
    if top is not None:
        beyond = torch.arange(top + 2 - _LENGTH, top + 2)[None]
        what = f"in a decoder, index {top + 1}, beyond its limit,"
        must_raise(lambda: model(tokens, indices=beyond), SettingError, scheme, what, "See `check_index`.")
    if scheme.relative:
        by = 300 if top is None else top + 1 - _LENGTH
        off = float((model(tokens, indices=torch.arange(_LENGTH)[None] + by).logits - logits).abs().max())
        found = f"it says it is relative, and indices moved by {by} change outputs by {off:.2g}"
        require(off < 1e-9, scheme, found, "Use differences of indices only, or say `relative = False`.")
