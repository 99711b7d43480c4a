"""Files of C++ that are compiled when they are first used: ``implementation="native"``."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from sparsity_lab.settings import SettingError, Shown
from sparsity_lab.settings.log import plain_logger

NEEDED = "a C++ compiler: c++, or what CXX names, or sparsity-lab[fast]"


def _compiler() -> tuple[str, ...]:
    """The command, empty where there is none. ``CXX`` may have arguments, as in ``ccache g++``."""
    command, *arguments = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if found := shutil.which(command):
        return found, *arguments
    return (sys.executable, "-P", "-m", "ziglang", "c++") if find_spec("ziglang") else ()


COMPILER = _compiler()

_PROCESSOR = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
_FLAGS = ("-std=c++17", "-O3", _PROCESSOR, "-fno-math-errno", "-fPIC", "-shared", "-pthread")


def check_native(q: Tensor) -> None:
    """Refuse ``implementation="native"`` without a compiler, in float64, and on other devices.

    Raises:
        SettingError: at ``implementation``.
    """
    if not COMPILER:
        raise SettingError("implementation", f"another form than 'native', which needs {NEEDED}", "native")
    if q.dtype == torch.float64 or q.device.type not in ("cpu", "meta"):
        given = f"{q.dtype} on {q.device.type}".removeprefix("torch.")
        raise SettingError("implementation", "rows on a CPU, float32 or less, for 'native'", Shown(given))


@functools.cache
def library(source: Path) -> ctypes.CDLL:
    """What a file of C++ compiles to on this machine. It is kept under the user's cache folder, by everything that it
    depends on; where that folder is not the user's alone, for this process only.

    Raises:
        SettingError: it does not compile here.
    """
    # The compiler's version and what it knows of this processor.
    macros = _compiled("-dM", "-E", "-x", "c++", os.devnull)
    key = hashlib.sha256(source.read_bytes() + " ".join(_FLAGS).encode() + macros).hexdigest()[:16]
    name = f"{source.stem}-{key}.so"

    def made(folder: str) -> Path:
        _compiled(str(source), "-o", str(Path(folder) / name))
        return Path(folder) / name

    try:
        # A relative folder could belong to someone else, so it is ignored.
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        kept = (given if given.is_absolute() else Path.home() / ".cache") / "sparsity_lab"
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_own(kept)
        if not (kept / name).exists():
            with tempfile.TemporaryDirectory(dir=kept) as folder:
                library = made(folder)
                library.chmod(0o700)
                library.replace(kept / name)
        _check_own(kept / name)
        return ctypes.CDLL(str(kept / name))
    except (OSError, RuntimeError) as error:  # the latter where there is no home
        plain_logger(__name__).warning("%s is compiled for this process alone: %s", source.name, error)
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(made(folder)))


def _check_own(path: Path) -> None:
    """Raise ``OSError`` unless a file or folder is this user's, and nobody else can change it: it will be run."""
    state = path.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise PermissionError(f"others than this user can change {path}")


def _compiled(*arguments: str) -> bytes:
    """What the compiler prints.

    Raises:
        SettingError: it does not run, or it fails.
    """
    try:
        done = subprocess.run([*COMPILER, *_FLAGS, *arguments], capture_output=True, check=False)
    except OSError as error:
        raise SettingError("implementation", NEEDED, Shown(str(error))) from None
    if done.returncode:
        *_, last = "", *done.stderr.decode(errors="replace").strip().splitlines()
        got = Shown(f"{COMPILER[0]} failed with exit code {done.returncode}; {last}")
        raise SettingError("implementation", NEEDED, got)
    return done.stdout
