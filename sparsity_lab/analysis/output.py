"""Files at a place that the user names."""

from pathlib import Path

from sparsity_lab.settings import SettingError
from sparsity_lab.training.files import write_file


def write_whole(path: Path, content: bytes) -> Path:
    """Put ``content`` at ``path`` in one step, so that a reader finds the old file or the new one; returns the path.

    The place is the user's, so no room is made for the file, as the run store does.

    Raises:
        SettingError: at ``path``; its folder does not exist, it is a folder, or the file cannot be written.
    """
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a folder" if path.is_dir() else "its folder does not exist"
        raise SettingError("path", f"cannot write {path}: {what}")
    try:
        write_file(path, content)
    except OSError as error:
        raise SettingError("path", f"cannot write {path}: {error.strerror}") from None
    return path
