"""What each ``sparsity-lab`` command does.

A command is a dataclass whose fields are its arguments. ``run`` shows its outcome on a console, which is silent when
``--json`` is given, and returns it as plain data. Heavy modules are imported when a command needs them, so that help
and bad input are answered at once.
"""

# ruff: noqa: PLC0415

import importlib
import inspect
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, UseAppendAction, arg

from sparsity_lab.cli_output import plain_table, progress_bar, show_arms, show_overview, swept, unfinished_runs
from sparsity_lab.settings import SettingError, Shown, from_text

if TYPE_CHECKING:
    from sparsity_lab.generators import Certificate

__all__ = ["Bench", "Certify", "Command", "Demo", "Diagnose", "List", "Outcome", "Report", "Sample", "Sweep", "Train"]

OptionalPath = Annotated[Path | None, arg(metavar="PATH")]
OptionalText = Annotated[str | None, arg(metavar="TEXT")]
OptionalNumber = Annotated[int | None, arg(metavar="NUMBER")]
OptionalNumbers = Annotated[tuple[int, ...] | None, arg(metavar="NUMBER [NUMBER ...]")]

_MOST_TOKENS = 10**8
"""Of one call of ``sample``: a gigabyte, and more than anyone reads."""


@dataclass(frozen=True)
class Outcome:
    """What a command found, as plain data, and whether it is good."""

    data: Any
    good: bool = True


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """Base of all commands."""

    json: bool = False
    """Print one JSON document and nothing else."""

    # Whether the same command goes on after an interruption; without an annotation, for it is no argument.
    goes_on = False

    def prepare(self) -> None:
        """What comes before ``run``."""

    @abstractmethod
    def run(self, console: Console) -> Outcome:
        """Do it; the console is silent with ``--json``."""


@dataclass(frozen=True, kw_only=True)
class SettingsCommand(Command):
    """Base of the commands that read settings, which may be the user's own."""

    modules: UseAppendAction[Annotated[tuple[str, ...], arg(name="import", metavar="MODULE")]] = ()
    """Import this module first, since it registers settings of your own; may be given again."""

    def prepare(self) -> None:
        import_modules(self.modules)


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Train small models over k and locality, show how far they carry, and write a report (two to three minutes)."""

    goes_on = True

    out: Path = Path("runs/demo")
    """Folder of the runs and the report. The same command goes on where it stopped."""
    workers: int = 2
    """Worker processes, one thread each."""
    size: Literal["smoke", "small", "full"] = "small"
    """How much to train: smoke is a test, small is for two cores."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.analysis import write_report
        from sparsity_lab.recipes import recipe
        from sparsity_lab.sweeps import Processes

        results, seconds = swept(recipe.find("demo")(self.size), self.out, Processes(workers=self.workers), console)
        command = f"sparsity-lab demo --size {self.size}"
        page = write_report(results, self.out / "report.html", title="sparsity_lab demo", command=command)
        arms = show_arms(results, console)
        console.print(f"\n{len(results.runs)} runs in {seconds:.0f} s. Report: {page}")
        return Outcome(
            {"out": str(self.out), "report": str(page), "seconds": seconds, "arms": arms}, not results.failures
        )


