"""The notebooks, as they were executed."""

from pathlib import Path

from pages.markdown import fenced, page

__all__ = ["pages"]


def pages(source: Path) -> dict[str, str]:
    found = sorted((source.parent / "notebooks").glob("[0-9]*.ipynb"))
    made = {f"notebooks/{path.name}": path.read_text(encoding="utf-8") for path in found}
    words = (
        "Each says at its top how long it takes. `make lab` opens JupyterLab on them. The sources are percent "
        "scripts in the same folder, and `make notebooks` executes them again."
    )
    tree = fenced("toctree", "\n".join(path.stem for path in found), maxdepth="1") if found else ""
    made["notebooks/index.md"] = page("# Notebooks", words, tree)
    return made
