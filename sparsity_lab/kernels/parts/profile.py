"""How fast forms cut their work, by kind of device.

On a CPU tiles are small, so that each pass over a tile finds it in the caches, and a look at a number costs nothing.
On an accelerator each operation is a launch, which costs as much as a lot of arithmetic, and a look at a number waits
for all that was launched before. There tiles are as large as a budget of memory allows, and nothing is looked at.
"""

from dataclasses import dataclass

import torch

_ALL = 2**62


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Sizes of tiles. The rows are the most that a tile has, if the budget has room for so many.

    Attributes:
        budget: bytes of the scores of a tile, over all its heads.
        asynchronous: operations are launched, and run later: few large ones are wanted, and nobody looks at a number,
            which would wait for all before it.
        softmax_rows: of PyTorch's fused kernel under a mask.
        window_rows: of the same where a row sees few keys: large tiles compute many scores for nothing.
        weighted_rows: where weights are the reference's.
        activation_rows: of elementwise functions of scores.
        softplus_rows, softplus_keys: of softplus attention without powers.
        power_rows: of the same with powers, where a tile holds all keys.
        power_keys: beyond so many keys a tile with powers has half the rows.
        heads_entries: a tile of softplus attention takes as many heads as keep it below so many scores, but one for
            each thread at least.
        linear_rows: rows of all sequences together in a block of linear attention.
        selected_rows: of adaptive attention under a mask.
    """

    budget: int
    asynchronous: bool
    softmax_rows: int = _ALL
    window_rows: int = _ALL
    weighted_rows: int = _ALL
    activation_rows: int = _ALL
    softplus_rows: int = _ALL
    softplus_keys: int = _ALL
    power_rows: int = _ALL
    power_keys: int = _ALL
    heads_entries: int = _ALL
    linear_rows: int = _ALL
    selected_rows: int = _ALL

    def rows(self, most: int, row_bytes: int) -> int:
        """Rows of a tile: ``most``, or fewer if the budget has no room for so many rows of ``row_bytes`` each."""
        return max(1, min(most, self.budget // max(row_bytes, 1)))


PROFILES: dict[str, Profile] = {
    "cpu": Profile(
        budget=_ALL,
        asynchronous=False,
        softmax_rows=128,
        window_rows=192,
        weighted_rows=128,
        activation_rows=64,
        softplus_rows=256,
        softplus_keys=1024,
        power_rows=128,
        power_keys=4096,
        heads_entries=2**20,
        linear_rows=2048,
        selected_rows=128,
    ),
    "accelerator": Profile(budget=2**30, asynchronous=True, window_rows=2048),
}
"""By type of device; all that are not named here are accelerators."""


def profile_of(device: torch.device) -> Profile:
    """The profile of a device."""
    return PROFILES.get(device.type, PROFILES["accelerator"])
