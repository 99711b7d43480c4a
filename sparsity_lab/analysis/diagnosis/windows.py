"""Windows of token data as a task, and a small model that is trained on short ones and tested on long ones.

In training, half of the windows have hidden tokens. Each token is hidden with a probability that is itself uniform. A
special token, ``hidden``, replaces it in the input, and the targets stay. So the model knows what to say when it is
not shown a token, and hiding one later asks it nothing unheard of. A model that never saw hidden tokens answers at
random then, and a search finds the answers that happen to be right.

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
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sparsity_lab.analysis.diagnosis.token_data import Ints
from sparsity_lab.analysis.statistics import FEWEST_GROUPS, Floats, Interval, ratio_over_groups
from sparsity_lab.generators import Batch, NotComputable, Step, Stream, Task, Truth, Vocabulary
from sparsity_lab.generators.stream import open_unit
from sparsity_lab.models import Decoder
from sparsity_lab.settings import SettingError, counted
from sparsity_lab.training import Evaluation, Progress, RunConfig, Training
from sparsity_lab.training.optimize import Records, optimize

_HIDDEN_SHARE = 0.5  # of the training windows
_WINDOW_TOKENS = 2**15
TARGETS = 8
"""Last targets of a window that are measured."""


class TokenWindows(Task):
    """Windows of l + 1 tokens inside one of some sequences, each token after the first a target; T = l.

    Not registered, for its tokens have no short form: it lives as long as a diagnosis.
    """

    kind = "TokenWindows"
    __dataclass_fields__: ClassVar[dict[str, Any]] = {}  # a setting without fields, for the id of a run

    def __init__(self, sequences: Sequence[Ints], num_tokens: int) -> None:
        # Settings are frozen.
        object.__setattr__(self, "tokens", np.concatenate([*sequences, np.zeros(0, dtype=np.int64)]))
        object.__setattr__(self, "sizes", np.array([len(sequence) for sequence in sequences], dtype=np.int64))
        object.__setattr__(self, "hidden", num_tokens)

    tokens: Ints
    sizes: Ints
    hidden: int

    def __str__(self) -> str:
        return f"TokenWindows({counted(len(self.sizes), 'sequence')}, {counted(len(self.tokens), 'token')})"

    @classmethod
    def examples(cls) -> "tuple[TokenWindows, ...]":
        return (cls([np.arange(64) % 3], 3),)

    @property
    def vocabulary(self) -> Vocabulary:
        names = tuple(str(token) for token in range(self.hidden))
        return Vocabulary(names=(*names, "hidden"), roles=("data",) * self.hidden + ("special",))

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        return (8,)

    def largest_position_id(self, length: int) -> int:
        return 0

    def num_windows(self, length: int) -> int:
        """Number of different windows."""
        return int(np.maximum(self.sizes - length, 0).sum())

    def check_length(self, length: int) -> None:
        longest = int(self.sizes.max(initial=0))
        if not 1 <= length < longest:
            raise SettingError("length", f"from 1 to {longest - 1}, below the longest sequence", length)

    def sample(self, stream: Stream, start: int, count: int, length: int) -> Batch:
        self.check_length(length)
        words = stream.words("positions", length, start, count, 1)[:, 0]
        windows = self.windows((open_unit(words) * self.num_windows(length)).astype(np.int64), length)
        tokens, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        draws = open_unit(stream.words("hidden", length, start, count, length + 2))
        rate = np.where(draws[:, :1] < _HIDDEN_SHARE, draws[:, 1:2], 0.0)
        return Batch(tokens.masked_fill(torch.from_numpy(draws[:, 2:] < rate), self.hidden), targets)

    def spread(self, count: int, length: int) -> tuple[Int64[Tensor, "N width"], Ints]:
        """(N, l + 1): at most ``count`` windows, evenly spread over all, the same every time; and (N,) which of them
        belong together.

        Windows of one sequence speak of that sequence, so they are one group. If there are too few sequences for an
        interval over them, the groups are stretches of l + 1 tokens, by the start of the window. Then windows of
        different groups share tokens only with their neighbors, and an interval describes these sequences.
        """
        total = self.num_windows(length)
        count = min(count, total)
        index = (2 * np.arange(count) + 1) * total // (2 * count)
        sequence, start = self._places(index, length)
        if len(np.unique(sequence)) < FEWEST_GROUPS:
            sequence = sequence * (1 + self.sizes.max()) + start // (length + 1)
        return self.windows(index, length), sequence

    def windows(self, index: Ints, length: int) -> Int64[Tensor, "N width"]:
        """(N, l + 1): these of all windows."""
        sequence, start = self._places(index, length)
        first = (np.cumsum(self.sizes) - self.sizes)[sequence] + start
        return torch.from_numpy(self.tokens[first[:, None] + np.arange(length + 1)])

    def _places(self, index: Ints, length: int) -> tuple[Ints, Ints]:
        """Sequence of each window, and where in it the window begins."""
        number = np.maximum(self.sizes - length, 0)
        ends = np.cumsum(number)
        sequence = np.searchsorted(ends, index, side="right")
        return sequence, index - (ends - number)[sequence]

    def truth(self, length: int) -> Truth:
        return Truth(num_targets=length)

    def solve(self, tokens: tuple[int, ...]) -> tuple[Step, ...]:
        return tuple(Step(t) for t in range(len(tokens)))

    def log_posterior(self, batch: Batch) -> NoReturn:
        raise NotComputable("the distribution of these tokens is unknown")


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


def train_short(
    task: TokenWindows, config: Decoder, training: Training, seed: int, progress: Progress | None
) -> Trained:
    """Train on windows of the curriculum's lengths.

    Raises:
        Diverged: the loss, the gradient or the weights stopped being finite.
        SettingError: settings that do not fit.
    """
    seen = Evaluation(lengths=training.curriculum.range()[1:])
    run = RunConfig(task=task, model=config, training=training, evaluation=seen, data_seed=seed, model_seed=seed)
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
        number = min(TARGETS, short)
        short_loss, long_loss = (_last_losses(trained.model, windows, size, number) for size in (short, length))
        level: Floats = single[windows[:, -number:].numpy()].mean(1)
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
                kept=ratio_over_groups(level - long_loss, level - short_loss, groups) if gained else Interval(),
            )
        )
    return found


def near_share(
    trained: Trained, train: TokenWindows, test: TokenWindows, near: int, length: int, count: int
) -> Interval:
    """Share of the gain over single-token frequencies that the last ``near`` tokens of a window alone give, which is
    an input that the model was trained on. Only the last target of a window sees so many, so there are more windows.
    """
    windows, groups = test.spread(count * TARGETS, length)
    some, all_tokens = (_last_losses(trained.model, windows, size, 1) for size in (near, length))
    level = _single_loss(train)[windows[:, -1].numpy()]
    return ratio_over_groups(level - some, level - all_tokens, groups)


@torch.no_grad()
def _last_losses(model: nn.Module, windows: Int64[Tensor, "N width"], size: int, count: int) -> Floats:
    """(N,) mean loss of the last ``count`` targets of each window from its last ``size`` tokens."""
    found = []
    for part in torch.split(windows, max(1, _WINDOW_TOKENS // (windows.shape[1] - 1))):
        tokens = part[:, -size - 1 : -1]
        scored = torch.zeros(tokens.shape, dtype=torch.bool)
        scored[:, -count:] = True
        logits: Float[Tensor, "rows V"] = model(tokens, scored=scored).logits.double()
        loss = -logits.log_softmax(-1).gather(1, part[:, -count:].reshape(-1, 1))
        found.append(loss.view(len(part), count).mean(1))
    means: Floats = torch.cat(found).numpy()
    return means


def _single_loss(train: TokenWindows) -> Floats:
    """(V,) loss of each token by its frequency in the training part; one is added to each count."""
    counts = np.bincount(train.tokens, minlength=train.hidden) + 1.0
    loss: Floats = np.log(counts.sum()) - np.log(counts)
    return loss
