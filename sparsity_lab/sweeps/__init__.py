"""Sweeps: many runs in one folder, on any engine, with all results in one frame."""

from typing import TYPE_CHECKING

from sparsity_lab.settings import lazy
from sparsity_lab.sweeps.engines import Ended as Ended
from sparsity_lab.sweeps.engines import Engine as Engine
from sparsity_lab.sweeps.engines import Processes as Processes
from sparsity_lab.sweeps.engines import Serial as Serial
from sparsity_lab.sweeps.ray_engine import RayEngine as RayEngine
from sparsity_lab.sweeps.sweep import Sweep as Sweep
from sparsity_lab.sweeps.sweep import grid as grid

if TYPE_CHECKING:
    from sparsity_lab.sweeps.config_file import load_sweep as load_sweep
    from sparsity_lab.sweeps.execute import run_sweep as run_sweep
    from sparsity_lab.sweeps.live import sweep_progress as sweep_progress
    from sparsity_lab.sweeps.live import training_progress as training_progress
    from sparsity_lab.sweeps.progress import Overview as Overview
    from sparsity_lab.sweeps.progress import SweepEvent as SweepEvent
    from sparsity_lab.sweeps.progress import overview as overview
    from sparsity_lab.sweeps.results import Results as Results
    from sparsity_lab.sweeps.results import rename_runs as rename_runs

lazy.load_on_first_use(__name__)
