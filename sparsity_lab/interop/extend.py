"""``extend``: a longer context for an existing model, in the way of LongLoRA (arXiv 2309.12307).

Positions are interpolated through the model's own rope settings. Low-rank maps on queries, keys, values and output
are trained together with whole embeddings and norms, using sparse attention in shifted groups. The result attends
densely.
"""

import copy
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Int64
from matplotlib.axes import Axes
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sparsity_lab.analysis.measurement import Measurement, rows_frame
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.analysis.statistics import mean_interval
from sparsity_lab.interop.attach import attach, attached_kernels, check_kernel, detach
from sparsity_lab.interop.attention import check_detached, kernels_of
from sparsity_lab.interop.documents import Text, tokens_of, windows_of
from sparsity_lab.interop.extra import check_positive, pretrained, required
from sparsity_lab.interop.swap import draw_losses, token_losses
from sparsity_lab.kernels import Kernel, ShiftedSparse
from sparsity_lab.models.initial import named_seed
from sparsity_lab.settings import SettingError, Shown, check_that, to_data
from sparsity_lab.settings import whole as checked_whole

BEFORE, AFTER = "before", "after"
_CHECKPOINT = "checkpoint.safetensors"
_KEY, _CUE = 8, 3
_PLACE = "_name_or_path", "transformers_version"
"""Of a config, what changes no training."""
_SPARSE = ShiftedSparse(ratio=0.25)
_MOMENTS = "exp_avg", "exp_avg_sq"
_ALL = ""
"""The kind of all layers, where they have the same rope settings."""
_PROJECTIONS = "q_proj", "k_proj", "v_proj", "o_proj"


