"""``sparsity-lab show``."""

# ruff: noqa: PLC0415

import difflib
import textwrap
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from sparsity_lab.cli.command import Outcome, SettingsCommand
from sparsity_lab.settings import SettingError

if TYPE_CHECKING:
    from sparsity_lab.settings import Setting


@dataclass(frozen=True, kw_only=True)
class Show(SettingsCommand):
    """Describe a task, law, kernel, position scheme or any other setting: its fields with their defaults and
    meanings, and an example."""

    kind: Positional[str]
    """Name of the setting, as in "sparsity-lab show Planted"; "sparsity-lab list" lists all names."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.settings import families, kinds

        every = [(kind, cls) for family in families() for kind, cls in kinds(family).items()]
        wanted = self.kind.partition("(")[0].casefold()
        found = [cls for kind, cls in every if kind.casefold() == wanted]
        if not found:
            known = {kind.casefold(): kind for kind, _ in every}
            nearest = next(iter(difflib.get_close_matches(wanted, known, n=1)), "")
            raise SettingError("kind", "a name from sparsity-lab list", self.kind, meant=known.get(nearest))
        return Outcome([_show(cls, console) for cls in found])


def _show(cls: type["Setting"], console: Console) -> dict[str, Any]:
    """Print the description of a class. Returns the same as data."""
    from sparsity_lab.settings.descriptions import field_words, paragraphs
    from sparsity_lab.settings.setting import default_of, field_hints

    console.print(Text(cls.kind, style="bold").append(f", a {cls.family}", style="not bold"))
    for part in paragraphs(cls.__doc__):
        for line in part.splitlines() if part.startswith(" ") else textwrap.wrap(part, min(console.width, 100)):
            console.print(Text(line), soft_wrap=True)
        console.print()
    words, hints = field_words(cls), field_hints(cls)
    rows = []
    for field in fields(cast(Any, cls)):
        default = default_of(field)
        shown = "needed" if default is MISSING else repr(default) if isinstance(default, str) else str(default)
        meaning = " ".join(filter(None, [words[field.name], _choices(hints[field.name])]))
        rows.append({"field": field.name, "default": shown, "meaning": meaning})
    table = Table(box=None, pad_edge=False)
    for name in ("field", "default", "meaning"):
        table.add_column(name, overflow="fold", no_wrap=name == "field", ratio=1 if name == "meaning" else None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    if rows:
        console.print(table, soft_wrap=False)
        console.print()
    example = _example(cls)
    console.print(Text("Example: ", style="bold").append(example, style="not bold"), soft_wrap=True)
    data = {"kind": cls.kind, "family": cls.family, "about": paragraphs(cls.__doc__), "fields": rows}
    return data | {"example": example}


def _choices(hint: Any) -> str:
    """The allowed values of the field in a sentence, if they are a list; otherwise an empty text."""
    from sparsity_lab.settings import Setting, kinds

    for one in (hint, *get_args(hint)):
        if get_origin(one) is Literal:
            return f"One of {', '.join(map(repr, get_args(one)))}."
        if isinstance(one, type) and issubclass(one, Setting) and hasattr(one, "family"):
            members = [kind for kind, cls in kinds(one.family).items() if issubclass(cls, one)]
            return f"One of {', '.join(members)}." if len(members) > 1 else ""
    return ""


def _example(cls: type["Setting"]) -> str:
    """An example to type: for a task, a command that samples it; otherwise, a setting with fields that are not
    default."""
    own = max(cls.examples(), key=lambda one: (len(str(one)) <= 60, len(str(one)) < 200, len(str(one))))
    return f'sparsity-lab sample "{own}"' if cls.family == "task" else str(own)
