"""A small model, trained on short windows and tested on long ones.

A test is paired. The same last targets of the same windows are predicted twice: from the whole window of n tokens,
and from only its last L tokens, the trained length. With losses in nats a target, and ``loss_single`` that of
single-token frequencies of the training part,

    gain = loss_single - loss_short,        kept = (loss_single - loss_long) / gain.

Kept is 1 for a model that is no worse on long inputs than on short ones. It is larger if the model uses tokens that
are farther away, and 0 if the model does no better than frequencies. Without a sure gain it is not given.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsity_lab.analysis.dependencies.resampling import ratio_over_groups
from sparsity_lab.analysis.diagnosis.verdict import SchemeTest
from sparsity_lab.analysis.diagnosis.windows import TokenWindows
from sparsity_lab.analysis.statistics import Interval
from sparsity_lab.models import Decoder
from sparsity_lab.training import Evaluation, Progress, RunConfig, Training
from sparsity_lab.training.optimize import Records, optimize

TARGETS = 8
"""Last targets of a window that are measured."""
NOTHING = Interval(None, None, None, 0)
"""No numbers."""
_WINDOW_TOKENS = 2**15
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trained:
    """A model and what it cost.

    Attributes:
        seconds: of training.
        tokens: it was trained on, counted as often as seen.
        hidden: the token that stands for a hidden one.
    """

    model: nn.Module
    seconds: float
    tokens: int
    hidden: int

    def predict(self, tokens: Int64[Tensor, "N n"], key_mask: Bool[Tensor, "N n"]) -> Float[Tensor, "N V"]:
        """Logits of the next token, with the tokens outside ``key_mask`` hidden as in training."""
        scored = torch.zeros_like(key_mask)
        scored[:, -1] = True
        logits: Tensor = self.model(tokens.masked_fill(~key_mask, self.hidden), scored=scored).logits
        return logits

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.model.parameters())


@dataclass(frozen=True)
class LengthComparison:
    """One model at one test length.

    Attributes:
        length: n.
        windows: number of them.
        loss_single, loss_short, loss_long: mean over windows, nats a target.
        learned: gain over ``loss_single``, with its interval over groups of windows (``TokenWindows.spread``).
        kept: with its interval over groups of windows; nothing where no gain is sure.
    """

    length: int
    windows: int
    loss_single: float
    loss_short: float
    loss_long: float
    learned: Interval
    kept: Interval

    def scheme_test(self, position: str) -> SchemeTest:
        return SchemeTest(position=position, learned=self.learned, kept=self.kept)


def train_short(
    task: TokenWindows, config: Decoder, training: Training, seed: int, progress: Progress | None
) -> Trained:
    """Train on windows of the curriculum's lengths.

    Raises:
        Diverged: the loss, the gradient or the weights stopped being finite.
        SettingError: settings that do not fit.
    """
    longest = training.curriculum.range()[1]
    run = RunConfig(
        task=task,
        model=config,
        training=training,
        evaluation=Evaluation(lengths=(longest,)),
        data_seed=seed,
        model_seed=seed,
    )
    model, records = config.build(seed, vocab_size=task.vocabulary.size), Records()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        optimize(run, model, records, Path(folder) / "checkpoint", progress)
    tokens = sum(int(row["tokens"]) for row in records.timing)
    return Trained(model.cpu().eval(), time.perf_counter() - begun, tokens, task.hidden)


def compare_lengths(
    trained: Trained, train: TokenWindows, test: TokenWindows, short: int, lengths: Sequence[int], count: int
) -> list[LengthComparison]:
    """The test at each length, on at most ``count`` windows, whose measured targets do not overlap."""
    single = _single_loss(train)
    found = []
    for length in lengths:
        # Windows that measured the same targets would be taken for independent ones.
        windows, groups = test.spread(min(count, max(1, test.num_windows(length) // TARGETS)), length)
        size = max(1, _WINDOW_TOKENS // length)
        parts = [_losses(trained.model, part, short) for part in torch.split(windows, size)]
        short_loss, long_loss = (np.concatenate(own) for own in zip(*parts, strict=True))
        level: Floats = single[windows[:, -min(TARGETS, short) :].numpy()].mean(1)
        learned = ratio_over_groups(level - short_loss, level, groups)
        gained = learned.low is not None and learned.low > 0
        found.append(
            LengthComparison(
                length=length,
                windows=len(windows),
                loss_single=float(level.mean()),
                loss_short=float(short_loss.mean()),
                loss_long=float(long_loss.mean()),
                learned=learned,
                # A share of nothing would be any number.
                kept=ratio_over_groups(level - long_loss, level - short_loss, groups) if gained else NOTHING,
            )
        )
    return found


@torch.no_grad()
def near_share(
    trained: Trained, train: TokenWindows, test: TokenWindows, near: int, length: int, count: int
) -> Interval:
    """Share of the gain over single-token frequencies that the last ``near`` tokens of a window alone give, which is
    an input that the model was trained on. Only the last target of a window sees so many, so there are more windows.
    """
    windows, groups = test.spread(count * TARGETS, length)
    parts = torch.split(windows, max(1, _WINDOW_TOKENS // length))
    some, all_tokens = (
        np.concatenate([_last_loss(trained.model, part[:, -size - 1 :], 1) for part in parts])
        for size in (near, length)
    )
    level = _single_loss(train)[windows[:, -1].numpy()]
    return ratio_over_groups(level - some, level - all_tokens, groups)


@torch.no_grad()
def _losses(model: nn.Module, windows: Int64[Tensor, "N width"], short: int) -> tuple[Floats, Floats]:
    """(N,) mean loss of the last targets from the last ``short`` tokens, and from all."""
    count = min(TARGETS, short)
    return _last_loss(model, windows[:, -short - 1 :], count), _last_loss(model, windows, count)


def _last_loss(model: nn.Module, windows: Int64[Tensor, "N width"], count: int) -> Floats:
    scored = torch.zeros(len(windows), windows.shape[1] - 1, dtype=torch.bool)
    scored[:, -count:] = True
    logits: Float[Tensor, "rows V"] = model(windows[:, :-1], scored=scored).logits.double()
    targets = windows[:, -count:].flatten()
    loss = -logits.log_softmax(-1).gather(1, targets[:, None])
    means: Floats = loss.view(len(windows), count).mean(1).numpy()
    return means


def _single_loss(train: TokenWindows) -> Floats:
    """(V,) loss of each token by its frequency in the training part; one is added to each count."""
    counts = np.bincount(train.tokens, minlength=train.hidden) + 1.0
    loss: Floats = np.log(counts.sum()) - np.log(counts)
    return loss