@dataclass(frozen=True, repr=False)
class ExtendedContext(Measurement):
    """What ``extend`` made.

    >>> text = [torch.arange(200) % 8] * 2
    >>> found = extend(llama, 64, text, text, "extended_context", steps=2)
    >>> isinstance(found, ExtendedContext)
    True

    Attributes:
        model: the model of ``peft``, or the model itself where all weights were trained, with positions interpolated
            and its own dense attention.
        context: tokens that it now declares.
        declared: tokens that it declared before.
        trained: number of weights that were trained.
        folder: where the adapter, or the whole model, and the extended config are.
        losses: of training, by step.
    """

    model: nn.Module
    context: int
    declared: int
    trained: int
    folder: Path
    losses: tuple[float, ...]
    _frame: pl.DataFrame

    def frame(self) -> pl.DataFrame:
        """One row per ``when`` (before and after) and context ``length``, with the number of ``documents``. ``loss``
        is in nats per token, with its 95 % interval over documents, ``low`` and ``high``. ``perplexity`` is its
        exponential. ``passkey`` is the share of a hidden key's tokens that the model repeats. The key is hidden in a
        document of that length, and the document ends with the key's first tokens."""
        return self._frame

    @property
    def finding(self) -> str:
        """The loss at the new context, before and after."""
        at = self._frame.filter(pl.col("length") == pl.col("length").max())
        before, after = (at.filter(when=when)["loss"].item() for when in (BEFORE, AFTER))
        return f"At {at['length'][0]} tokens the loss goes from {before:.2f} to {after:.2f} nats a token"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss by length of context, before and after; returns the axes."""
        return draw_losses(ax, self._frame, "length", self._frame["length"].unique().to_list(), by="when")


def extend(
    model: nn.Module,
    context: int,
    text: Text,
    held_out: Text,
    out: Path | str,
    *,
    tokenizer: Any = None,
    kernel: Kernel = _SPARSE,
    rank: int | None = 8,
    alpha: float = 16.0,
    whole: bool = True,
    steps: int = 1000,
    batch_size: int = 8,
    learning_rate: float = 2e-5,
    warmup: int = 20,
    documents: int = 16,
    checkpoint_every: int = 100,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> ExtendedContext:
    """Extend the context of a model that rotates queries and keys, in place.

    Training goes on from ``out`` if it was interrupted there, with the same bits. What ends in an error leaves the
    model as it came. The folder is one of ``peft``, with the extended config together with the adapter, so that it
    loads without this lab::

        config = AutoConfig.from_pretrained(out)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, config=config), out)

    >>> text = [torch.arange(200) % 8] * 2
    >>> extend(llama, 64, text, text, "extended", steps=2).context
    64

    Args:
        model: of ``transformers``, without a kernel attached.
        context: tokens, more than the model declares.
        text: what is trained on, as texts or tokens; all of it is one row of tokens.
        held_out: documents that are measured before and after, each at least as long as the context and one more.
        out: a folder.
        tokenizer: for texts.
        kernel: what attends in training. Inference is dense.
        rank, alpha: of the low-rank maps; without a rank all weights are trained, and ``out`` is a usual checkpoint.
        whole: train embeddings and norms as well as the low-rank maps.
        steps, batch_size, learning_rate: of AdamW with β = (0.9, 0.95), constant after ``warmup`` steps. Without a
            step positions are interpolated and no more.
        documents: at most so many are measured.
        checkpoint_every: steps.
        seed: of low-rank maps, batches and keys.
        progress: called with the step and its loss.

    Raises:
        SettingError: the model has no rotary positions, non-linear scaling, or a sliding window shorter than the
            context. Or the context is not longer, the texts are too short, or the folder holds a training of another
            model, on another text or with other settings.
    """
    base = pretrained(model)
    config: Any = base.config
    check_detached(model)
    plain = not hasattr(model, "peft_config")
    check_that(plain, "model", "a model without an adapter; call model.merge_and_unload() first")
    for number in ("steps", steps, 0), ("batch_size", batch_size, 1), ("warmup", warmup, 0), ("seed", seed, None):
        checked_whole(*number)
    checked_whole("checkpoint_every", checkpoint_every)
    checked_whole("rank", 1 if rank is None else rank)
    check_positive("alpha", alpha)
    check_positive("learning_rate", learning_rate)
    check_kernel(kernel, "kernel", config)
    checked_whole("documents", documents, 2)
    declared = _checked_context(config, context)
    stream = tokens_of(text, tokenizer, context + 1, config.vocab_size)
    windows = windows_of(held_out, tokenizer, context + 1, documents, config.vocab_size)
    lengths = sorted({max(2, declared // 2), declared, *_between(declared, context), context})
    # What every part of an interrupted training has in common.
    settings = {
        "context": context,
        "kernel": to_data(kernel),
        "rank": rank,
        "alpha": alpha,
        "whole": whole,
        "seed": seed,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "text": _digest({"tokens": stream}),
        "model": _digest(model.state_dict()),
        "config": {name: one for name, one in config.to_dict().items() if name not in _PLACE},
    }
    with _as_it_came_after_an_error(model, weights=rank is None):
        folder = _made(out)
        rows = _measured(BEFORE, model, windows, lengths, seed)
        interpolate_positions(model, context / declared)
        attach(model, kernel, seed=seed)
        adapted = model if rank is None else _with_low_rank_maps(model, rank, alpha, whole, seed)
        losses = _train(adapted, stream, folder / _CHECKPOINT, settings, steps, checkpoint_every, progress)
        detach(adapted).eval()
        saved: Any = adapted
        saved.save_pretrained(folder)
        config.save_pretrained(folder)
        rows += _measured(AFTER, adapted, windows, lengths, seed)
    return ExtendedContext(
        model=adapted,
        context=context,
        declared=declared,
        trained=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        folder=folder,
        losses=tuple(losses),
        _frame=rows_frame(rows),
    )


def interpolate_positions(model: nn.Module, factor: float) -> None:
    """Divide positions by a factor, in place, through the model's rope settings (Chen et al., arXiv 2306.15595): the
    config says so, and declares a context that many times as long. Interpolating again multiplies.

    >>> interpolate_positions(llama, 2.0)
    >>> llama.config.rope_parameters["rope_type"]
    'linear'

    Where kinds of layers have settings of their own, all are interpolated.

    Raises:
        SettingError: a model without rotary positions, with other scaling than linear, or of a class without it.
    """
    base: Any = pretrained(model)
    check_positive("factor", factor)
    config, ropes = base.config, _ropes_of(base.config)
    scaled = {
        kind: {**own, "rope_type": "linear", "factor": float(own.get("factor", 1.0)) * factor}
        for kind, own in ropes.items()
    }
    changed = copy.copy(config)
    changed.rope_parameters = scaled.get(_ALL, scaled)
    try:
        changed.validate_rope()
    except ValueError as error:
        expected = "those of a class that knows 'linear'"
        raise SettingError("model.config.rope_parameters", expected, Shown(" ".join(str(error).split()))) from None
    config.rope_parameters = changed.rope_parameters
    config.max_position_embeddings = round(config.max_position_embeddings * factor)
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RotaryEmbedding"):
                setattr(parent, name, type(child)(config).to(next(child.buffers()).device))


def _ropes_of(config: Any) -> dict[str, dict[str, Any]]:
    """Rope settings by kind of layer; of ``_ALL`` where they have the same."""
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        expected = "rotary positions, which can be interpolated"
        raise SettingError("model.config.rope_parameters", expected, Shown(f"none, in a {config.model_type}"))
    nested = all(isinstance(one, Mapping) for one in parameters.values())
    found = {name: dict(one) for name, one in (parameters if nested else {_ALL: parameters}).items()}
    for name, own in found.items():
        if (kind := own.get("rope_type", "default")) not in ("default", "linear"):
            path = ".".join(filter(None, ("model.config.rope_parameters", name, "rope_type")))
            raise SettingError(path, "'default' or 'linear'", kind)
    return found


def _checked_context(config: Any, context: int) -> int:
    _ropes_of(config)
    declared, window = getattr(config, "max_position_embeddings", None), getattr(config, "sliding_window", None)
    if declared is None:
        raise SettingError("model.config.max_position_embeddings", "a number, the context to extend", None)
    if checked_whole("context", context) <= declared:
        raise SettingError("context", f"more than {declared}, the model's own context", context)
    if window is not None and window < context:
        raise SettingError("model.config.sliding_window", f"None, or at least {context}, the new context", window)
    return int(declared)


# --- what is checked and chosen


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, kinds and bytes."""
    of_all = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        of_all.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        of_all.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return of_all.hexdigest()