@dataclass(frozen=True, kw_only=True)
class List(SettingsCommand):
    """List what there is: tasks, laws, kernels, positions, recipes and benchmarks, one line each, as long as the
    terminal is wide; --json has all of it."""

    family: Positional[Annotated[str | None, arg(metavar="[FAMILY]")]] = None
    """Only this family, as in "sparsity-lab list kernel"."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.benchmarks import benchmark
        from sparsity_lab.recipes import recipe
        from sparsity_lab.settings import families, kinds

        found = {name: {kind: cls.__doc__ for kind, cls in kinds(name).items()} for name in families()}
        found["recipe"] = {name: function.__doc__ for name, function in recipe.all().items()}
        found["benchmark"] = {name: function.__doc__ for name, function in benchmark.all().items()}
        if self.family is not None:
            if self.family not in found:
                raise SettingError("family", "a family", self.family, found)
            found = {self.family: found[self.family]}
        listed = {
            family: {name: " ".join((doc or "").split("\n\n")[0].split()) for name, doc in members.items()}
            for family, members in found.items()
        }
        widest = max(len(name) for members in listed.values() for name in members)
        for family, members in listed.items():
            console.print(Text(family, style="bold"))
            for name, doc in members.items():
                line = Text(f"  {name:{widest}}  ").append(doc, style="dim")
                line.truncate(console.width, overflow="ellipsis")
                console.print(line)
        return Outcome(listed)


@dataclass(frozen=True, kw_only=True)
class Sample(SettingsCommand):
    """Show sequences of a task: tokens that enter the rule in brackets, answers in angle brackets or after the arrow,
    coupled position IDs beneath."""

    task: Positional[str]
    """The task in short form, as in "Planted(k=3, locality=Recent(width=8))"."""
    length: int = 24
    """Length of the sequences, in the task's own units."""
    count: int = 4
    """How many."""
    seed: int = 0
    """Seed of the stream."""
    stream: str = "sample"
    """Name of the stream, such as "train" or "evaluation"."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.analysis import sequence_text
        from sparsity_lab.generators import Stream, Task

        task = from_text(Task, self.task, "task")
        if self.count < 1:
            raise SettingError("--count", "at least 1", self.count)
        task.check_length(self.length)
        size = task.sequence_length(self.length)
        if self.count * size > _MOST_TOKENS:
            option = "--length" if size > _MOST_TOKENS else "--count"
            raise SettingError(option, f"at most {_MOST_TOKENS} tokens in all", Shown(f"{self.count} x {size}"))
        batch = task.sample(Stream(seed=self.seed, name=self.stream), 0, self.count, self.length)
        for row in range(len(batch)):
            console.print(sequence_text(task, batch, row, console.width))
        data = {
            "task": str(task),
            "tokens": batch.tokens.tolist(),
            "targets": batch.targets.tolist(),
            "sources": None if batch.sources is None else batch.sources[batch.scored].tolist(),
            "position_ids": None if batch.position_ids is None else batch.position_ids.tolist(),
            "vocabulary": list(task.vocabulary.names),
        }
        return Outcome(data)


@dataclass(frozen=True, kw_only=True)
class Certify(SettingsCommand):
    """Test everything that a task declares about its sequences."""

    task: Positional[Annotated[str | None, arg(metavar="[TASK]")]] = None
    """The task in short form; leave it out with --all."""
    all: bool = False
    """The examples of every registered task."""
    sequences: int = 100_000
    """Sequences drawn at each length."""
    lengths: OptionalNumbers = None
    """Lengths of the sequences, as in --lengths 12 300; the task's own choice if left out."""
    seed: int = 0
    """Seed of the sequences."""
    workers: int = 2
    """Worker processes for --all."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.generators import Task
        from sparsity_lab.settings import kinds

        if (self.task is None) == (not self.all):
            raise SettingError("task", "a task or --all", self.task if self.all else Shown("neither"))
        if self.workers < 1:
            raise SettingError("workers", "at least 1", self.workers)
        if self.lengths == ():
            raise SettingError("--lengths", "at least one length", Shown("nothing"))
        start = time.perf_counter()
        if self.task is not None:
            texts = [str(from_text(Task, self.task, "task"))]
        else:
            classes = [cls for cls in kinds("task").values() if issubclass(cls, Task)]
            texts = [str(example) for cls in classes for example in cls.examples()]
        table = Table("task", "tests", "smallest p", "passed", box=None, pad_edge=False)
        rows = []
        for certificate in self._certificates(texts, console):
            smallest = float(certificate.frame()["p_value"].min())  # type: ignore[arg-type]
            failed = Text(f"no: {', '.join(certificate.failed_checks)}", style="bold red")
            verdict = "yes" if certificate.passed else failed
            table.add_row(str(certificate.task), str(len(certificate.findings)), f"{smallest:.2g}", verdict)
            rows.append(
                {
                    "task": str(certificate.task),
                    "passed": certificate.passed,
                    "failed_checks": list(certificate.failed_checks),
                    "tests": len(certificate.findings),
                    "smallest_p": smallest,
                    "threshold": certificate.threshold,
                }
            )
        console.print(table)
        seconds = time.perf_counter() - start
        console.print(f"{self.sequences} sequences a length, nominal false-alarm rate 1e-6 a task, {seconds:.1f} s")
        return Outcome({"certificates": rows, "seconds": seconds}, all(row["passed"] for row in rows))

    def _certificates(self, texts: list[str], console: Console) -> list["Certificate"]:
        import multiprocessing
        import os
        from concurrent.futures import ProcessPoolExecutor

        work = [(text, self.seed, self.sequences, self.lengths) for text in texts]
        with progress_bar(console) as progress:
            if len(texts) == 1 or self.workers < 2:
                return [certify_text(*item) for item in progress.track(work, description="certifying")]
            context = multiprocessing.get_context("spawn")
            # One thread for each worker: numpy's libraries would take all cores each, and read this as they load.
            os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            with ProcessPoolExecutor(self.workers, context, import_modules, (self.modules,)) as pool:
                done = pool.map(certify_text, *zip(*work, strict=True))
                return list(progress.track(done, total=len(work), description="certifying"))


@dataclass(frozen=True, kw_only=True)
class Train(SettingsCommand):
    """Train one run, evaluate it by length, and show how far it carries."""

    config: Positional[Annotated[Path | None, arg(metavar="[FILE]")]] = None
    """TOML or JSON file with the fields of a run; the options below override it."""
    task: OptionalText = None
    """The task in short form."""
    model: OptionalText = None
    """The model in short form, as in "Decoder(num_layers=3, position=NoPE())"."""
    training: OptionalText = None
    """How it is trained, as in "Training(steps=500, curriculum=UniformLength(low=8, high=24))"."""
    evaluation: OptionalText = None
    """What is measured, as in "Evaluation(lengths=[24, 48, 96], sequences=1024)"."""
    seed: OptionalNumber = None
    """Data seed and model seed."""
    out: Path = Path("runs")
    """Folder of the runs; this one gets a folder by its id."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.config_file import read_data
        from sparsity_lab.settings import from_data, to_data
        from sparsity_lab.training import Diverged, RunConfig, train

        data: dict[str, Any] = read_data(self.config) if self.config else {}
        given = {"task": self.task, "model": self.model, "training": self.training, "evaluation": self.evaluation}
        data |= {name: text for name, text in given.items() if text is not None}
        if self.seed is not None:
            data |= {"data_seed": self.seed, "model_seed": self.seed}
        config = from_data(RunConfig, data)
        with progress_bar(console) as progress:
            bar = progress.add_task("training", total=config.training.steps)

            def show(done: int, total: int, loss: float, accuracy: float) -> None:
                words = f"loss {loss:.3f}, accuracy {accuracy:.2f}"
                progress.update(bar, completed=done, total=total, description=words)

            try:
                run = train(config, self.out, progress=show)
            except Diverged as error:
                console.print(str(error))
                return Outcome({"run": error.run, "status": "diverged", "step": error.step}, good=False)
        columns = ["condition", "length", "sequences", "normalised_accuracy", "normalised_accuracy_se", "excess_loss"]
        console.print(plain_table(run.evaluation.select(columns)))
        console.print(repr(run))
        console.print(f"Files: {run.folder}")
        data = {
            "run": run.id,
            "status": "finished",
            "folder": str(run.folder),
            "config": to_data(config),
            "evaluation": run.evaluation.to_dicts(),
            "summary": run.summary.to_dicts(),
        }
        return Outcome(data)


