"""Settings: frozen dataclasses that carry their own behavior.

Everything a user chooses (a task, a locality law, a kernel, a curriculum) is a *setting*. A setting is an immutable
object with a ``kind`` and a ``version``. The kind is its name in files and on the command line. The version is raised
when its behavior changes. This package gives them

- ``register``: one decorator line makes a class a setting of its family and enters it in the registry;
- checks: field types when the object is made, and the class's own ``check``;
- three texts that can be read back to an equal object: canonical JSON, plain data for files, and the short form
  ``Planted(k=3, locality=Recent(width=8))`` of tables, figures and the command line;
- ids: a hash of kinds, versions and all that differs from its default, which no later release changes;
- errors that name the field by its path, what was expected, what came, and the nearest known name.

It imports nothing else from ``sparsity_lab``.
"""

from sparsity_lab.settings.errors import (
    LARGEST_SEED,
    LARGEST_SIZE,
    LARGEST_WHOLE,
    SettingError,
    Shown,
    check_range,
    check_text,
    counted,
)
from sparsity_lab.settings.frozen_mapping import FrozenMapping
from sparsity_lab.settings.reading import read_whole
from sparsity_lab.settings.setting import (
    Setting,
    families,
    from_data,
    from_text,
    is_registered,
    kinds,
    register,
    with_shared_parts,
)
from sparsity_lab.settings.short_form import distinct
from sparsity_lab.settings.texts import (
    canonical_json,
    column_types,
    flatten,
    identifier,
    replace_at,
    settings_in,
    to_data,
    with_each,
)

__all__ = [
    "LARGEST_SEED",
    "LARGEST_SIZE",
    "LARGEST_WHOLE",
    "FrozenMapping",
    "Setting",
    "SettingError",
    "Shown",
    "canonical_json",
    "check_range",
    "check_text",
    "column_types",
    "counted",
    "distinct",
    "families",
    "flatten",
    "from_data",
    "from_text",
    "identifier",
    "is_registered",
    "kinds",
    "read_whole",
    "register",
    "replace_at",
    "settings_in",
    "to_data",
    "with_each",
    "with_shared_parts",
]
