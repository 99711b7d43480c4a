"""``sparsity-lab train``."""

# ruff: noqa: PLC0415

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from sparsity_lab.cli.command import OptionalNumber, OptionalText, Outcome, SettingsCommand
from sparsity_lab.cli.output import plain_table, steps_shown


@dataclass(frozen=True, kw_only=True)
class Train(SettingsCommand):
    """Train one run, evaluate it by length, and show how far it extrapolates."""

    interrupted = "interrupted; run the same command again; without checkpoint_every it starts over"

    config: Positional[Annotated[Path | None, arg(metavar="[FILE]", help_behavior_hint="")]] = None
    """TOML or JSON file with the fields of a run. The options below override it."""
    task: OptionalText = None
    """The task in short form."""
    model: OptionalText = None
    """The model in short form, as in "Decoder(num_layers=3, position=NoPE())"."""
    training: OptionalText = None
    """Training settings, as in "Training(steps=500, curriculum=UniformLength(low=8, high=24))"."""
    evaluation: OptionalText = None
    """Evaluation settings, as in "Evaluation(lengths=[24, 48, 96], sequences=1024)"."""
    seed: OptionalNumber = None
    """Seed of both data and model."""
    out: Path = Path("runs")
    """Folder of the runs. Each run gets a subfolder named by its id."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.settings import from_data, to_data
        from sparsity_lab.sweeps.config_file import read_data
        from sparsity_lab.training import Diverged, RunConfig, memory, train

        data: dict[str, Any] = read_data(self.config) if self.config else {}
        given = {"task": self.task, "model": self.model, "training": self.training, "evaluation": self.evaluation}
        data |= {name: text for name, text in given.items() if text is not None}
        if self.seed is not None:
            data |= {"data_seed": self.seed, "model_seed": self.seed}
        config = from_data(RunConfig, data)
        if needed := config.num_bytes():
            there = memory.memory_of(config.training.device)
            of = f" of {memory.gigabytes(there)}" if there else ""
            console.print(f"Memory: at least {memory.gigabytes(needed)}{of}")
        with steps_shown(console, "training", config.training.steps) as bar:

            def show(done: int, total: int, loss: float, accuracy: float) -> None:
                bar(f"loss {loss:.3f}, accuracy {accuracy:.2f}", done, total)

            try:
                run = train(config, self.out, progress=show)
            except Diverged as error:
                console.print(str(error))
                return Outcome({"run": error.run, "status": "diverged", "step": error.step}, good=False)
        columns = ["condition", "length", "sequences", "normalized_accuracy", "normalized_accuracy_se", "excess_loss"]
        console.print(plain_table(run.evaluation.select(columns)))
        console.print(repr(run))
        console.print(f"Files: {run.folder}")
        frames = {"evaluation": run.evaluation.to_dicts(), "summary": run.summary.to_dicts()}
        facts = {"run": run.id, "status": "finished", "folder": str(run.folder), "config": to_data(run.config)}
        return Outcome(facts | frames)
