"""Settings: frozen dataclasses that carry their own behavior.

Everything a user chooses (a task, a locality law, a kernel, a curriculum) is a *setting*. A setting is an immutable
object with a ``kind`` and a ``version``. The kind is its name in files and on the command line. The version is raised
when its behavior changes. This package provides

- ``register``: one decorator line makes a class a setting of its family and enters it in the registry;
- checks: field types when the object is made, and the class's own ``check``;
- three text forms that can be read back to an equal object: canonical JSON, plain data for files, and the short form
  ``Planted(k=3, locality=Recent(width=8))`` for tables, figures and the command line;
- ids: a hash of kinds, versions and all values that are not defaults, which no later release changes;
- errors that name the path of the field, the expected value, the given value, and the nearest known name.

It imports nothing else from ``sparsity_lab``.
"""

from sparsity_lab.settings import lazy
from sparsity_lab.settings.errors import LARGEST_SEED as LARGEST_SEED
from sparsity_lab.settings.errors import LARGEST_SIZE as LARGEST_SIZE
from sparsity_lab.settings.errors import LARGEST_WHOLE as LARGEST_WHOLE
from sparsity_lab.settings.errors import SettingError as SettingError
from sparsity_lab.settings.errors import Shown as Shown
from sparsity_lab.settings.errors import check_least as check_least
from sparsity_lab.settings.errors import check_most as check_most
from sparsity_lab.settings.errors import check_range as check_range
from sparsity_lab.settings.errors import check_text as check_text
from sparsity_lab.settings.errors import check_that as check_that
from sparsity_lab.settings.errors import counted as counted
from sparsity_lab.settings.errors import whole as whole
from sparsity_lab.settings.fields import FrozenMapping as FrozenMapping
from sparsity_lab.settings.reading import read_whole as read_whole
from sparsity_lab.settings.setting import Setting as Setting
from sparsity_lab.settings.setting import families as families
from sparsity_lab.settings.setting import from_data as from_data
from sparsity_lab.settings.setting import from_text as from_text
from sparsity_lab.settings.setting import is_registered as is_registered
from sparsity_lab.settings.setting import kinds as kinds
from sparsity_lab.settings.setting import register as register
from sparsity_lab.settings.setting import with_shared_parts as with_shared_parts
from sparsity_lab.settings.short_form import distinct as distinct
from sparsity_lab.settings.texts import canonical_json as canonical_json
from sparsity_lab.settings.texts import column_types as column_types
from sparsity_lab.settings.texts import flatten as flatten
from sparsity_lab.settings.texts import identifier as identifier
from sparsity_lab.settings.texts import replace_at as replace_at
from sparsity_lab.settings.texts import settings_in as settings_in
from sparsity_lab.settings.texts import to_data as to_data
from sparsity_lab.settings.texts import with_each as with_each

lazy.load_on_first_use(__name__)
