"""The mapping that a frozen setting can hold."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

Key = TypeVar("Key")
Item_co = TypeVar("Item_co", covariant=True)


class FrozenMapping(Mapping[Key, Item_co]):
    """A mapping that cannot change. Its keys are sorted, so that equal ones also read the same.

    It equals every mapping with the same items, and can be hashed and pickled if its items can.

    >>> FrozenMapping({"b": 2, "a": 1})
    {'a': 1, 'b': 2}
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[Any, Item_co]) -> None:
        self._items = {key: items[key] for key in sorted(items)}

    def __getitem__(self, key: Key) -> Item_co:
        return self._items[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)
