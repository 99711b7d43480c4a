"""Updates of classes that are defined again, as when a notebook reloads an edited module.

An imported name keeps referring to the old class object. So this object itself must change to use the new code. Its
members are set one by one. Its base classes were defined again too, including those that are not settings. The object
refers to them only in ``__bases__``, and Python changes these only by assignment:
``test_base_classes_are_reloaded_too`` fails without it.
"""

import gc
from types import CellType

_OWN = frozenset({"__dict__", "__weakref__", "_abc_impl"})
"""Attributes that belong to the class object itself."""


def renew(old: type, new: type) -> None:
    """Give ``old`` all members of ``new``, and remove all others.

    So imported names of the class, and existing objects, use the new code. With two classes of the same name, objects
    would never be equal.
    """
    for name in vars(old).keys() - vars(new).keys() - _OWN:
        delattr(old, name)
    for name in vars(new).keys() - _OWN:
        setattr(old, name, vars(new)[name])
    # ``super()`` starts from this cell, which all functions of a class body share.
    for cell in gc.get_referrers(new):
        if isinstance(cell, CellType):
            cell.cell_contents = old
    if old.__bases__ != new.__bases__:
        old.__bases__ = new.__bases__
