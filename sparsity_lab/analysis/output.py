"""Files that are written whole or not at all."""

import os
import secrets
from pathlib import Path

from sparsity_lab.settings import SettingError

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> Path:
    """Put ``content`` at ``path`` in one step, so that a reader finds the old file or the new one; returns the path.

    The run store's writer is not for this: it makes room for its file, and here the place is the user's.

    Raises:
        SettingError: at ``path``; its folder does not exist, it is a folder, or the file cannot be written.
    """
    beside = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        raise SettingError("path", "a file that can be written", f"{path} ({error.strerror})") from None
    finally:
        beside.unlink(missing_ok=True)
    return path
