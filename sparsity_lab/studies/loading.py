"""Loading of studies from files.

A study is a Python file that defines one ``Study``, or a folder whose ``study.py`` does, with plain modules next to
it (``from .arms import arms``). ``load_study`` imports it as an ordinary module: ``my_study`` for ``my_study.py``,
``k_locality.study`` for ``k_locality/study.py``. The folder that holds the file or folder is put at the end of
``sys.path``, which worker processes and Ray's workers inherit. So they import the same module under the same name,
and know the settings that it registers.
"""

import importlib
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from sparsity_lab.settings import SettingError, Shown
from sparsity_lab.studies.study import Study

_FILE = "study.py"
_LONGEST_ERROR = 120
"""The longest error message, so that the line number after it is still shown."""


def load_study(path: Path | str) -> Study:
    """The study that a file, or the ``study.py`` in a folder, defines.

    The file is executed each time, with the modules next to it, so that a notebook sees edits. Later errors in the
    study's own functions (``arms``, ``figure``, a claim's rule) become a ``SettingError`` with the line number.

    >>> load_study("tiny_study").name
    'tiny'

    Raises:
        SettingError: there is no such file, it cannot be imported, it does not define exactly one ``Study``, or
            another module has its name.
    """
    file = _file_of(Path(path))
    name = f"{file.parent.name}.{file.stem}" if file.name == _FILE else file.stem
    top = name.partition(".")[0]
    root = file.parents[name.count(".")]
    if str(root) not in sys.path:
        sys.path.append(str(root))
    importlib.invalidate_caches()
    found = _spec_of(name)
    if found is None or found.origin is None or Path(found.origin).resolve() != file:
        raise SettingError(str(path), "a name without dots that no other module has", top)
    for loaded in [one for one in sys.modules if one == top or one.startswith(f"{top}.")]:
        del sys.modules[loaded]
    # Python checks bytecode against its source by size and second, so it could miss an edit within a second.
    caching, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        module = _guarded(importlib.import_module, "a study that can be imported", path, file)(name)
    finally:
        sys.dont_write_bytecode = caching
    study = _only_study(module, path)
    functions: dict[str, Any] = {field.name: getattr(study, field.name) for field in fields(study)}
    changes: dict[str, Any] = {
        name: _guarded(function, f"a study whose `{name}` works", path, file)
        for name, function in functions.items()
        if callable(function)
    }
    claims = [
        replace(
            claim, numbers=_guarded(claim.numbers, f"a study whose claim {claim.name!r} can be decided", path, file)
        )
        for claim in study.claims
    ]
    return replace(study, claims=tuple(claims), **changes)


def results_folder(path: Path) -> Path:
    """The folder of a study's result: its own folder, or for a file ``my_study.py``, the folder ``my_study`` next to
    it.

    >>> results_folder(Path("tiny_study")).as_posix()
    'tiny_study'

    Raises:
        SettingError: there is no such study.
    """
    file = _file_of(path)
    return path.parent if path.name == _FILE else path if file.name == _FILE else path.with_suffix("")


def studies_in(path: Path) -> list[Path]:
    """The study at a path, or all studies in a folder of studies; only those with a result.

    >>> [path.as_posix() for path in studies_in(Path("tiny_study"))]
    ['tiny_study']
    """
    if path.is_file() or (path / _FILE).is_file():
        return [path] if any(results_folder(path).glob("*.parquet")) else []
    folders = [file.parent for file in path.glob(f"*/{_FILE}")]
    files = [file for file in path.glob("*.py") if file.with_suffix("").is_dir()]
    return sorted(one for one in (*folders, *files) if any(results_folder(one).glob("*.parquet")))


def _file_of(path: Path) -> Path:
    file = path / _FILE if path.is_dir() else path
    if file.suffix != ".py" or not file.is_file():
        places = dict.fromkeys((path.parent, Path("experiments")))
        known = [str(one.parent) for place in places for one in sorted(place.glob(f"*/{_FILE}"))]
        raise SettingError("study", f"a file that ends in .py or a folder with a {_FILE}", str(path), known)
    return file.resolve()


def _spec_of(name: str) -> ModuleSpec | None:
    """The module that a fresh import of this name would find."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return None
    spec, path = None, None
    for end in [place for place, letter in enumerate(f"{name}.") if letter == "."]:
        spec = PathFinder.find_spec(name[:end], path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec


def _only_study(module: ModuleType, path: Path | str) -> Study:
    studies = {id(value): name for name, value in vars(module).items() if isinstance(value, Study)}
    if len(studies) != 1:
        got = Shown(" and ".join(studies.values()) or "none")
        raise SettingError(str(path), "a file that defines one Study", got)
    study: Study = getattr(module, next(iter(studies.values())))
    return study


def _guarded(function: Callable[..., Any], expected: str, path: Path | str, file: Path) -> Callable[..., Any]:
    """The same function of the study, but with errors reported in one line with the line number."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        # The file is the user's code, and can raise anything.
        except (Exception, SystemExit) as error:
            words = f"{type(error).__name__}: {error}"
            shown = words if len(words) <= _LONGEST_ERROR else f"{words[:_LONGEST_ERROR]}…"
            raise SettingError(str(path), expected, Shown(shown + _place(error, file))) from error

    return call


def _place(error: BaseException, file: Path) -> str:
    """The last line of the study in the traceback."""
    if isinstance(error, SyntaxError):  # its message has the line
        return ""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == file.parent]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