@dataclass(frozen=True, kw_only=True)
class Sweep(SettingsCommand):
    """Run a recipe, or a sweep described in a file; finished runs are skipped. Several may work on one folder."""

    goes_on = True

    sweep: Positional[Annotated[str | None, arg(metavar="[RECIPE|FILE]")]] = None
    """Name of a recipe, or a TOML or JSON file; leave it out with --status."""
    status: OptionalPath = None
    """Run nothing; show how far the sweep in this folder is, whoever works on it."""
    size: Literal["smoke", "small", "full"] = "small"
    """Of a recipe."""
    out: OptionalPath = None
    """Folder of the runs; runs/NAME if left out."""
    workers: OptionalNumber = None
    """Worker processes, one thread each; two if left out."""
    engine: OptionalText = None
    """What executes the runs instead, as in "RayEngine(address='auto', cpus=2)"."""
    report: bool = False
    """Also write report.html there."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.config_file import is_config_file, load_sweep
        from sparsity_lab.recipes import recipe
        from sparsity_lab.sweeps import Engine, Processes

        if (self.sweep is None) == (self.status is None):
            raise SettingError(
                "sweep", "a recipe, a file, or --status", self.sweep if self.sweep else Shown("nothing")
            )
        if self.status is not None:
            return _status_shown(self.status, console)
        assert self.sweep is not None
        if self.engine is not None and self.workers is not None:
            raise SettingError("--workers", "an engine or a number of workers, not both", self.workers)
        workers = Processes(workers=2 if self.workers is None else self.workers)
        engine = workers if self.engine is None else from_text(Engine, self.engine, "--engine")
        is_file = is_config_file(Path(self.sweep))
        sweep = load_sweep(Path(self.sweep)) if is_file else recipe.find(self.sweep)(self.size)
        out = self.out or Path("runs") / sweep.name
        results, seconds = swept(sweep, out, engine, console)
        arms = show_arms(results, console)
        data = {"out": str(out), "runs": len(results.runs), "seconds": seconds, "arms": arms}
        if self.report:
            from sparsity_lab.analysis import write_report

            command = f"sparsity-lab sweep {self.sweep}" + ("" if is_file else f" --size {self.size}")
            data["report"] = str(write_report(results, out / "report.html", title=sweep.name, command=command))
            console.print(f"Report: {data['report']}")
        return Outcome(data, not results.failures)


@dataclass(frozen=True, kw_only=True)
class Report(SettingsCommand):
    """Write the report of a folder of runs, the result pages of a study, or check committed result pages."""

    folder: Positional[Annotated[Path | None, arg(metavar="[FOLDER]")]] = None
    """Folder of the runs."""
    out: OptionalPath = None
    """The page; report.html in the folder if left out."""
    title: str = "Extrapolation in length"
    """Its title."""
    picture: OptionalPath = None
    """Also write the curves as a PNG file there."""
    study: OptionalText = None
    """Write the result files of this study instead, from the runs in the folder."""
    size: Literal["smoke", "small", "full"] = "small"
    """Of the study."""
    results: Path = Path("docs/results")
    """Folder of the result files of studies."""
    check: bool = False
    """Render the result files again from their frames and compare; nothing is written."""
    render: bool = False
    """Render the result files again from their frames."""

    def run(self, console: Console) -> Outcome:
        if self.check or self.render:
            if not self.results.is_dir():
                raise SettingError("--results", "a folder with result files", str(self.results))
            return self._checked(console) if self.check else self._rendered(console)
        if self.folder is None or not self.folder.is_dir():
            raise SettingError("folder", "a folder with runs", str(self.folder))
        if self.study is not None:
            return self._study_written(self.folder, self.study, console)
        return self._report_written(self.folder, console)

    def _checked(self, console: Console) -> Outcome:
        from sparsity_lab.recipes import check_results

        differing = check_results(self.results)
        for name in differing:
            console.print(f"{self.results / name} is not what its frame gives")
        if not differing:
            console.print(f"{self.results}: every file is what its frame gives")
        return Outcome({"results": str(self.results), "differing": differing}, good=not differing)

    def _rendered(self, console: Console) -> Outcome:
        from sparsity_lab.recipes import render_results

        changed = render_results(self.results)
        for name in changed:
            console.print(f"{self.results / name} is new")
        if not changed:
            console.print(f"{self.results}: every file is what its frame gives")
        return Outcome({"results": str(self.results), "changed": changed})

    def _study_written(self, folder: Path, name: str, console: Console) -> Outcome:
        from sparsity_lab.recipes import find_study, write_result
        from sparsity_lab.sweeps import Results

        study = find_study(name)
        page = write_result(study, Results(folder, study(self.size)), self.size, self.results)
        console.print(f"Result: {page}")
        return Outcome({"page": str(page)})

    def _report_written(self, folder: Path, console: Console) -> Outcome:
        from sparsity_lab.analysis import write_picture, write_report
        from sparsity_lab.sweeps import Results

        page = self.out or folder / "report.html"
        _check_target("--out", page)
        if self.picture is not None:
            _check_target("--picture", self.picture)
        results = Results(folder)
        finished = len(results.runs) - len(unfinished_runs(results))
        data: dict[str, Any] = {"report": str(write_report(results, page, title=self.title))}
        data |= {"arms": show_arms(results, console), "unfinished": unfinished_runs(results)}
        console.print(f"Report: {page}")
        if self.picture is not None and finished:
            data["picture"] = str(write_picture(results, self.picture))
            console.print(f"Picture: {data['picture']}")
        return Outcome(data, good=finished > 0)


@dataclass(frozen=True, kw_only=True)
class Diagnose(SettingsCommand):
    """Tell from your own text or token files whether length generalization is to be expected on them: how many tokens
    a target needs and how far away they are, and how far a small model that was trained short carries, under two
    position schemes."""

    paths: Positional[tuple[Path, ...]] = ()
    """Files: .npy arrays of integers, .txt files with lines of whole numbers, or any others, read as bytes."""
    labels: UseAppendAction[tuple[Path, ...]] = ()
    """File with a 0 or 1 for each token, 1 for those that matter for the last token of the sequence; one for each
    data file, in their order."""
    length: int = 32
    """Longest trained window, in tokens."""
    longest: int = 4
    """Longest tested window, as a multiple of it."""
    position: str = "RoPE()"
    """The position scheme in short form."""
    other: str = "ALiBi()"
    """The one other position scheme."""
    model: str = "Decoder()"
    """The model in short form."""
    steps: int = 600
    """Of training, for each scheme."""
    seed: int = 0
    """Of weights and windows."""
    picture: OptionalPath = None
    """Also draw what is kept by length as a PNG file there."""

    def run(self, console: Console) -> Outcome:
        from matplotlib.figure import Figure

        from sparsity_lab.analysis.diagnosis import diagnose, read_tokens
        from sparsity_lab.models import Decoder, PositionScheme
        from sparsity_lab.training import Diverged

        if self.picture is not None:
            _check_target("--picture", self.picture)
        position, other = (
            from_text(PositionScheme, text, option)
            for option, text in (("--position", self.position), ("--other", self.other))
        )
        model = from_text(Decoder.Config, self.model, "--model")
        data = read_tokens(self.paths, self.labels)
        for form in data.forms:
            console.print(f"Read {form}")
        with progress_bar(console) as progress:
            bar = progress.add_task("reading", total=None)

            def show(words: str, done: int, total: int | None) -> None:
                progress.update(bar, description=words, completed=done, total=total)

            try:
                found = diagnose(
                    data,
                    length=self.length,
                    longest=self.longest,
                    position=position,
                    other=other,
                    model=model,
                    steps=self.steps,
                    seed=self.seed,
                    progress=show,
                )
            except Diverged as error:
                console.print(str(error))
                return Outcome({"status": "diverged", "step": error.step}, good=False)
        for title, frame in found.tables().items():
            console.print(f"\n{title}")
            console.print(plain_table(frame))
        console.print(f"\nLength generalization on this data: {found.verdict}")
        for answer in found.answers:
            console.print(f"  {answer}")
        if self.picture is not None:
            figure = found.plot().get_figure(root=True)
            assert isinstance(figure, Figure)
            figure.savefig(self.picture, dpi=150)
            console.print(f"Picture: {self.picture}")
        return Outcome({"status": "finished", "files": list(data.forms), **found.to_data()})


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure speed, as ratios within one run."""

    name: Positional[str]
    """Name of the benchmark; "sparsity-lab list benchmark" shows all."""
    only: UseAppendAction[tuple[str, ...]] = ()
    """Only this case, of a benchmark with cases to choose, as in "--only Softmax"; may be given again."""
    lengths: OptionalNumbers = None
    """Lengths of the sequences, of a benchmark with lengths to choose, as in "--lengths 2048 4096"."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.benchmarks import benchmark
        from sparsity_lab.benchmarks.tables import tables

        measure = benchmark.find(self.name)
        options = {name: value for name in ("only", "lengths") if (value := getattr(self, name))}
        for name in options.keys() - inspect.signature(measure).parameters.keys():
            raise SettingError(f"--{name}", f"a benchmark with {name} to choose", self.name)
        frame = measure(**options)
        shown, common = tables(frame)
        for title, table in shown.items():
            if title:
                console.print(f"\n{title}")
            console.print(plain_table(table))
        if common:
            console.print(f"\nAll: {common}")
        return Outcome({"benchmark": self.name, "rows": frame.to_dicts()})


def import_modules(names: Sequence[str]) -> None:
    """Import modules that register settings; those of the working directory are found too.

    Raises:
        SettingError: one cannot be imported, or what it registers cannot be.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        # ``register`` raises TypeError and settings ValueError, as does the import of what is no module's name.
        except (ImportError, SyntaxError, TypeError, ValueError) as error:
            raise SettingError("--import", "a module that can be imported", Shown(f"{name} ({error})")) from None


def certify_text(text: str, seed: int, sequences: int, lengths: tuple[int, ...] | None = None) -> "Certificate":
    """The certificate of a task in short form; on its own so that worker processes can call it."""
    from sparsity_lab.generators import Task, certify

    return certify(from_text(Task, text, "task"), seed=seed, sequences=sequences, lengths=lengths)


def _status_shown(folder: Path, console: Console) -> Outcome:
    """How far the sweep in a folder is; bad if a run failed and nothing goes on."""
    from dataclasses import asdict

    from sparsity_lab.sweeps import Results, overview

    if not folder.is_dir():
        raise SettingError("--status", "a folder with runs", str(folder))
    found = overview(Results(folder))
    show_overview(found, console)
    return Outcome({"out": str(folder), **asdict(found)}, good=bool(found.running or not found.failed))


def _check_target(option: str, path: Path) -> None:
    """Raise ``SettingError`` if no file can be written there; nothing is left behind."""
    if path.is_dir():
        raise SettingError(option, "a file that can be written", f"{path} (a folder)")
    try:
        # What may be written cannot be told from the permissions alone.
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SettingError(option, "a file that can be written", f"{path} ({error.strerror})") from None
