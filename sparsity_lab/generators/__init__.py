"""Tasks: what is sampled, and the declared truth about it."""

from sparsity_lab.generators.stream import Stream as Stream
from sparsity_lab.generators.task import IGNORE as IGNORE
from sparsity_lab.generators.task import Batch as Batch
from sparsity_lab.generators.task import Task as Task
from sparsity_lab.generators.task import Truth as Truth
from sparsity_lab.generators.task import Vocabulary as Vocabulary
