"""Benchmarks: speed as ratios within one run, since times alone say more of the machine than of the code.

One file for each part of the lab. A benchmark is a function that returns a frame; ``@benchmark`` enters it under its
name.
"""

from sparsity_lab.benchmarks import analysis as analysis
from sparsity_lab.benchmarks import fine_tune as fine_tune
from sparsity_lab.benchmarks import generation as generation
from sparsity_lab.benchmarks import generators as generators
from sparsity_lab.benchmarks import kernels as kernels
from sparsity_lab.benchmarks import sweeps as sweeps
from sparsity_lab.benchmarks import training as training
from sparsity_lab.benchmarks.measure import Benchmark as Benchmark
from sparsity_lab.benchmarks.measure import alternate as alternate
from sparsity_lab.benchmarks.measure import benchmark as benchmark
from sparsity_lab.benchmarks.measure import benchmarks as benchmarks
from sparsity_lab.benchmarks.measure import find_benchmark as find_benchmark
from sparsity_lab.benchmarks.memory import peak_memory as peak_memory
