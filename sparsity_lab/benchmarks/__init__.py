"""Benchmarks: speed as ratios within one run, since times alone say more of the machine than of the code; and
``verdicts``, how often ``diagnose`` is right.

One file for each part of the lab. A benchmark is a function that returns a frame, in a file of its name.
"""

from typing import TYPE_CHECKING

from sparsity_lab.benchmarks.finding import benchmarks as benchmarks
from sparsity_lab.benchmarks.finding import find_benchmark as find_benchmark
from sparsity_lab.settings import lazy

if TYPE_CHECKING:
    from sparsity_lab.analysis.memory import peak_memory as peak_memory
    from sparsity_lab.benchmarks.measure import Benchmark as Benchmark
    from sparsity_lab.benchmarks.measure import alternate as alternate
    from sparsity_lab.benchmarks.measure import machine as machine

lazy.load_on_first_use(__name__)