@contextmanager
def _as_it_came_after_an_error(model: nn.Module, *, weights: bool) -> Iterator[None]:
    """Undo what was done to a model inside: parts that were put in or exchanged, settings, and, where asked for,
    weights, of which it keeps a copy."""
    config: Any = pretrained(model).config
    settings = {name: getattr(config, name) for name in ("rope_parameters", "max_position_embeddings")}
    modules = [(one, dict(one._modules), one.training) for one in model.modules()]
    trained = [(one, one.requires_grad, one.detach().clone() if weights else None) for one in model.parameters()]
    try:
        yield
    except BaseException:
        if kernels_of(model):
            detach(model)
        for one, parts, training in modules:
            one._modules, one.training = parts, training
        for parameter, requires_grad, value in trained:
            parameter.requires_grad_(requires_grad).grad = None
            if value is not None:
                parameter.data.copy_(value)
        for name, setting in settings.items():
            setattr(config, name, setting)
        if hasattr(model, "peft_config"):
            del model.peft_config
        raise


def _made(out: Path | str) -> Path:
    try:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, TypeError) as error:
        raise SettingError("out", "a folder that can be written", Shown(f"{out} ({error})")) from None
    return folder


def _between(low: int, high: int) -> Sequence[int]:
    return [low * 2**i for i in range(1, 32) if low * 2**i < high]


def _projections(base: Any) -> list[str]:
    """Names of the linear maps in attention, as ``peft`` wants them: of the paper's four, where a model has them."""
    layers = {one.layer: base.get_submodule(one.layer) for one in attached_kernels(base)}
    found = {
        f"{place.rpartition('.')[2]}.{name}"
        for place, layer in layers.items()
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }
    check_that(found, "model", "linear maps in its attention", Shown(type(base).__name__))
    usual = {name for name in found if name.rpartition(".")[2] in _PROJECTIONS}
    return sorted(usual if len(usual) == len(_PROJECTIONS) else found)


def _whole_modules(base: Any) -> list[str]:
    """Names of embeddings and norms, as ``peft`` wants them."""
    embedding = base.get_input_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if module is embedding or (type(module).__name__.endswith("Norm") and list(module.parameters()))
    }
    return sorted(names)


def _with_low_rank_maps(model: nn.Module, rank: int, alpha: float, whole: bool, seed: int) -> nn.Module:
    """The model of ``peft`` around a model."""
    peft, base = required("peft"), pretrained(model)
    config: Any = base.config
    tied = {"ensure_weight_tying": True} if whole and config.tie_word_embeddings else {}
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=_projections(base),
        modules_to_save=_whole_modules(base) if whole else None,
        task_type="CAUSAL_LM",
        **tied,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)  # peft takes no generator
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5.24 in an old way
        try:
            adapted: nn.Module = peft.get_peft_model(model, settings)
        except ValueError as error:
            got = Shown(f"{type(base).__name__} ({' '.join(str(error).split())[:160]})")
            raise SettingError("model", "a class in which peft finds the linear maps of attention", got) from None
    return adapted


# --- training


