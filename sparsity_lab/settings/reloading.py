"""Classes that are defined again, as when a notebook reloads an edited module."""

import inspect
from types import FunctionType
from typing import Any

_OWN = frozenset({"__dict__", "__weakref__", "_abc_impl"})
"""What belongs to a class object itself."""


def renew(old: type, new: type) -> None:
    """Give ``old`` all that ``new`` has, and take away what it has not.

    So imported names of the class, and objects made from it, use the new code. With two classes of one name, objects
    would never be equal.
    """
    for name in set(vars(old)) - set(vars(new)) - _OWN:
        delattr(old, name)
    for name, value in vars(new).items():
        if name not in _OWN:
            setattr(old, name, value)
            _set_class(value, old)
    # A base class of the same module was defined again too, and no list of its members could renew them.
    if old.__bases__ != new.__bases__:
        old.__bases__ = new.__bases__


def _set_class(value: Any, cls: type) -> None:
    """Make ``super()`` in a method, or in the function of a property, start from ``cls``."""
    for wrapped in ("__func__", "fget", "func"):
        value = getattr(value, wrapped, value)
    function = inspect.unwrap(value) if callable(value) else value
    if isinstance(function, FunctionType) and "__class__" in function.__code__.co_freevars:
        cells = function.__closure__ or ()
        cells[function.__code__.co_freevars.index("__class__")].cell_contents = cls
