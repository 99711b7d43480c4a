"""``train``: from a config to a finished run in its folder, whatever was there before."""

import dataclasses
import functools
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import polars as pl
import torch
from torch import nn

from sparsity_lab.kernels import Kernel
from sparsity_lab.models import DecoderModel, merged
from sparsity_lab.settings import SettingError, Shown, check_that
from sparsity_lab.settings.log import plain_logger
from sparsity_lab.settings.markup import Markup, details, element, join, table
from sparsity_lab.training import store
from sparsity_lab.training.checkpoint import load_weights, weights_bytes
from sparsity_lab.training.config import LEARNED, Evaluation, RunConfig
from sparsity_lab.training.environment import devices_of, environment, kind_of_device
from sparsity_lab.training.evaluate import evaluate, summarize, validate
from sparsity_lab.training.files import DamagedFile
from sparsity_lab.training.folder import HeldFolder, RunFolder, Status, reason_of
from sparsity_lab.training.frames import FrameProcess
from sparsity_lab.training.lease import Lease, LeaseLost
from sparsity_lab.training.loggers import Logger, check_loggers
from sparsity_lab.training.optimize import Diverged, Progress, Records, optimize, parameter_groups

_LOG = plain_logger(__name__)
_UNTRAINED = (Status.MISSING, Status.INTERRUPTED, Status.BROKEN)
_SHOWN = (
    "condition",
    "length",
    "trained",
    "sequences",
    "accuracy",
    "normalized_accuracy",
    "normalized_accuracy_se",
    "loss",
    "excess_loss",
)
"""Columns of an evaluation that a notebook shows of a run."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run. Its frames and clocks are read when they are first asked for.

    >>> run.evaluation["length"].to_list()
    [8, 16]
    >>> run.summary.columns
    ['condition', 'learned', 'reach', 'censored']

    Attributes:
        config: what was run.
        folder: where its files lie.
    """

    config: RunConfig
    folder: Path

    @classmethod
    def load(cls, folder: Path | str, *, trusted: bool = True) -> Self:
        """The run in a folder, its checksums verified. Nothing in the folder can execute.

        Args:
            trusted: False if the folder is from somebody else: its frames are parsed in a process of their own (see
                ``sweeps.Results``).

        Raises:
            SettingError: no run, or one that is not finished or not intact.
        """
        # A link that the caller names may be followed.
        files = RunFolder(Path(folder).resolve(), parse=None if trusted else FrameProcess())
        found = files.inspect()
        check_that(found.status is Status.FINISHED, "folder", "a finished run", f"{files.path} ({found})")
        run = cls(files.config, files.path)
        vars(run)["_files"] = files  # which has been read
        return run

    @functools.cached_property
    def _files(self) -> RunFolder:
        return RunFolder(self.folder, self.config)

    @property
    def id(self) -> str:
        """The config's id, which is also the folder's name."""
        return self.config.id

    @property
    def metrics(self) -> pl.DataFrame:
        """One row for each logged step."""
        return self._files.metrics

    @property
    def evaluation(self) -> pl.DataFrame:
        """One row for each condition and length."""
        return self._files.evaluation

    @property
    def timing(self) -> pl.DataFrame:
        """The clocks: one row for each part of the training, and for the evaluation."""
        return self._files.timing

    @property
    def summary(self) -> pl.DataFrame:
        """Learned, reach and censored, one row for each condition."""
        return summarize(self.evaluation, self.config.evaluation.threshold)

    def model(self) -> nn.Module:
        """The trained model on the CPU, in evaluation mode; with its adapter if it has one (see ``merged``)."""
        model = _build(self.config)
        load_weights(self.folder / store.MODEL, model)
        return model.eval()

    def with_kernel(self, kernel: Kernel) -> "RunVariant":
        """The same weights under another attention mechanism."""
        return RunVariant(self, kernel)

    def __repr__(self) -> str:
        config = self.config
        seeds = f"data seed {config.data_seed}, model seed {config.model_seed}"
        lines = [f"Run {self.id}: {config.task} on {config.model}, {seeds}"]
        for row in self.summary.iter_rows(named=True):
            reach = f"learned, reach {row['reach']}{' or more' if row['censored'] else ''}"
            lines.append(f"  {row['condition']}: {reach if row['learned'] else 'not learned'}")
        return "\n".join([*lines, *self._by_length()])

    def _by_length(self) -> Iterator[str]:
        """Accuracies by length, a line for each condition."""
        for rows in self.evaluation.partition_by("condition", maintain_order=True):
            known = rows["normalized_accuracy"].null_count() == 0
            measure = "normalized_accuracy" if known else "accuracy"
            values = (f"{value:.3f} at {length}" for length, value in rows.select("length", measure).iter_rows())
            yield f"  {rows['condition'][0]}, {measure.replace('_', ' ')}: {', '.join(values)}"

    def _repr_html_(self) -> Markup:
        head, *lines = repr(self).split("\n")
        rows = self.evaluation.select(_SHOWN).iter_rows()
        return join(
            [
                element("p", element("b", head)),
                element("ul", *(element("li", words) for words in lines)),
                details("by length", table([name.replace("_", " ") for name in _SHOWN], rows)),
                self.config._repr_html_(),
            ]
        )


