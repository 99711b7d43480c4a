"""The commands of ``sparsity-lab``, a file each."""

from sparsity_lab.commands.bench import Bench as Bench
from sparsity_lab.commands.certify import Certify as Certify
from sparsity_lab.commands.command import Command as Command
from sparsity_lab.commands.command import Outcome as Outcome
from sparsity_lab.commands.demo import Demo as Demo
from sparsity_lab.commands.diagnose import Diagnose as Diagnose
from sparsity_lab.commands.list import List as List
from sparsity_lab.commands.report import Report as Report
from sparsity_lab.commands.sample import Sample as Sample
from sparsity_lab.commands.sweep import Sweep as Sweep
from sparsity_lab.commands.train import Train as Train
