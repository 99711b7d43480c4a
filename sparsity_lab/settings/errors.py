"""What is said when a setting cannot be."""

import difflib
from collections.abc import Iterable

__all__ = ["LARGEST_SIZE", "SettingError", "Shown", "join"]

LARGEST_SIZE = 2**22
"""Of vocabularies, sets, widths and tables: far above what anyone makes, and still made in seconds."""

_LONGEST = 200


class Shown(str):
    """Text that is already in its shown form."""

    __slots__ = ()


class SettingError(ValueError):
    """A setting that cannot be: one line with the field's path, what was expected, and what came.

    Attributes:
        path: dotted path of the field, as in ``task.locality.width``; empty for the object itself.
        expected: what would have been right, in words.
        got: what came, as shown to the user.
        known: the names that would have been right, if it is a matter of names.
        meant: what was meant, where that can be told; by default the known name that is most like the one that came.
    """

    def __init__(
        self, path: str, expected: str, got: object, known: Iterable[str] = (), meant: str | None = None
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
        return _one_line(f"{where}expected {self.expected}{known}, got {_short(self.got)}{hint}")

    def inside(self, path: str) -> "SettingError":
        """The same error seen from an enclosing object, where this one sits at ``path``."""
        return SettingError(join(path, self.path), self.expected, self.got, self.known, self.meant)

    def _nearest(self) -> str | None:
        """The known name that is most like the one that came, if a name came and none is the same."""
        name = str(self.got)[1:-1]
        # Only a name is shown in quotes; the rest are values, and words such as `nothing`.
        if not self.got.startswith(("'", '"')) or name in self.known:
            return None
        return next(iter(difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)), None)


def join(outer: str, inner: str) -> str:
    """The dotted path of ``inner`` seen from where ``outer`` starts; either may be empty."""
    return f"{outer}.{inner}" if outer and inner else outer or inner


def _shown(value: object) -> Shown:
    try:
        return Shown(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists in lists in lists
        return Shown(f"a value of type {type(value).__name__}, too large to show")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
