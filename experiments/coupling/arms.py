"""Arms: five tasks, each with its IDs given, with IDs predicted, and without."""

from dataclasses import dataclass

from sparsity_lab.generators import Addition, Copy, ParityScratchpad, SparseParityScratchpad, Task, VariableAssignment
from sparsity_lab.models import Decoder, Ignored, NoPE, Oracle, PositionScheme, Predicted, RoPE
from sparsity_lab.studies import Arm, Size, seeded
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

ADDITION, PARITY, SPARSE, VARIABLES, COPY = "addition", "parity", "sparse parity", "variables", "copy"
GIVEN, PREDICTED, WITHOUT = "IDs given", "IDs predicted", "no IDs"
NAMES = (GIVEN, PREDICTED, WITHOUT)


@dataclass(frozen=True, kw_only=True)
class CoupledTask:
    """One task of the study.

    Attributes:
        task: with the IDs that the coupled arms get.
        trained: shortest and longest trained length.
        lengths: evaluated ones, from the longest trained to four times that.
        model: of all arms; with IDs it has no other positions.
        without: positions of the arm without IDs, NoPE or RoPE; the notes say which was better.
        steps, batch_size, learning_rate: of the small size; the full one has twenty times as many steps.
    """

    task: Task
    trained: tuple[int, int]
    lengths: tuple[int, ...]
    model: Decoder
    without: PositionScheme
    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3

    @property
    def longest(self) -> int:
        """Four times the longest trained length."""
        return self.lengths[-1]


MODEL = Decoder(num_layers=1, num_heads=4, d_model=256, position=NoPE(), coupling=Ignored())

PARTS = {
    ADDITION: CoupledTask(
        task=Addition(end_ids=True),
        trained=(1, 6),
        lengths=(6, 12, 24),
        model=MODEL,
        without=NoPE(),
        steps=3500,
    ),
    PARITY: CoupledTask(
        task=ParityScratchpad(), trained=(1, 10), lengths=(10, 20, 40), model=MODEL, without=NoPE(), steps=1500
    ),
    SPARSE: CoupledTask(
        task=SparseParityScratchpad(density=0.5, end_ids=True, look_ahead=True),
        trained=(2, 8),
        lengths=(8, 16, 32),
        model=MODEL,
        without=RoPE(),
        steps=8000,
    ),
    VARIABLES: CoupledTask(
        task=VariableAssignment(hops=1, num_names=32, look_ahead=True),
        trained=(2, 8),
        lengths=(8, 16, 32),
        model=MODEL.replace(num_layers=2, d_model=64),
        without=RoPE(),
        steps=1500,
        batch_size=64,
        learning_rate=3e-3,
    ),
    COPY: CoupledTask(task=Copy(), trained=(1, 8), lengths=(8, 16, 32), model=MODEL, without=RoPE(), steps=1500),
}

SLACK = 4
"""IDs that a table has beyond the largest of the longest sequence, so that this one too can be moved."""
FIRST_SEED = 10
"""Earlier forms of this study ran seeds 0 to 5, and trials seed 100: what was seen there decides nothing here."""
SEEDS: dict[Size, int] = {"smoke": 1, "small": 7, "full": 8}


def arm(label: str, name: str) -> str:
    return f"{label}, {name}"


def arms(size: Size) -> dict[str, Arm]:
    return {
        arm(label, name): Arm(seeded(run), SEEDS[size], FIRST_SEED)
        for label, part in PARTS.items()
        for name, run in _runs(part, size).items()
    }


def _runs(part: CoupledTask, size: Size) -> dict[str, RunConfig]:
    base = _base(part, size)
    assert isinstance(base.model, Decoder)
    largest = part.task.largest_position_id(part.longest) + SLACK
    models = {
        GIVEN: base.model.replace(coupling=Oracle(max_id=largest, random_offset="spread")),
        PREDICTED: base.model.replace(coupling=Predicted(max_id=largest, random_offset="spread")),
        WITHOUT: base.model.replace(position=part.without),
    }
    return {name: base.replace(model=model) for name, model in models.items()}


def _base(part: CoupledTask, size: Size) -> RunConfig:
    low, high = part.trained
    curriculum = UniformLength(low=low, high=high)
    if size == "smoke":
        return RunConfig(
            task=part.task,
            model=part.model.replace(num_layers=1, num_heads=1, d_model=8, d_ff=8),
            training=Training(steps=2, batch_size=4, curriculum=curriculum),
            evaluation=Evaluation(lengths=part.lengths, sequences=2),
        )
    full = size == "full"
    return RunConfig(
        task=part.task,
        model=part.model,
        training=Training(
            steps=20 * part.steps if full else part.steps,
            batch_size=4 * part.batch_size if full else part.batch_size,
            learning_rate=part.learning_rate / 2 if full else part.learning_rate,
            curriculum=curriculum,
            log_every=50,
        ),
        evaluation=Evaluation(lengths=part.lengths, sequences=2048 if full else 512),
    )