def _train(
    model: nn.Module,
    stream: Int64[Tensor, " n"],
    file: Path,
    settings: dict[str, Any],
    steps: int,
    checkpoint_every: int,
    progress: Callable[[int, float], None] | None,
) -> list[float]:
    """The losses of all steps, those before an interruption too."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=settings["learning_rate"], betas=(0.9, 0.95), weight_decay=0.0)
    device, context = next(iter(trained.values())).device, settings["context"]
    losses = _resumed(file, settings, trained, optimizer)
    check_that(len(losses) <= steps, "steps", f"at least {len(losses)}, which are done in {file.parent}", steps)
    model.train()
    for step in range(len(losses), steps):
        generator = torch.Generator().manual_seed(named_seed(settings["seed"], f"step {step}"))
        starts = torch.randint(0, len(stream) - context, (settings["batch_size"],), generator=generator)
        batch = stream[starts[:, None] + torch.arange(context)].to(device)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            expected = f"a rate that keeps the loss finite (it was not at step {step})"
            raise SettingError("learning_rate", expected, settings["learning_rate"])
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings["learning_rate"] * min(1.0, (step + 1) / max(1, settings["warmup"]))
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            write_whole(file, _packed(settings, trained, optimizer, losses))
        if progress is not None:
            progress(step, losses[-1])
    return losses


def _packed(
    settings: dict[str, Any], trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, losses: list[float]
) -> bytes:
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in trained.items():
        tensors[f"weight.{name}"] = parameter.detach()
        if state := optimizer.state.get(parameter):  # a parameter that no loss reaches has none
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS}
    packed = {name: value.contiguous() for name, value in tensors.items()}
    return save(packed, metadata={"settings": json.dumps(settings)})


def _resumed(
    file: Path, settings: dict[str, Any], trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> list[float]:
    """Weights and moments of a checkpoint, put in place; the losses of its steps, none without one."""
    if not file.is_file():
        return []
    try:
        with safe_open(file, framework="pt") as saved:
            before, now = json.loads((saved.metadata() or {}).get("settings", "{}")), json.loads(json.dumps(settings))
            if others := sorted(name for name in now if now[name] != before.get(name)):
                got = Shown(f"{file.parent}, with another {' and another '.join(others)}")
                raise SettingError("out", "a new folder, or one whose training has the same settings", got)
            losses: list[float] = saved.get_tensor("losses").tolist()
            found = set(saved.keys())
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(saved.get_tensor(f"weight.{name}"))
                    if f"{_MOMENTS[0]}.{name}" in found:
                        moments = {one: saved.get_tensor(f"{one}.{name}").to(parameter.device) for one in _MOMENTS}
                        optimizer.state[parameter] = {"step": torch.tensor(float(len(losses))), **moments}
    except (SafetensorError, RuntimeError) as error:  # of a tensor of another shape
        raise SettingError("out", f"the checkpoint {file} is damaged ({error})") from None
    return losses


# --- measuring


@torch.no_grad()
def _measured(
    when: str, model: nn.Module, windows: Int64[Tensor, "documents size"], lengths: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    was_training = model.training
    model.eval()
    windows = windows.to(next(model.parameters()).device)
    targets, rows = max(1, lengths[0] // 2), []
    for length in lengths:
        each = [token_losses(model, one, length, targets).double().mean().item() for one in windows.split(1)]  # type: ignore[no-untyped-call]
        loss = mean_interval(each)
        assert loss.estimate is not None
        row: dict[str, Any] = {"when": when, "length": length, "documents": loss.count, "loss": loss.estimate}
        row |= {"low": loss.low, "high": loss.high, "perplexity": math.exp(loss.estimate)}
        rows.append(row | {"passkey": _passkey(model, windows, length, seed)})
    model.train(was_training)
    return rows


def _passkey(model: nn.Module, windows: Int64[Tensor, "documents size"], length: int, seed: int) -> float | None:
    """Share of the tokens of hidden keys that the model repeats. Each key is in its own document at a random
    depth."""
    if length < 3 * _KEY:
        return None
    generator = torch.Generator().manual_seed(named_seed(seed, f"passkey {length}"))
    told: list[float] = []
    for window in windows[:, :length]:
        key = window[torch.randint(0, length, (_KEY,), generator=generator)]  # tokens that the document has
        depth = int(torch.randint(0, length - 2 * _KEY + 1, (1,), generator=generator))
        row = window.clone()
        row[depth : depth + _KEY] = key
        row[-_KEY:] = key
        logits = model(input_ids=row[None], use_cache=False).logits[0]
        told.append((logits[-_KEY + _CUE - 1 : -1].argmax(-1) == key[_CUE:]).double().mean().item())
    return sum(told) / len(told)
