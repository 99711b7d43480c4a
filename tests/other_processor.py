"""A pytest plugin, ``-p other_processor``: what libraries choose by the processor is chosen otherwise.

Vector instructions are turned off by variables that libraries read (``test_other_processors.py`` sets them). Pillow
reads none for the compression of PNG, so it is set here, to the level in ``PNG_LEVEL``.
"""

import os
from typing import Any

import numpy
import torch
from PIL import Image

_save = Image.Image.save


def _save_otherwise(image: Image.Image, file: Any, format: str | None = None, **params: Any) -> None:
    _save(image, file, format, **({"compress_level": int(os.environ["PNG_LEVEL"])} | params))


def pytest_configure() -> None:
    Image.Image.save = _save_otherwise  # type: ignore[method-assign]


def pytest_unconfigure() -> None:
    Image.Image.save = _save  # type: ignore[method-assign]


def pytest_report_header() -> str:
    numpy_uses = numpy.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return f"torch uses {torch.backends.cpu.get_cpu_capability()}, numpy {numpy_uses}"
