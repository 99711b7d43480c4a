"""Which keys a row sees under shifted sparse attention: softmax attention inside groups of G neighbors.

The heads fall into two halves. In the first, position t lies in group floor(t / G). The second is shifted by g = G /
2. Let N' be the length T rounded up to whole groups. Position t has the rolled place p(t) = (t - g) mod N', in group
floor(p(t) / G). Its last group is the *wrap group*: the first g positions, and the positions from N' - g on. (Rolling
the other way gives the same groups.) Places of positions beyond T are empty.

A row sees the keys of its group, in causal attention

- ``"split"``: up to itself, and the two halves of the wrap group do not see each other;
- ``"wrap_causal"``: up to itself;
- ``"wrap_rolled"``: up to its own rolled place, so that the first g rows see keys from N' - g on, the future.

Without ``causal`` it sees all of them, where the halves of the wrap group stay apart in ``"split"``.

Source: Chen et al., "LongLoRA", arXiv 2309.12307; the variants are those of its reference code and its figures.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Int64
from torch import Tensor

ShiftVariant = Literal["split", "wrap_causal", "wrap_rolled"]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of one half of the heads.

    Attributes:
        size: G, even.
        length: T; the groups of ``"split"`` are the same for every T.
        shifted: by G / 2.
        causal: see above.
    """

    size: int
    length: int
    variant: ShiftVariant
    shifted: bool
    causal: bool

    def sees(self, rows: Int64[Tensor, "*B R"], keys: Int64[Tensor, "*B K"]) -> Bool[Tensor, "*B R K"]:
        """(R, K): True where the row at position i sees the key at position j."""
        i, j = rows[..., :, None], keys[..., None, :]
        if not self.shifted:
            sees = i // self.size == j // self.size
            return sees & (j <= i) if self.causal else sees
        g = self.size // 2
        place_i, place_j = (i - g) % self.whole, (j - g) % self.whole
        sees = place_i // self.size == place_j // self.size
        if self.variant == "split":
            sees &= (i < g) == (j < g)
        if self.causal:
            sees &= place_j <= place_i if self.variant == "wrap_rolled" else j <= i
        return sees

    @property
    def whole(self) -> int:
        """N', the length rounded up to whole groups."""
        return -(-self.length // self.size) * self.size

    @property
    def wrap(self) -> tuple[int, int]:
        """The end of the first half of the wrap group and the start of its last half, if it is one group. The last
        half is empty if the last unshifted group is at most half full. Both within 0 .. T."""
        g = self.size // 2
        return min(g, self.length), min(self.whole - g, self.length)
