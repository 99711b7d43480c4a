"""A console that shows every text literally."""

from typing import Any

from rich.console import Console
from rich.text import Text

from sparsity_lab.settings.markup import visible


class PlainConsole(Console):
    """A console that never interprets text as markup, emoji or terminal commands.

    Run names and failure messages may come from an untrusted folder, with brackets, colons and control characters.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text with control characters escaped."""
        return super().render_str(visible(text), **options)
