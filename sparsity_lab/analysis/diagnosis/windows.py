"""Windows of token data as a task, so that they are trained on like any other.

In training, half of the windows have hidden tokens. Each token is hidden with a probability that is itself uniform. A
special token, ``hidden``, replaces it in the input, and the targets stay. So the model knows what to say when it is
not shown a token, and hiding one later asks it nothing unheard of. A model that never saw hidden tokens answers at
random then, and a search finds the answers that happen to be right.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsity_lab.analysis.dependencies.resampling import FEWEST_GROUPS
from sparsity_lab.generators import Batch, NotComputable, Step, Stream, Task, Truth, Vocabulary
from sparsity_lab.generators.stream import open_unit
from sparsity_lab.settings import SettingError, counted

Ints = NDArray[np.int64]

_HIDDEN_SHARE = 0.5  # of the training windows


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
        if len(np.unique(sequence)) >= FEWEST_GROUPS:
            return self.windows(index, length), sequence
        return self.windows(index, length), sequence * (1 + self.sizes.max()) + start // (length + 1)

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
