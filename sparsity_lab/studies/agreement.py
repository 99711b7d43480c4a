"""Comparison of two renderings of a file.

Their bytes can differ, because the last bit of a mean depends on the processor. So a rounded number may differ by one
in its last place, and an id that is a hash of such numbers may differ completely. Words, structure and counts are
equal.
"""

import re
from itertools import count

# A number, but not inside a name, a color or a version.
_NUMBER = re.compile(r"(?<![\w#.])[-−]?\d+(?:\.\d+)?(?![\w.]*\w)")
_ID = re.compile(r'((?:\bid|\bhref)="#?|\burl\(#)([^")]*)')


def agree(committed: str, rendered: str) -> bool:
    """Whether two texts are equal, except for the last place of numbers with decimals and the names of ids.

    >>> agree("| 0.125 | 3 seeds |", "| 0.126 | 3 seeds |")
    True
    >>> agree("| 0.125 | 3 seeds |", "| 0.127 | 3 seeds |")
    False
    >>> agree("| 0.125 | 3 seeds |", "| 0.125 | 4 seeds |")
    False
    """
    if committed == rendered:
        return True
    ours, theirs = _with_ids_in_order(committed), _with_ids_in_order(rendered)
    if _NUMBER.split(ours) != _NUMBER.split(theirs):
        return False
    return all(map(_close, _NUMBER.findall(ours), _NUMBER.findall(theirs)))


def _close(one: str, other: str) -> bool:
    """Whether two numbers differ by at most one in the last place of the finer one. Integers must be equal."""
    places = max(len(number.partition(".")[2]) for number in (one, other))
    first, second = (round(float(number.replace("−", "-")) * 10.0**places) for number in (one, other))
    return abs(first - second) <= (places > 0)


def _with_ids_in_order(text: str) -> str:
    """The text with its ids, and the links to them, numbered by first appearance."""
    names: dict[str, str] = {}
    numbers = count()
    return _ID.sub(lambda found: found[1] + names.setdefault(found[2], f"id{next(numbers)}"), text)
