"""Arms: four tasks, each with the same choices of position IDs."""

from dataclasses import dataclass

from sparsity_lab.generators import Addition, ParityScratchpad, SparseParityScratchpad, Task, VariableAssignment
from sparsity_lab.kernels import LSSAR, EntropyInvariantSoftmax
from sparsity_lab.models import Decoder, Ignored, NoPE, Oracle, PoSE, Predicted, RoPE, Shuffled
from sparsity_lab.studies import Size, over_seeds
from sparsity_lab.training import Evaluation, RunConfig, Training, UniformLength

ADDITION, SPARSE, PARITY, VARIABLES = "addition", "sparse parity", "parity", "variables"


@dataclass(frozen=True, kw_only=True)
class CoupledTask:
    """One task of the study.

    Attributes:
        task: with the IDs that the coupled arms get.
        trained: shortest and longest trained length.
        lengths: evaluated ones.
        judged: those that claims look at, and that the smoke size evaluates.
        model: of all arms; its position scheme is that of the coupled ones.
        steps: of the small size; the full one has twenty times as many.
        seeds: of the small size.
        close_seeds: the same for the arms that claims compare closely, ``CLOSE``; None is ``seeds``.
    """

    task: Task
    trained: tuple[int, int]
    lengths: tuple[int, ...]
    judged: tuple[int, ...]
    model: Decoder
    steps: int
    seeds: int
    close_seeds: int | None = None

    @property
    def longest(self) -> int:
        """The longest evaluated length."""
        return self.lengths[-1]


MODEL = Decoder(num_layers=1, num_heads=4, d_model=256, position=NoPE(), coupling=Ignored())

PARTS = {
    ADDITION: CoupledTask(
        task=Addition(end_ids=True),
        trained=(1, 6),
        lengths=(6, 9, 12, 15, 24),
        judged=(6, 9, 15, 24),
        model=MODEL,
        steps=3500,
        seeds=3,
        close_seeds=5,
    ),
    SPARSE: CoupledTask(
        task=SparseParityScratchpad(density=0.5, end_ids=True, look_ahead=False),
        trained=(2, 8),
        lengths=(8, 12, 16, 32),
        judged=(8, 32),
        model=MODEL,
        steps=4000,
        seeds=3,
        close_seeds=6,
    ),
    PARITY: CoupledTask(
        task=ParityScratchpad(),
        trained=(1, 10),
        lengths=(10, 15, 20, 40),
        judged=(10, 40),
        model=MODEL,
        steps=1500,
        seeds=1,
    ),
    VARIABLES: CoupledTask(
        task=VariableAssignment(hops=1, num_names=32, look_ahead=False),
        trained=(2, 8),
        lengths=(8, 12, 16, 32),
        judged=(8, 32),
        model=MODEL.replace(num_layers=2),
        steps=2500,
        seeds=1,
    ),
}

SLACK = 4
"""IDs that a table has beyond the largest of the longest sequence, so that this one too can be moved."""

ROPE, POSE, NOPE = "RoPE", "RoPE + PoSE", "NoPE"
GIVEN, PREDICTED, NO_OFFSET, SHUFFLED = "IDs given", "IDs predicted", "predicted, no offset", "IDs shuffled"
NAMES = (ROPE, POSE, NOPE, GIVEN, PREDICTED, NO_OFFSET, SHUFFLED)
OFFSET, CLIPPED, PUBLISHED = "given, offset alone", "given, clipped offset", "given, as published"
LOG_N, RE_WEIGHTED = "offset alone, log-n", "offset alone, LSSAR"
SHARPENED = (LOG_N, RE_WEIGHTED)
PREDICTED_OFFSET = "predicted, offset alone"
AHEAD, PREDICTED_AHEAD = "given, look-ahead", "predicted, look-ahead"
CLOSE = (GIVEN, PREDICTED, AHEAD, PREDICTED_AHEAD, OFFSET, CLIPPED, PUBLISHED, LOG_N, RE_WEIGHTED)


def arm(part: str, name: str) -> str:
    return f"{part}, {name}"


def arms(size: Size) -> dict[str, list[RunConfig]]:
    made = {}
    for label, part in PARTS.items():
        for name, run in _runs(label, part, _base(part, size)).items():
            small = (part.close_seeds or part.seeds) if name in CLOSE else part.seeds
            made[arm(label, name)] = over_seeds(run, range({"smoke": 1, "small": small, "full": 8}[size]))
    return made


def _base(part: CoupledTask, size: Size) -> RunConfig:
    low, high = part.trained
    curriculum = UniformLength(low=low, high=high)
    if size == "smoke":
        return RunConfig(
            task=part.task,
            model=part.model.replace(num_layers=1, num_heads=1, d_model=8, d_ff=8),
            training=Training(steps=2, batch_size=4, curriculum=curriculum),
            evaluation=Evaluation(lengths=part.judged, sequences=2),
        )
    full = size == "full"
    return RunConfig(
        task=part.task,
        model=part.model,
        training=Training(
            steps=20 * part.steps if full else part.steps,
            batch_size=128 if full else 32,
            learning_rate=5e-4 if full else 1e-3,
            curriculum=curriculum,
            log_every=50,
        ),
        evaluation=Evaluation(lengths=part.lengths, sequences=2048 if full else 128),
    )


def _runs(label: str, part: CoupledTask, base: RunConfig) -> dict[str, RunConfig]:
    model = base.model
    assert isinstance(model, Decoder)
    largest = part.task.largest_position_id(part.longest) + SLACK
    size = part.task.sequence_length(part.longest)
    oracle, predicted = (
        Oracle(max_id=largest, random_offset="spread"),
        Predicted(max_id=largest, random_offset="spread"),
    )
    models = {
        ROPE: model.replace(position=RoPE()),
        POSE: model.replace(position=RoPE(), index_sampling=PoSE(target=size)),
        NOPE: model.replace(position=NoPE()),
        GIVEN: model.replace(coupling=oracle),
        PREDICTED: model.replace(coupling=predicted),
        NO_OFFSET: model.replace(coupling=predicted.replace(random_offset=False)),
        SHUFFLED: model.replace(coupling=Shuffled(max_id=largest)),
    }
    if label == ADDITION:
        trained = part.task.sequence_length(part.trained[1])
        moved = model.replace(coupling=oracle.replace(random_offset=True))
        models[OFFSET] = moved
        models[CLIPPED] = model.replace(coupling=oracle.replace(random_offset="clipped"))
        models[LOG_N] = moved.replace(kernel=EntropyInvariantSoftmax(trained_length=trained))
        models[RE_WEIGHTED] = moved.replace(kernel=LSSAR(p=3))
    if label == SPARSE:
        models[PREDICTED_OFFSET] = model.replace(coupling=predicted.replace(random_offset=True))
    runs = {name: base.replace(model=one) for name, one in models.items()}
    if label == ADDITION:
        runs[PUBLISHED] = runs[OFFSET].replace(task=part.task.replace(end_ids=False))
    if label == SPARSE:
        ahead = part.task.replace(look_ahead=True)
        runs |= {AHEAD: runs[GIVEN].replace(task=ahead), PREDICTED_AHEAD: runs[PREDICTED].replace(task=ahead)}
    return runs
