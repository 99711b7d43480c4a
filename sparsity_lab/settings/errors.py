"""The error of a bad setting."""

import contextlib
import difflib
import numbers
from collections.abc import Iterable, Iterator, Mapping

LARGEST_SIZE = 2**22
"""The largest size of vocabularies, sets, widths and tables. It is far above normal use, and still takes seconds."""
LARGEST_SEED = 2**63
LARGEST_WHOLE = 2**31
"""The largest integer that is neither a size nor a seed."""
LARGEST_NUMBER = 1e30
"""The largest float. float32 can represent it."""

_LONGEST = 200


class Shown(str):
    """Text that an error shows unchanged, without quotes.

    >>> print(SettingError("state", "a cache", Shown("none")))
    state: expected a cache, got none
    """

    __slots__ = ()


_PLAIN = Shown("")


class SettingError(ValueError):
    """A bad setting: one line with the field's path, and either a plain message or the expected and given values.

    >>> print(SettingError("k", "an integer of at least 1", 0))
    k: expected an integer of at least 1, got 0
    >>> print(SettingError("locality", "a law", "Recnt", ["Recent", "Uniform"]))
    locality: expected a law (one of Recent, Uniform), got 'Recnt'; did you mean 'Recent'?
    >>> print(SettingError("task", "missing; RunConfig requires it"))
    task: missing; RunConfig requires it

    Attributes:
        path: dotted path of the field, as in ``task.locality.width``; empty for the object itself.
        expected: a description of a valid value; without ``got``, the whole message.
        got: the given value as shown to the user; empty for a plain message.
        known: the valid names, if the value is a name.
        meant: the name that was probably meant; by default the known name closest to the given one.
    """

    def __init__(
        self,
        path: str,
        expected: str,
        got: object = _PLAIN,
        known: Iterable[str] = (),
        meant: str | None = None,
    ) -> None:
        self.path = path
        self.expected = expected
        self.got = got if isinstance(got, Shown) else _shown(got)
        self.known = tuple(known)
        self.meant = meant
        super().__init__(path, expected, self.got, self.known, meant)

    def __str__(self) -> str:
        nearest = self.meant or self._nearest()
        hint = f"; did you mean {nearest!r}?" if nearest else ""
        known = f" (one of {', '.join(self.known)})" if self.known else ""
        where = f"{_short(self.path)}: " if self.path else ""
        if not self.got:
            return one_line(f"{where}{self.expected}{known}")
        return one_line(f"{where}expected {self.expected}{known}, got {_short(self.got)}{hint}")

    def inside(self, path: str) -> "SettingError":
        """The same error as seen from an enclosing object that holds this one at ``path``."""
        return SettingError(join(path, self.path), self.expected, self.got, self.known, self.meant)

    def _nearest(self) -> str | None:
        """The known name closest to the given name. None if the given value is not a name, or is known."""
        name = str(self.got)[1:-1]
        # Only names are shown in quotes. Comparing a long text would take a second per megabyte.
        if not self.got.startswith(("'", '"')) or name in self.known or len(name) > _LONGEST:
            return None
        return next(iter(difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)), None)


def check_range(value: object, path: str, largest: int) -> None:
    """Raise ``SettingError`` if a number, or a number in a tuple or mapping, is too far from 0.

    Args:
        largest: the largest absolute value of integers.

    >>> check_range(2**63, "steps", largest=1000)
    Traceback (most recent call last):
    sparsity_lab.settings.errors.SettingError: steps: expected at most 1000, got 9223372036854775808
    """
    if type(value) is int and abs(value) > largest:
        raise SettingError(path, f"at most {largest}" if value > 0 else f"at least {-largest}", value)
    if type(value) is float and not abs(value) <= LARGEST_NUMBER:
        raise SettingError(path, f"a number from {-LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}", value)
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            check_range(item, f"{path}[{i}]", largest)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_range(item, join(path, str(key)), largest)


@contextlib.contextmanager
def inside(path: str) -> Iterator[None]:
    """Report a ``SettingError`` of a part with the path of the object that holds it at ``path``."""
    try:
        yield
    except SettingError as error:
        raise error.inside(path) from None


def check_that(fits: object, path: str, expected: str, got: object = _PLAIN, known: Iterable[str] = ()) -> None:
    """Raise a ``SettingError`` with these arguments unless ``fits`` is true.

    >>> check_that(0 <= 1.5 < 1, "warmup", "a share of the steps", 1.5)
    Traceback (most recent call last):
    sparsity_lab.settings.errors.SettingError: warmup: expected a share of the steps, got 1.5
    """
    if not fits:
        raise SettingError(path, expected, got, known)


def check_most(most: int, **values: int) -> None:
    """Raise ``SettingError`` if a number is too large. The keywords are the paths of the numbers.

    >>> check_most(1024, threads=2000)
    Traceback (most recent call last):
    sparsity_lab.settings.errors.SettingError: threads: expected at most 1024, got 2000
    """
    for name, value in values.items():
        check_that(value <= most, name, f"at most {most}", value)


def check_least(least: int, **values: float | None) -> None:
    """Raise ``SettingError`` if a number is too small. The keywords are the paths of the numbers; None is ignored.

    >>> check_least(1, steps=0)
    Traceback (most recent call last):
    sparsity_lab.settings.errors.SettingError: steps: expected at least 1, got 0
    """
    for name, value in values.items():
        check_that(value is None or value >= least, name, f"at least {least}", value)


def whole(name: str, value: object, least: int | None = 1) -> int:
    """A plain Python integer, also from numpy integers, whose arithmetic would wrap; ``SettingError`` otherwise.

    >>> whole("steps", np.int8(3))
    3
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or (least is not None and value < least):
        raise SettingError(name, "a whole number" + ("" if least is None else f" of at least {least}"), value)
    return int(value)


def check_text(text: str, path: str) -> None:
    """Raise ``SettingError`` if UTF-8 cannot encode a text, or if it contains NUL, which file names cannot contain.
    Python reads bytes that are not UTF-8 as lone surrogates, and JSON can contain them too.

    >>> check_text("a name", "name")
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SettingError(path, "text in UTF-8", text) from None
    if "\0" in text:
        raise SettingError(path, "text without the character NUL", text)


def join(outer: str, inner: str) -> str:
    """The dotted path of ``inner`` below ``outer``; either can be empty."""
    return f"{outer}.{inner}" if outer and inner else outer or inner


def _shown(value: object) -> Shown:
    try:
        return Shown(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits; deeply nested lists
        return Shown(f"a value of type {type(value).__name__}, too large to show")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def one_line(text: str) -> str:
    """The text with control characters escaped. Untrusted text could otherwise move the cursor or change colors."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def counted(number: int, noun: str) -> str:
    """A number with its noun, singular or plural.

    >>> counted(1, "line"), counted(3, "line")
    ('1 line', '3 lines')
    """
    return f"{number} {noun}{'s' * (number != 1)}"
