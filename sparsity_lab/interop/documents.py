"""Documents for a model of ``transformers``: windows of tokens, each from a document of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sparsity_lab.settings import SettingError, Shown, check_that

Text = str | Sequence[Any] | Tensor
"""Documents: texts, or whole numbers, the tokens of each; a single text or row of tokens is cut into parts."""


def windows_of(text: Text, tokenizer: Any, size: int, most: int, vocab_size: int) -> Int64[Tensor, "documents size"]:
    """The first ``size`` tokens of each document that has so many, of ``most`` documents at most.

    Args:
        tokenizer: of ``transformers``, called on texts; None where documents are tokens already.

    Raises:
        SettingError: texts without a tokenizer, tokens that the model does not know, or fewer than two windows.
    """
    single = _is_single(text)
    documents = [_tokens(one, tokenizer) for one in ([text] if single else text)]
    if single:
        documents = list(torch.split(documents[0], size))
    found = [one[:size] for one in documents if len(one) >= size][:most]
    if len(found) < 2:
        longest = max((len(one) for one in documents), default=0)
        got = Shown(f"{len(found)} such document{'s' * (len(found) != 1)}, the longest of {longest} tokens")
        raise SettingError("text", f"at least two documents of {size} tokens, one more than the largest length", got)
    windows = torch.stack(found)
    check_known("text", windows, vocab_size)
    return windows


def tokens_of(text: Text, tokenizer: Any, least: int, vocab_size: int) -> Int64[Tensor, " n"]:
    """All documents as one row of tokens, at least so many.

    Raises:
        SettingError: as ``windows_of``; or fewer tokens.
    """
    documents = [text] if _is_single(text) else text
    found = [_tokens(one, tokenizer) for one in documents]
    row = torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)
    check_that(len(row) >= least, "text", f"at least {least} tokens", len(row))
    check_known("text", row, vocab_size)
    return row


def _is_single(text: Text) -> bool:
    check_that(_is_several(text), "text", "documents, texts or rows of tokens", Shown(type(text).__name__))
    return isinstance(text, str) or (len(text) > 0 and not _is_several(text[0]))


def _is_several(one: object) -> bool:
    """A text, or a list of any kind; a number in a tensor is none."""
    return isinstance(one, str | Sequence | Tensor | np.ndarray) and getattr(one, "ndim", 1) > 0


def check_known(name: str, tokens: Int64[Tensor, "*shape"], vocab_size: int) -> None:
    """Raise ``SettingError`` for tokens that a model does not know."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise SettingError(name, f"tokens 0 .. {vocab_size - 1} of the model", low if low < 0 else high)


def _tokens(document: Any, tokenizer: Any) -> Int64[Tensor, " n"]:
    if isinstance(document, str):
        if not callable(tokenizer):
            raise SettingError("tokenizer", "the model's tokenizer, for documents of text", tokenizer)
        # A tokenizer warns of texts longer than its model; here they are cut.
        return torch.tensor(tokenizer(document, verbose=False)["input_ids"], dtype=torch.int64)
    try:
        tokens = torch.as_tensor(document)
    except (TypeError, ValueError) as error:
        raise SettingError("text", "texts, or rows of whole numbers", Shown(f"{document!r:.60} ({error})")) from None
    if tokens.ndim != 1 or tokens.dtype == torch.bool or not torch.can_cast(tokens.dtype, torch.int64):
        got = Shown(f"{tokens.dtype} of shape {tuple(tokens.shape)}")
        raise SettingError("text", "texts, or rows of whole numbers", got)
    return tokens.to(torch.int64)
