"""The arms: feature maps of linear attention, softmax and a hybrid, each without and with the output gate."""

from sparsity_lab.generators import TextBytes
from sparsity_lab.kernels import Kernel, Linear, NormAwareLinear, Softmax
from sparsity_lab.models import Decoder
from sparsity_lab.studies import Size, over_seeds
from sparsity_lab.training import Evaluation, FixedLength, RunConfig, Training

__all__ = ["HYBRID", "MAPS", "NAMES", "TRAINED", "arms", "gated"]

TRAINED = 128

MAPS: dict[str, Kernel] = {
    "cosine": NormAwareLinear(),
    "polarity": NormAwareLinear(map="polarity"),
    "elu": Linear(),
    "relu": Linear(feature="relu"),
    "softmax": Softmax(),
}
HYBRID = "hybrid"
NAMES = (*MAPS, HYBRID)


def gated(name: str) -> str:
    """The arm with the output gate."""
    return f"{name}, gate"


def arms(size: Size) -> dict[str, list[RunConfig]]:
    steps, seeds, sequences = {"smoke": (1, 1, 2), "small": (300, 3, 128), "full": (20_000, 5, 1024)}[size]
    d_model = {"smoke": 16, "small": 64, "full": 384}[size]
    num_layers = {"smoke": 2, "small": 2, "full": 8}[size]
    trained = 16 if size == "smoke" else TRAINED
    base = RunConfig(
        task=TextBytes(),
        model=Decoder(num_layers=num_layers, d_model=d_model, num_heads=d_model // 16),
        training=Training(
            steps=steps,
            batch_size={"smoke": 2, "small": 8, "full": 64}[size],
            learning_rate=1e-3 if size == "full" else 6e-3,
            curriculum=FixedLength(length=trained),
        ),
        evaluation=Evaluation(lengths=(trained // 4, trained, 2 * trained), sequences=sequences),
    )
    # The last layer is softmax, all before it are norm-aware.
    hybrid = (MAPS["cosine"],) * (num_layers - 1) + (MAPS["softmax"],)
    made = {}
    for gate in (False, True):
        for name in NAMES:
            kernel = hybrid if name == HYBRID else MAPS[name]
            run = base.replace(model=base.model.replace(kernel=kernel, output_gate=gate))
            made[gated(name) if gate else name] = over_seeds(run, range(seeds))
    return made
