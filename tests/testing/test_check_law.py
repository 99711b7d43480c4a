"""What ``check_law`` catches: each mutant breaks one property of a sound law."""

from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsity_lab.generators import Law, PowerLaw, Uniform, Window
from sparsity_lab.settings import register
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
    """Right at short lengths, and not far away."""

    def draw(self, words: Words, length: int) -> Places:
        return super().draw(words, min(length, 20)) + max(0, length - 20)

    def log_pmf(self, places: Places, length: int) -> Floats:
        logs = super().log_pmf(places, length)
        return np.where(places[:, -1] > 100, -np.inf, logs)


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
    (WithItsOwnGenerator(), "a set depends on more than its own words"),
    (SharedWords(), "a set depends on more than its own words"),
    (OverwritesItsWords(), "`draw` changes the words"),
    (NearbyOnly(), "length=300: `draw` gives .*, whose probability is zero"),
    (OddAnchor(), "its anchor is 'middle'"),
    (NoRoom(), "it has no room"),
]


@pytest.mark.parametrize(("law", "message"), MUTANTS, ids=[type(law).__name__ for law, _ in MUTANTS])
def test_mutants_are_caught_and_named(law: Law, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_law(law)
