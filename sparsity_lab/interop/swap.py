"""``swap_report``: what an existing model loses or gains when its attention is exchanged.

The same targets are predicted with every length of context. Each document gives one window of the largest length plus
one token. At context T the model reads the T tokens before the window's end. The loss is the mean over the last S
targets, where S is half the smallest length. So neither lengths nor mechanisms differ in what is predicted, and
differences are paired by document.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparsity_lab.analysis.memory import peak_memory
from sparsity_lab.interop.attach import attach, check_kernel, detach
from sparsity_lab.interop.attention import AttachedKernel
from sparsity_lab.interop.documents import Text, windows_of
from sparsity_lab.interop.extra import pretrained
from sparsity_lab.interop.swap_results import AS_IT_IS, REWEIGHTED, SwapReport
from sparsity_lab.kernels import Kernel, Reweighted
from sparsity_lab.settings import SettingError, whole

SwapProgress = Callable[[str, int, int], None]
"""Called with the arm that was measured, how many passes of the model are done, and how many there are."""

_SHARPENED = Reweighted()
_LENGTHS = (128, 256, 512, 1024)


def swap_report(
    model: nn.Module,
    text: Text,
    kernels: Sequence[Kernel],
    lengths: Sequence[int] = _LENGTHS,
    *,
    tokenizer: Any = None,
    documents: int = 16,
    reweighted: Kernel | None = _SHARPENED,
    seed: int = 0,
    progress: SwapProgress | None = None,
) -> SwapReport:
    """Measure an existing model unchanged, with each mechanism in place of its attention, and with its own softmax
    attention re-weighted at test time alone. Weights are never changed, and the model leaves as it came.

    >>> swap_report(llama, torch.arange(400) % 8, [LSSA()], lengths=(8, 16)).arms
    ('as it is', 'LSSA()', 're-weighted')

    Args:
        model: as for ``attach``, with no kernel attached.
        text: documents, as texts or as tokens; a single one is cut into parts of its own.
        kernels: the mechanisms; learned parameters have their initial values.
        lengths: of context, in tokens.
        tokenizer: of ``transformers``, for texts.
        documents: at most so many are read.
        reweighted: the last arm; None leaves it out.
        seed: of learned parameters.
        progress: called after each pass.

    Raises:
        SettingError: a model or a kernel that ``attach`` refuses, lengths that the model cannot read, or documents
            that are too short.
    """
    base: Any = pretrained(model)
    whole("documents", documents, 2)
    whole("seed", seed, None)
    if any(isinstance(module, AttachedKernel) for module in model.modules()):
        raise SettingError("model", "a kernel is attached; call detach(model) first")
    for name, several in {"kernels": kernels, "lengths": lengths}.items():
        if not isinstance(several, list | tuple):
            raise SettingError(name, "a list", several)
    config = base.config.get_text_config(decoder=True)
    for i, one in enumerate(kernels):
        check_kernel(one, f"kernels[{i}]", config)
    if not kernels and reweighted is None:
        raise SettingError("kernels", "at least one, where nothing is re-weighted", kernels)
    ordered = _checked_lengths(lengths, config)
    arms: dict[str, Kernel | None] = {AS_IT_IS: None, **{str(kernel): kernel for kernel in kernels}}
    if reweighted is not None:
        arms[REWEIGHTED] = reweighted
    windows = windows_of(text, tokenizer, ordered[-1] + 1, documents, config.vocab_size)
    for kernel in arms.values():
        if kernel is not None:
            detach(attach(model, kernel, seed=seed))
    was_training = model.training
    model.eval()
    try:
        return _measured(model, base, arms, windows, ordered, seed, progress)
    finally:
        if any(isinstance(module, AttachedKernel) for module in model.modules()):
            detach(model)
        model.train(was_training)


def _checked_lengths(lengths: Sequence[int], config: Any) -> tuple[int, ...]:
    ordered = tuple(sorted({whole("lengths", length, 2) for length in lengths}))
    if not ordered:
        raise SettingError("lengths", "one or more", ())
    most = _declared(config)
    # A table of positions ends; a rotation does not.
    if getattr(config, "rope_parameters", None) is None and most is not None and ordered[-1] > most:
        raise SettingError("lengths", f"at most {most}, the model's number of positions", ordered[-1])
    return ordered


def _declared(config: Any) -> int | None:
    most = getattr(config, "max_position_embeddings", None)
    return None if most is None else int(most)


def _measured(
    model: nn.Module,
    base: Any,
    arms: Mapping[str, Kernel | None],
    windows: Int64[Tensor, "documents size"],
    lengths: tuple[int, ...],
    seed: int,
    progress: SwapProgress | None,
) -> SwapReport:
    windows = windows.to(next(model.parameters()).device)
    longest, targets = lengths[-1], max(1, lengths[0] // 2)
    groups = {length: torch.split(windows, max(1, longest // length)) for length in lengths}
    total = len(arms) * (sum(map(len, groups.values())) + 1)
    done, losses, seconds, space = 0, {arm: {} for arm in arms}, {}, {}  # type: ignore[var-annotated]
    token_losses(
        model, groups[longest][0], longest, 1
    )  # the first pass of a model pays for what all later ones find ready
    for length in lengths:
        found: dict[str, list[tuple[Tensor, float]]] = {arm: [] for arm in arms}
        for group in groups[length]:
            for arm, kernel in arms.items():  # in turns, so that drift of the machine's speed falls on all
                if kernel is not None:
                    attach(model, kernel, seed=seed)
                keep = longest if length == longest else targets
                found[arm].append(_timed(model, group, length, keep))
                if length == longest and group is groups[length][0]:
                    space[arm] = peak_memory(lambda: token_losses(model, group, longest, targets), windows.device)  # noqa: B023
                    done += 1
                if kernel is not None:
                    detach(model)
                done += 1
                if progress is not None:
                    progress(f"{arm}, {length} tokens", done, total)
        for arm, parts in found.items():
            losses[arm][length] = torch.cat([part for part, _ in parts]).double().cpu().numpy()
            tokens = [length * len(group) for group in groups[length]]
            rates = [1000 * own / count for (_, own), count in zip(parts, tokens, strict=True)]
            seconds[arm, length] = median(rates)
    return SwapReport(
        model=type(base).__name__,
        kernels={arm: str(kernel) for arm, kernel in arms.items() if kernel is not None},
        lengths=lengths,
        targets=targets,
        documents=len(windows),
        declared=_declared(base.config),
        _losses=losses,
        _seconds=seconds,
        _bytes=space,
    )


def _timed(
    model: nn.Module, windows: Int64[Tensor, "B size"], length: int, keep: int
) -> tuple[Float[Tensor, "B keep"], float]:
    """Losses, and the seconds that they took."""
    start = time.perf_counter()
    found = token_losses(model, windows, length, keep).cpu()
    return found, time.perf_counter() - start


@torch.no_grad()
def token_losses(
    model: nn.Module, windows: Int64[Tensor, "B size"], length: int, keep: int
) -> Float[Tensor, "B keep"]:
    """Of the last ``keep`` targets of windows, each read from ``length`` tokens before its end, in nats."""
    logits = model(windows[:, -length - 1 : -1], use_cache=False, logits_to_keep=keep).logits[:, -keep:]
    return nn.functional.cross_entropy(logits.transpose(1, 2).float(), windows[:, -keep:], reduction="none")