@dataclasses.dataclass(frozen=True)
class RunVariant:
    """A run's weights under another attention mechanism. Nothing of it is stored.

    >>> variant = run.with_kernel(LSSA())
    >>> variant.kernel
    LSSA()

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
        if not isinstance(model, DecoderModel):
            raise SettingError("model", "a Decoder, whose kernel can be replaced", self.run.config.model)
        return model.with_kernel(self.kernel).eval()

    def evaluate(self, evaluation: Evaluation | None = None) -> pl.DataFrame:
        """The grid of the run's own evaluation, or of another one, with the columns of ``Run.evaluation``."""
        config = self.run.config
        return evaluate(self.model(), config if evaluation is None else config.replace(evaluation=evaluation))

    def __repr__(self) -> str:
        return f"Run {self.run.id} with {self.kernel}"

    def _repr_html_(self) -> Markup:
        return join([element("p", element("b", repr(self))), self.kernel._repr_html_(), self.run._repr_html_()])


def train(
    config: RunConfig,
    out: Path | str,
    *,
    progress: Progress | None = None,
    loggers: Sequence[Logger] = (),
    wait: bool = True,
) -> Run:
    """Make a run in ``out/<id>/``, or as much of it as is missing there.

    A finished, intact run is only loaded; one without this evaluation is only evaluated; an interrupted one goes on
    from its checkpoint; a broken one is repeated. What was damaged is said by a warning in the log. A ``parent`` is
    made first, in the same folder. Of several processes that are called for the same run, one makes it. Why it failed
    is written to ``failed.json``.

    A text whose hash is not yet a field is opened first, and the run has the hash (see ``RunConfig.planned``).

    >>> config = run.config.replace(training=run.config.training.replace(steps=2))
    >>> made = train(config, "runs")
    >>> made.folder.name == made.id
    True

    Args:
        out: the store, a folder for many runs; made if it does not exist.
        progress: called at each logged step with (steps done, steps in all, loss, accuracy).
        loggers: told each logged step, the validations, the evaluation and the end, of parents that are made as well.
        wait: until a run that another process makes is over, rather than raise ``Leased``.

    Raises:
        SettingError: ``out`` or the run's folder in it is not a folder or cannot be written. Or the device is missing
            or the memory too small. Or a text is missing, changed or too short, or the parent's weights do not fit.
            In these cases nothing has been written.
        OSError: a file cannot be written.
        Diverged: the loss, the gradient or the weights stopped being finite, now or in an earlier call. That is
            recorded, and not repeated.
        lease.Leased: without ``wait``; another process makes this run, or a parent of it.
    """
    check_loggers(loggers)
    return _Making(Path(out), progress, loggers).run(config, wait)


