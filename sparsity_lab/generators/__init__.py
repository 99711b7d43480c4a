"""Tasks: what is sampled, and the declared truth about it."""

from sparsity_lab.generators.certificate import FALSE_ALARM_RATE as FALSE_ALARM_RATE
from sparsity_lab.generators.certificate import Certificate as Certificate
from sparsity_lab.generators.certificate import certify as certify
from sparsity_lab.generators.locality import Anchored as Anchored
from sparsity_lab.generators.locality import Geometric as Geometric
from sparsity_lab.generators.locality import Law as Law
from sparsity_lab.generators.locality import PowerLaw as PowerLaw
from sparsity_lab.generators.locality import Recent as Recent
from sparsity_lab.generators.locality import Uniform as Uniform
from sparsity_lab.generators.locality import Window as Window
from sparsity_lab.generators.planted import Planted as Planted
from sparsity_lab.generators.rules import First as First
from sparsity_lab.generators.rules import Lookup as Lookup
from sparsity_lab.generators.rules import Majority as Majority
from sparsity_lab.generators.rules import Parity as Parity
from sparsity_lab.generators.rules import Rule as Rule
from sparsity_lab.generators.rules import SumMod as SumMod
from sparsity_lab.generators.sparse_parity import SparseParity as SparseParity
from sparsity_lab.generators.stream import Stream as Stream
from sparsity_lab.generators.task import IGNORE as IGNORE
from sparsity_lab.generators.task import Batch as Batch
from sparsity_lab.generators.task import NotComputable as NotComputable
from sparsity_lab.generators.task import Task as Task
from sparsity_lab.generators.task import Truth as Truth
from sparsity_lab.generators.task import Vocabulary as Vocabulary
