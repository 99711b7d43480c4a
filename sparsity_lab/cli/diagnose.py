"""``sparsity-lab diagnose``."""

# ruff: noqa: PLC0415

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from tyro.conf import Positional, UseAppendAction

from sparsity_lab.cli.command import OptionalPath, Outcome, SettingsCommand, check_target
from sparsity_lab.cli.output import plain_table, progress_bar
from sparsity_lab.settings import SettingError, from_text

if TYPE_CHECKING:
    from sparsity_lab.generators.padding import Pad

__all__ = ["Diagnose"]


@dataclass(frozen=True, kw_only=True)
class Diagnose(SettingsCommand):
    """Tell from your own text or token files whether length generalization is to be expected on them: how many tokens
    a target needs and how far away they are, and how far a small model that was trained short carries, under two
    position schemes."""

    paths: Positional[tuple[Path, ...]] = ()
    """Files: text; whole numbers in lines, .jsonl or a .parquet column; .npy, .npz; .bin of 16 or 32 bits a token."""
    labels: UseAppendAction[tuple[Path, ...]] = ()
    """File with a 0 or 1 for each token, 1 for those that matter for the last token of the sequence; or .jsonl with
    the targets of each sequence, each [position, needed, needed, ..]. One for each data file, in their order."""
    format: str = "auto"
    """How to read the files; auto recognizes it, says it, and asks where it could be two things."""
    column: str = ""
    """Of .parquet, of the objects of .jsonl, or the array of an .npz."""
    tokenizer: OptionalPath = None
    """A tokenizer.json that makes tokens of text; without it, tokens are characters."""
    pad: str = "auto"
    """The ID that fills sequences up; auto finds it where it is obvious, none keeps all as data."""
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

    page: OptionalPath = None
    """Also write all of it as a self-contained HTML page there."""

    def run(self, console: Console) -> Outcome:
        from matplotlib.figure import Figure

        from sparsity_lab.analysis.diagnosis import diagnose, read_tokens, write_diagnosis
        from sparsity_lab.models import Decoder, PositionScheme
        from sparsity_lab.training import Diverged

        for option, target in (("--picture", self.picture), ("--page", self.page)):
            if target is not None:
                check_target(option, target)
        position, other = (
            from_text(PositionScheme, text, option)
            for option, text in (("--position", self.position), ("--other", self.other))
        )
        model = from_text(Decoder, self.model, "--model")
        data = read_tokens(
            self.paths,
            self.labels,
            format=self.format,
            column=self.column,
            tokenizer=self.tokenizer,
            pad=_pad(self.pad),
        )
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
        for line in found.horizon():
            console.print(line, soft_wrap=True)
        if self.picture is not None:
            figure = found.plot().get_figure(root=True)
            assert isinstance(figure, Figure)
            figure.savefig(self.picture, dpi=150)
            console.print(f"Picture: {self.picture}")
        if self.page is not None:
            console.print(f"Page: {write_diagnosis(found, self.page, files=data.forms)}")
        return Outcome({"status": "finished", "files": list(data.forms), **found.to_data()})


def _pad(text: str) -> "Pad":
    if text in ("auto", "none"):
        return text  # type: ignore[return-value]
    if not re.fullmatch(r"-?\d{1,18}", text):
        raise SettingError("--pad", "a whole number, auto or none", text, ("auto", "none"))
    return int(text)
