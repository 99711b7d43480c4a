"""Training: optimize, evaluate by length, and keep a run in a folder that survives interruption."""

from typing import TYPE_CHECKING

from sparsity_lab.settings import lazy
from sparsity_lab.training.config import TRAINED_CONDITION as TRAINED_CONDITION
from sparsity_lab.training.config import Evaluation as Evaluation
from sparsity_lab.training.config import RunConfig as RunConfig
from sparsity_lab.training.config import Training as Training
from sparsity_lab.training.curriculum import Curriculum as Curriculum
from sparsity_lab.training.curriculum import FixedLength as FixedLength
from sparsity_lab.training.curriculum import GrowingLength as GrowingLength
from sparsity_lab.training.curriculum import MixedLengths as MixedLengths
from sparsity_lab.training.curriculum import UniformLength as UniformLength
from sparsity_lab.training.extension import extended as extended
from sparsity_lab.training.labels import run_labels as run_labels
from sparsity_lab.training.optimize import Diverged as Diverged
from sparsity_lab.training.optimize import Progress as Progress
from sparsity_lab.training.optimize import threads_and_device as threads_and_device

if TYPE_CHECKING:
    from sparsity_lab.training.evaluate import EVALUATION_SCHEMA as EVALUATION_SCHEMA
    from sparsity_lab.training.evaluate import evaluate as evaluate
    from sparsity_lab.training.evaluate import summarize as summarize
    from sparsity_lab.training.folder import Status as Status
    from sparsity_lab.training.folder import status as status
    from sparsity_lab.training.loggers import CSVLogger as CSVLogger
    from sparsity_lab.training.loggers import Logger as Logger
    from sparsity_lab.training.loggers import TensorBoardLogger as TensorBoardLogger
    from sparsity_lab.training.run import Run as Run
    from sparsity_lab.training.run import RunVariant as RunVariant
    from sparsity_lab.training.run import train as train

lazy.load_on_first_use(__name__)
