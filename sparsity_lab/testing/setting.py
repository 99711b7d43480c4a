"""What every setting must do."""

import copy
import json
import pickle
import tomllib

from sparsity_lab.settings import Setting, canonical_json, from_data, from_text, identifier, kinds
from sparsity_lab.testing.failing import made, require


def check_setting(setting: Setting) -> None:
    """Check a setting of any family: that it is registered, and equal after its journey through every form.

    The forms are the short form, JSON, TOML, a pickle and a deep copy.

    Raises:
        AssertionError: something does not hold; the message says what, and what to do.

    Example:
        >>> from sparsity_lab.training import Training
        >>> check_setting(Training(steps=10))
    """
    cls = type(setting)
    require(
        kinds(setting.family).get(setting.kind) is cls,
        setting,
        f"{cls.__qualname__} is not registered as the {setting.family} {setting.kind!r}",
        "Put `@register` (from sparsity_lab.settings) above the class.",
    )
    family = next(base for base in cls.__mro__[::-1] if getattr(base, "family", None) == setting.family)
    keep = "Give each field a type hint that holds its value: numbers, text, tuples and settings."
    journeys = {
        "its short form": lambda: from_text(family, str(setting)),
        "JSON": lambda: from_data(family, json.loads(canonical_json(setting))),
        "TOML": lambda: from_data(
            family, tomllib.loads(f"it = {json.dumps(str(setting), ensure_ascii=False)}")["it"]
        ),
        "a pickle": lambda: pickle.loads(pickle.dumps(setting)),
        "a deep copy": lambda: copy.deepcopy(setting),
    }
    for name, journey in journeys.items():
        other = made(journey, setting, f"it does not survive {name}", keep)
        same = other == setting and type(other) is cls and identifier(other) == identifier(setting)
        require(same, setting, f"after {name} it is {other}", keep)
        require(hash(other) == hash(setting), setting, f"its hash changes with {name}", keep)
