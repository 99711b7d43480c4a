"""Execute the notebooks from their sources, as ``make notebooks`` does: ``python notebooks/execute.py [NAME ...]``.

Each percent script is run in a fresh kernel and written beside itself as ``.ipynb`` with its outputs, without clock
times and kernel details, so that a new execution changes no more than what it found.
"""

import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SOURCES = "[0-9]*.py"


def execute(source: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook of a percent script, executed in ``folder``; an error in a cell is raised."""
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata.clear()
    notebook.metadata.pop("language_info", None)
    return notebook


def main(names: list[str]) -> None:
    for source in sorted(FOLDER.glob(SOURCES)):
        if names and not any(source.stem.startswith(name) for name in names):
            continue
        begun = time.perf_counter()
        notebook = execute(source, FOLDER)
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        sys.stdout.write(f"{source.stem}: {time.perf_counter() - begun:.0f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
