"""A terminal to which texts are texts, whoever wrote them."""

from typing import Any

from rich.console import Console
from rich.text import Text

from sparsity_lab.settings.markup import visible

__all__ = ["PlainConsole"]


class PlainConsole(Console):
    """A console that never takes a part of a text for markup, an emoji or a command.

    Names and failures may come from a folder of somebody else. They may hold brackets and colons, and characters
    that steer a terminal.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as it is shown."""
        return super().render_str(visible(text), **options)
