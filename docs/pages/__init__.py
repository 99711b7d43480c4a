"""Pages and pictures that are made from the package itself, so that there is no second list to keep."""

from pathlib import Path

from pages import command_line, concepts, field, kernels, notebooks, reference, results, settings, tasks

__all__ = ["write_pages"]

_MAKERS = (command_line, concepts, field, kernels, notebooks, reference, results, settings, tasks)


def write_pages(source: Path) -> None:
    """Make ``generated/`` in the folder of the site's sources. Files whose text is unchanged stay untouched, so that
    Sphinx builds again what has changed and no more; files that nothing makes any longer are removed."""
    folder = source / "generated"
    made = {}
    for maker in _MAKERS:
        made |= maker.pages(source)
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in made:
            path.unlink()