@dataclasses.dataclass(frozen=True)
class _Making:
    """What ``train`` was told: the store, and who hears of it."""

    root: Path
    progress: Progress | None
    loggers: Sequence[Logger]

    def run(self, config: RunConfig, wait: bool) -> Run:
        """As ``train``."""
        config = config if config.is_planned else config.planned()
        path, device = self.root / config.id, torch.device(config.training.device)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise SettingError("training.device", "a device that this machine has", config.training.device)
        store.prepare_folder(self.root)
        while not (found := (folder := RunFolder(path, config)).inspect().status).over:
            config.check_memory()
            config.planned()  # opens the texts
            # What is wrong with the config or the parent is said before anything is written.
            model = self._initial_model(config, wait) if found in _UNTRAINED else None
            store.prepare_folder(path)
            with Lease.hold(path, wait=wait) as lease:
                try:
                    self._complete(folder := HeldFolder(lease, config), model)
                except LeaseLost as error:
                    # This process was stopped for so long that another one has taken the run over.
                    _LOG.warning("%s", error)
                    continue
                break
        store.tidy(path)
        if found is Status.DIVERGED:
            raise _recorded_divergence(folder)
        for logger in self.loggers:
            logger.on_finish(config, path)
        return Run(config, path)

    def _complete(self, folder: HeldFolder, model: nn.Module | None) -> None:
        """Make what is missing of a run."""
        # Another process may have been here since the model was made.
        found = folder.inspect()
        if found.status is Status.FINISHED:
            return
        if found.status is Status.DIVERGED:
            raise _recorded_divergence(folder)
        if found.damage and found.status is not Status.INTERRUPTED:  # of a checkpoint says who would go on from it
            _LOG.warning("%s; what it held is made again", found.damage)
        folder.forget_failure()
        try:
            if found.status is Status.BROKEN:
                folder.discard()
            if found.status in _UNTRAINED:
                goes_on = found.damage is None and (folder.path / store.CHECKPOINT).exists()
                self._train(folder, model or self._initial_model(folder.config, True), goes_on=goes_on)
            self._evaluate(folder)
        except (LeaseLost, Diverged):
            raise
        except Exception as error:
            # A process that takes over removes files that this one may be using, so a later failure here is not the
            # run's.
            folder.check()
            # While the lease is held: what is recorded later could be taken for a failure of the next one.
            folder.record_failure(reason_of(error), traceback.format_exc())
            raise

    def _initial_model(self, config: RunConfig, wait: bool) -> nn.Module:
        """The model before training: with the parent's weights if there is one, its adapter merged into them, and
        then with an adapter of its own."""
        model = _build(config, adapted=False)
        if config.parent:
            parent = _build(config.parent)
            _check_weights(model, merged(parent), config)
            # Only its weights are needed, so its evaluation does not matter.
            if not RunFolder(self.root / config.parent.id, config.parent).inspect().evaluated:
                self.run(config.parent, wait)
            load_weights(self.root / config.parent.id / store.MODEL, parent)
            model.load_state_dict(merged(parent).state_dict())
        if config.adapter:
            config.adapter.attach(model, config.model_seed)
        parameter_groups(model, config.training)  # refuses patterns that match none
        return model

    def _train(self, folder: HeldFolder, model: nn.Module, *, goes_on: bool) -> None:
        """Train, and leave the files of training with ``trained.json``, or of a divergence with ``finished.json``.

        Args:
            goes_on: from the checkpoint in the folder.
        """
        config, diverged = folder.config, None
        folder.write_config()
        before = folder.environment if goes_on else None
        where = environment(config, before)
        _say_if_moved(config, devices_of(before), "its training goes on")
        folder.write(store.ENVIRONMENT, store.json_bytes(where))

        def log(values: dict[str, float]) -> None:
            for logger in self.loggers:
                logger.on_step(config, values)

        def validated(step: int) -> bool:
            frame = validate(model, config)
            for logger in self.loggers:
                logger.on_evaluation(config, frame, step)
            return config.training.stop_when is not None and bool(summarize(frame, LEARNED)["learned"].item())

        records, checkpoint = Records(), folder.path / store.CHECKPOINT
        heard = validated if self.loggers or config.training.stop_when else None
        try:
            optimize(config, model, records, checkpoint, self.progress, folder.check, log, heard)
        except Diverged as error:
            diverged = error
        metrics = pl.DataFrame(records.metrics, schema=store.METRICS_SCHEMA)
        folder.write(store.METRICS, store.parquet_bytes(metrics), flush=True)
        folder.write_timing(pl.DataFrame(records.timing, schema=store.TIMING_SCHEMA))
        if diverged:
            step, loss, reason = diverged.step, str(diverged.loss), diverged.reason
            folder.mark("diverged", [store.CONFIG, store.METRICS], step=step, loss=loss, reason=reason)
            store.tidy(folder.path)
            raise diverged
        folder.write(store.MODEL, weights_bytes(model), flush=True)
        folder.mark("trained", [store.METRICS, store.MODEL])

    def _evaluate(self, folder: HeldFolder) -> None:
        """Evaluate the weights in the folder, unless an intact frame is there, and mark the run as finished."""
        config = folder.config
        file = store.evaluation_file(config)
        try:
            folder.evaluation  # noqa: B018
        except DamagedFile:
            begun = time.perf_counter()
            where = folder.environment or environment(config)
            _say_if_moved(config, devices_of(where), "it is evaluated")
            model = _build(config)
            load_weights(folder.path / store.MODEL, model)
            frame = evaluate(model, config)
            folder.write(file, store.parquet_bytes(frame))
            for logger in self.loggers:
                logger.on_evaluation(config, frame, None)
            lengths = sum(config.conditions[name].sequence_length(length) for name, length in config.grid)
            row = ("evaluation", None, config.evaluation.sequences * lengths, time.perf_counter() - begun)
            timing = folder.timing.filter(pl.col("phase") != "evaluation")
            folder.write_timing(timing.vstack(pl.DataFrame([row], schema=store.TIMING_SCHEMA, orient="row")))
            evaluated = where.get("evaluated_on")
            kinds = evaluated if isinstance(evaluated, dict) else {}
            where["evaluated_on"] = {**kinds, config.evaluation_id: kind_of_device(config)}
            folder.write(store.ENVIRONMENT, store.json_bytes(where))
        folder.write_config()
        folder.mark("finished", [store.CONFIG, store.METRICS, store.MODEL, file])


