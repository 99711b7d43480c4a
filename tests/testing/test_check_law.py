"""What ``check_law`` catches: each mutant breaks one property of a sound law."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparsity_lab.generators import Law, PowerLaw, Uniform, Window
from sparsity_lab.settings import register
from sparsity_lab.settings.words import open_unit
from sparsity_lab.testing import check_law

Places = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]


@register
class OtherExponent(PowerLaw):
    """Draws of nearly the same law."""

    def draw(self, words: Words, length: int) -> Places:
        return PowerLaw(alpha=self.alpha - 0.1).draw(words, length)


@register
class Unnormalized(Uniform):
    def log_pmf(self, places: Places, length: int) -> Floats:
        return super().log_pmf(places, length) + 0.1


@register
class MiscountedSets(Window):
    def support_size(self, k: int, length: int) -> int:
        return Uniform().support_size(k, length)


@register
class OtherMarginals(PowerLaw):
    def order_pmf(self, k: int, length: int) -> Floats:
        return Uniform().order_pmf(k, length)


@register
class Unsorted(Uniform):
    def draw(self, words: Words, length: int) -> Places:
        return super().draw(words, length)[:, ::-1]


@register
class FromZero(Uniform):
    def draw(self, words: Words, length: int) -> Places:
        return super().draw(words, length) - 1


@register
class SmallIntegers(Uniform):
    def draw(self, words: Words, length: int) -> Places:
        return super().draw(words, length).astype(np.int32)  # type: ignore[return-value]


@register
class WithItsOwnGenerator(Uniform):
    def draw(self, words: Words, length: int) -> Places:
        return super().draw(np.random.default_rng().integers(2**63, size=words.shape, dtype=np.uint64), length)


@register
class SharedWords(Uniform):
    """Each set has the words of the first."""

    def draw(self, words: Words, length: int) -> Places:
        turned = words + words[:1]
        return super().draw(turned, length)


@register
class OverwritesItsWords(Uniform):
    def draw(self, words: Words, length: int) -> Places:
        words >>= np.uint64(1)
        return super().draw(words, length)


@register
class NearbyOnly(Uniform):
    """Right where the sets can be listed, and not far away."""

    def draw(self, words: Words, length: int) -> Places:
        near = 20 if words.shape[1] > 2 else length
        return super().draw(words, min(length, near)) + max(0, length - near)

    def log_pmf(self, places: Places, length: int) -> Floats:
        logs = super().log_pmf(places, length)
        return np.where((places[:, -1] > 100) & (places.shape[1] > 2), -np.inf, logs)


@register
class OtherExponentFarAway(PowerLaw):
    def draw(self, words: Words, length: int) -> Places:
        return PowerLaw(alpha=self.alpha - 0.1 * (length > 200)).draw(words, length)


@register
class AllByOneWord(Uniform):
    """Each place alone has its law, and all three go together."""

    def draw(self, words: Words, length: int) -> Places:
        if length <= 200:
            return super().draw(words, length)
        below = self.order_pmf(words.shape[1], length).cumsum(axis=1)
        return np.stack([1 + np.searchsorted(one, open_unit(words[:, 0])) for one in below], axis=1)


@register
class OtherMarginalsFarAway(Uniform):
    def order_pmf(self, k: int, length: int) -> Floats:
        return (PowerLaw(alpha=0.1) if length > 200 else Uniform()).order_pmf(k, length)


@register
class UnnormalizedFarAway(Uniform):
    def log_pmf(self, places: Places, length: int) -> Floats:
        return super().log_pmf(places, length) + 1e-3 * (length > 200 and places.shape[1] > 2)


@register
class MiscountedSetsFarAway(Uniform):
    def support_size(self, k: int, length: int) -> int:
        return super().support_size(k, min(length, 100))


@register
class GlobalGenerator(Uniform):
    def draw(self, words: Words, length: int) -> Places:
        np.random.random()
        return super().draw(words, length)


@register
class GlobalSeed(Uniform):
    def draw(self, words: Words, length: int) -> Places:
        return super().draw(words ^ np.uint64(torch.initial_seed() % 2 << 60), length)


@register
class NeedsTwoRows(Uniform):
    def draw(self, words: Words, length: int) -> Places:
        places = super().draw(words, length)
        return places.squeeze(0) if len(places) == 1 else places


@register
class OddAnchor(Uniform):
    anchor: ClassVar[str | None] = "middle"


@register
class NoRoom(Uniform):
    def bound(self) -> tuple[str, int] | None:
        return "width", 0


MUTANTS: list[tuple[Law, str]] = [
    (OtherExponent(alpha=1.5), r"draws do not follow `log_pmf` \(chi-square"),
    (Unnormalized(), r"`log_pmf` sums to 1.10517"),
    (MiscountedSets(width=3), "`support_size` says"),
    (OtherMarginals(), r"`order_pmf`\[0, "),
    (Unsorted(), r"`draw` gives \[\[.*Places are different, ascending"),
    (FromZero(), "`draw` gives .* from 1 to 9"),
    (SmallIntegers(), "int32 for words of shape"),
    (WithItsOwnGenerator(), "`draw` gives something else the second time"),
    (SharedWords(), "a set depends on more than its own words"),
    (OverwritesItsWords(), "`draw` changes the words"),
    (NearbyOnly(), "length=2000: `draw` gives .*, whose probability is zero"),
    (OtherExponentFarAway(), r"at k=., length=2000: draws do not follow"),
    (AllByOneWord(), r"at k=3, length=2000: given the others, place 1 of the draws does not follow `log_pmf`"),
    (OtherMarginalsFarAway(), r"at k=1, length=2000: `order_pmf`\[0, "),
    (UnnormalizedFarAway(), r"at k=3, length=2000: `order_pmf`\[0, \d+\] is .*, and `log_pmf` gives"),
    (MiscountedSetsFarAway(), "at k=1, length=2000: `support_size` says 100, and 2000 sets"),
    (GlobalGenerator(), "`draw` moves the global generator of torch or numpy"),
    (GlobalSeed(), "`draw` gives something else the second time, or under another global seed"),
    (NeedsTwoRows(), "a set depends on more than its own words"),
    (OddAnchor(), "its anchor is 'middle'"),
    (NoRoom(), "it has no room"),
]


@pytest.mark.parametrize(("law", "message"), MUTANTS, ids=[type(law).__name__ for law, _ in MUTANTS])
def test_mutants_are_caught_and_named(law: Law, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_law(law)
