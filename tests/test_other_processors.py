"""What is committed is what other processors give: the tests that compare with it run again without this one's vector
instructions, with the BLAS of another one, and with other compression."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import other_processor
import pytest
from matplotlib.axes import Axes

from sparsity_lab.analysis.style import draw_cells, figure_svg, new_axes

ROOT = Path(__file__).parents[1]


def numpy_features(*kept: str) -> str:
    """All vector instructions that this numpy would choose here, but for those kept; it warns of any others."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return " ".join(feature for feature in found if feature not in kept)


PROCESSORS = {
    "no vectors": {
        "ATEN_CPU_CAPABILITY": "default",
        "NPY_DISABLE_CPU_FEATURES": numpy_features(),
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "PNG_LEVEL": "1",
    },
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "NPY_DISABLE_CPU_FEATURES": numpy_features("X86_V3", "AVX2", "FMA3"),
        "OPENBLAS_CORETYPE": "Zen",
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PNG_LEVEL": "9",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_committed_bytes_and_numbers_hold(processor: str) -> None:
    variables = {name: value for name, value in PROCESSORS[processor].items() if value}
    options = ["-m", "committed", "-p", "other_processor", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(ROOT / "tests")]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"torch uses {variables['ATEN_CPU_CAPABILITY'].upper()}" in done.stdout
    (passed,) = re.findall(r"= (\d+) passed", done.stdout)
    assert int(passed) > 50


def picture(draw: Callable[[Axes], object]) -> str:
    ax = new_axes(2, 2)
    draw(ax)
    return figure_svg(ax.figure)  # type: ignore[arg-type]


def test_a_raster_image_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin changes the bytes of images, and cells are none."""
    values = np.arange(600.0).reshape(20, 30)
    raster, cells = (lambda ax: ax.imshow(values)), (lambda ax: draw_cells(ax, values))
    usual = picture(raster), picture(cells)
    monkeypatch.setenv("PNG_LEVEL", "1")
    other_processor.pytest_configure()
    try:
        otherwise = picture(raster), picture(cells)
    finally:
        other_processor.pytest_unconfigure()
    assert usual[0] != otherwise[0]
    assert usual[1] == otherwise[1]
