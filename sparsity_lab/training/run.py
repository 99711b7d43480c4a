"""``train``: from a config to a finished run in its folder, whatever was there before."""

import dataclasses
import time
from pathlib import Path
from typing import Self

import polars as pl
import torch
from torch import nn

from sparsity_lab.kernels import Kernel
from sparsity_lab.models import Decoder
from sparsity_lab.settings import SettingError
from sparsity_lab.training import store
from sparsity_lab.training.checkpoint import load_weights, save_weights
from sparsity_lab.training.config import Evaluation, RunConfig
from sparsity_lab.training.environment import environment
from sparsity_lab.training.evaluate import evaluate, summarise
from sparsity_lab.training.optimise import Diverged, Progress, Records, optimise
from sparsity_lab.training.store import Status, evaluation_file, status

__all__ = ["Run", "Variant", "train"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        config: what was run.
        folder: where its files lie.
    """

    config: RunConfig
    folder: Path

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The run in a folder, its checksums verified. Nothing in the folder can execute.

        Raises:
            SettingError: no run, or one that is not finished or not intact.
        """
        folder = Path(folder)
        config = store.read_config(folder)
        found = store.folder_status(config, folder)
        if found is not Status.FINISHED:
            raise SettingError("folder", "a finished run", f"{folder} ({found.value})")
        return cls(config, folder)

    @property
    def id(self) -> str:
        """The config's id, which is also the folder's name."""
        return self.config.id

    @property
    def metrics(self) -> pl.DataFrame:
        """One row for each logged step."""
        return store.read_frame(self.folder, store.METRICS)

    @property
    def evaluation(self) -> pl.DataFrame:
        """One row for each condition and length."""
        return store.read_frame(self.folder, evaluation_file(self.config))

    @property
    def summary(self) -> pl.DataFrame:
        """Learned, reach and censored, one row for each condition."""
        return summarise(self.evaluation, self.config.evaluation.threshold)

    def model(self) -> nn.Module:
        """The trained model on the CPU, in evaluation mode."""
        model = _build(self.config)
        load_weights(self.folder / store.MODEL, model)
        return model.eval()

    def with_kernel(self, kernel: Kernel) -> "Variant":
        """The same weights under another attention mechanism."""
        return Variant(self, kernel)

    def __repr__(self) -> str:
        config = self.config
        seeds = f"data seed {config.data_seed}, model seed {config.model_seed}"
        lines = [f"Run {self.id}: {config.task} on {config.model}, {seeds}"]
        for row in self.summary.iter_rows(named=True):
            reach = f"learned, reach {row['reach']}{' or more' if row['censored'] else ''}"
            lines.append(f"  {row['condition']}: {reach if row['learned'] else 'not learned'}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A run's weights under another attention mechanism. Nothing of it is stored.

    Attributes:
        run: the run that was trained.
        kernel: what attends instead.
    """

    run: Run
    kernel: Kernel

    def model(self) -> nn.Module:
        """The model on the CPU, in evaluation mode.

        Raises:
            SettingError: the model has no attention mechanism to exchange, or does not take this one.
        """
        model = self.run.model()
        if not isinstance(model, Decoder):
            raise SettingError("model", "a Decoder, whose kernel can be exchanged", self.run.config.model)
        return model.with_kernel(self.kernel).eval()

    def evaluate(self, evaluation: Evaluation | None = None) -> pl.DataFrame:
        """The grid of the run's own evaluation, or of another one, with the columns of ``Run.evaluation``."""
        config = self.run.config
        return evaluate(self.model(), config if evaluation is None else config.replace(evaluation=evaluation))

    def __repr__(self) -> str:
        return f"Run {self.run.id} with {self.kernel}"


def train(config: RunConfig, out: Path | str, *, progress: Progress | None = None) -> Run:
    """Make a run in ``out/<id>/``, or as much of it as is missing there.

    A finished, intact run is only loaded; one without this evaluation is only evaluated; an interrupted one goes on
    from its checkpoint; a broken one is repeated. A ``parent`` is made first, in the same folder.

    Args:
        out: the store, a folder for many runs; made if it does not exist.
        progress: called at each logged step with (steps done, steps in all, loss, accuracy).

    Raises:
        SettingError: ``out`` or the run's folder in it is no folder or cannot be written, the device is missing, or
            the parent's weights do not fit; nothing has been written then.
        OSError: a file cannot be written.
        Diverged: the loss, the gradient or the weights stopped being finite, now or in an earlier call. That is
            recorded, and not repeated.
    """
    root, folder = Path(out), Path(out) / config.id
    _check_device(config)
    store.prepare_folder(root)
    found = status(config, root)
    if found is Status.DIVERGED:
        store.tidy(folder)
        raise _recorded_divergence(config, folder)
    if found in (Status.MISSING, Status.INTERRUPTED, Status.BROKEN):
        model = _initial_model(config, root, progress)
        store.prepare_folder(folder)
        if found is Status.BROKEN:
            store.discard(folder)
        _train(config, model, folder, progress)
    if found is not Status.FINISHED:
        store.prepare_folder(folder)
        _evaluate(config, folder)
    store.tidy(folder)
    return Run(config, folder)


def _check_device(config: RunConfig) -> None:
    device = torch.device(config.training.device)
    backend = {"cpu": None, "cuda": torch.cuda, "mps": torch.mps}[device.type]
    if backend is not None and (device.index or 0) >= backend.device_count():
        raise SettingError("training.device", "a device of this machine", config.training.device)


def _build(config: RunConfig) -> nn.Module:
    return config.model.build(config.model_seed, vocab_size=config.task.vocabulary.size)


def _initial_model(config: RunConfig, root: Path, progress: Progress | None) -> nn.Module:
    """The model before training, with the parent's weights if there is one."""
    model = _build(config)
    if config.parent:
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in _build(config.parent).state_dict().items()}:
            raise SettingError("parent.model", f"weights of the shapes of {config.model}", config.parent.model)
        # Its weights are all that is needed: whether it has been evaluated, and how, is its own affair.
        if status(config.parent, root) not in (Status.FINISHED, Status.UNEVALUATED):
            train(config.parent, root, progress=progress)
        load_weights(root / config.parent.id / store.MODEL, model)
    return model


def _train(config: RunConfig, model: nn.Module, folder: Path, progress: Progress | None) -> None:
    """Train, and leave the files of training with ``trained.json``, or of a divergence with ``finished.json``."""
    store.write_config(config, folder)
    store.write_json(folder / store.ENVIRONMENT, environment(config))
    records = Records()
    diverged = None
    try:
        optimise(config, model, records, folder / store.CHECKPOINT, progress)
    except Diverged as error:
        diverged = error
    metrics = pl.DataFrame(records.metrics, schema=store.METRICS_SCHEMA)
    store.write_frame(folder / store.METRICS, metrics, flush=True)
    store.write_timing(folder, pl.DataFrame(records.timing, schema=store.TIMING_SCHEMA))
    if diverged:
        files = [store.CONFIG, store.METRICS]
        loss = str(diverged.loss)
        store.mark(folder, store.FINISHED, "diverged", files, step=diverged.step, loss=loss, reason=diverged.reason)
    else:
        save_weights(folder / store.MODEL, model)
        store.mark(folder, store.TRAINED, "trained", [store.METRICS, store.MODEL])
    if diverged:
        store.tidy(folder)
        raise diverged


def _evaluate(config: RunConfig, folder: Path) -> None:
    """Evaluate the weights in the folder, unless an intact frame is there, and mark the run as finished."""
    marker = store.read_marker(folder)
    file = evaluation_file(config)
    if marker is None or not marker.intact(folder, file):
        begun = time.perf_counter()
        model = _build(config)
        load_weights(folder / store.MODEL, model)
        frame = evaluate(model, config)
        store.write_frame(folder / file, frame)
        row = {
            "phase": "evaluation",
            "step": None,
            "tokens": _evaluated_tokens(config),
            "seconds": time.perf_counter() - begun,
        }
        timing = store.read_timing(folder).filter(pl.col("phase") != "evaluation")
        store.write_timing(folder, timing.vstack(pl.DataFrame([row], schema=store.TIMING_SCHEMA)))
    store.write_config(config, folder)
    # Frames of other evaluations stay, with the checksums they were written with.
    others = {
        name: digest for name, digest in (marker.files if marker else {}).items() if name.startswith("evaluation/")
    }
    store.mark(folder, store.FINISHED, "finished", [store.CONFIG, store.METRICS, store.MODEL, file], kept=others)


def _evaluated_tokens(config: RunConfig) -> int:
    sizes = [task.sequence_length(n) for task in config.conditions.values() for n in config.evaluation.lengths]
    return config.evaluation.sequences * sum(sizes)


def _recorded_divergence(config: RunConfig, folder: Path) -> Diverged:
    marker = store.read_marker(folder)
    if marker is None or marker.step is None or marker.loss is None:
        raise SettingError(str(folder / store.FINISHED), "the step and loss of a diverged run", marker)
    return Diverged(marker.step, float(marker.loss), marker.reason or "", config.id)
