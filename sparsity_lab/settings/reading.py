"""Files that the user names."""

from pathlib import Path

from sparsity_lab.settings.errors import SettingError, Shown


def read_whole(path: Path, most: int) -> bytes:
    """The bytes of a file with at most ``most`` bytes. A larger file is refused, because it may not fit in memory.

    >>> path = Path("four.txt")
    >>> _ = path.write_text("four")
    >>> read_whole(path, 4)
    b'four'

    Raises:
        SettingError: the file has more bytes or cannot be read. The error names it.
    """
    try:
        with path.open("rb") as opened:
            content = opened.read(most + 1)
    except OSError as error:
        raise SettingError(str(path), error.strerror or "cannot be read") from None
    if len(content) > most:
        raise SettingError(str(path), f"a file of at most {most} bytes", Shown("more"))
    return content
