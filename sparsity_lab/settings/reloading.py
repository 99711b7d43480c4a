"""Classes that are defined again, as when a notebook reloads an edited module.

A name that was imported is the old class object, and stays so. The only way to new code is that this object changes.
Its members are set one by one. Its base classes were defined again too, also those that are no settings. It finds
them by its bases alone, and Python changes those by an assignment to ``__bases__`` and in no other way:
``test_base_classes_are_reloaded_too`` fails without it.
"""

import gc
from types import CellType

_OWN = frozenset({"__dict__", "__weakref__", "_abc_impl"})
"""What belongs to a class object itself."""


def renew(old: type, new: type) -> None:
    """Give ``old`` all that ``new`` has, and take away what it has not.

    So imported names of the class, and objects made from it, use the new code. With two classes of one name, objects
    would never be equal.
    """
    for name in vars(old).keys() - vars(new).keys() - _OWN:
        delattr(old, name)
    for name in vars(new).keys() - _OWN:
        setattr(old, name, vars(new)[name])
    # Where ``super()`` starts from: all functions of a class body share a cell with the class.
    for cell in gc.get_referrers(new):
        if isinstance(cell, CellType):
            cell.cell_contents = old
    if old.__bases__ != new.__bases__:
        old.__bases__ = new.__bases__