def _say_if_moved(config: RunConfig, before: list[str], what: str) -> None:
    """Warn if a run was made on another kind of device so far."""
    kind = kind_of_device(config)
    if before and before[-1] != kind:
        words = "run %s was made on %s, and %s on %s: numbers may differ in their last digits"
        _LOG.warning(words, config.id, before[-1], what, kind)


def _recorded_divergence(folder: RunFolder) -> Diverged:
    marker = folder.marker
    if marker is None or marker.step is None or marker.loss is None:
        raise SettingError(str(folder.path / store.FINISHED), "the step and loss of a diverged run", marker)
    return Diverged(marker.step, float(marker.loss), marker.reason or "", folder.config.id)


def _build(config: RunConfig, *, adapted: bool = True) -> nn.Module:
    """The model of a run, by default with its adapter, to be filled with weights."""
    model = config.model.build(config.model_seed, vocab_size=config.task.vocabulary.size)
    if config.adapter and adapted:
        config.adapter.attach(model, config.model_seed)
    return model


def _check_weights(model: nn.Module, parent: nn.Module, config: RunConfig) -> None:
    """Raise ``SettingError`` if a model cannot take its parent's weights. The error names the first weight that
    differs in shape, or that is tied to another in the model but not in its parent."""
    assert config.parent
    wanted, found = (
        {name: tuple(tensor.shape) for name, tensor in one.state_dict().items()} for one in (model, parent)
    )
    for name in dict.fromkeys((*wanted, *found)):
        if wanted.get(name) != found.get(name):
            shown = Shown(f"{found.get(name, 'none')} in {config.parent.model}")
            raise SettingError("parent.model", f"{name} of shape {wanted.get(name, 'none')}, as in the child", shown)
    given = parent.state_dict()
    first: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        other = first.setdefault(tensor.data_ptr(), name)
        if given[name].data_ptr() != given[other].data_ptr():
            shown = Shown(f"two weights in {config.parent.model}")
            raise SettingError("parent.model", f"{other} and {name} tied, as in the child", shown)
