"""``sparsity-lab diagnose``."""

# ruff: noqa: PLC0415

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from tyro.conf import Positional, UseAppendAction

from sparsity_lab.cli.command import OptionalPath, Outcome, SettingsCommand, check_target
from sparsity_lab.cli.output import plain_table, steps_shown
from sparsity_lab.settings import SettingError, from_text

if TYPE_CHECKING:
    from sparsity_lab.generators.padding import Pad


@dataclass(frozen=True, kw_only=True)
class Diagnose(SettingsCommand):
    """Estimate whether models will length-generalize on your text or token files.

    This command estimates how many tokens a target needs and how far away they are. It also trains a small model on
    short windows, with two position schemes, and tests it on long windows."""

    paths: Positional[tuple[Path, ...]] = ()
    """Data files: text; integers as lines, .json, .jsonl or a .parquet column; .npy, .npz; .bin with 16, 32 or 64
    bits per token."""
    labels: UseAppendAction[tuple[Path, ...]] = ()
    """Label file: a 0 or 1 per token, where 1 marks tokens that matter for the sequence's last token. Or .jsonl with
    the targets of each sequence, each [position, needed, needed, ..]. Give one file per data file, in the same
    order."""
    format: str = "auto"
    """File format. "auto" detects and reports it, and stops with a question if it is ambiguous."""
    column: str = ""
    """Column of .parquet, field of .json or .jsonl objects, or array of .npz that holds the tokens."""
    tokenizer: OptionalPath = None
    """A tokenizer.json to tokenize text. Without it, each character is a token."""
    pad: str = "auto"
    """The padding ID. "auto" finds obvious padding; "none" treats every token as data."""
    length: int = 32
    """Longest training window, in tokens."""
    longest: int = 4
    """Longest test window, as a multiple of --length."""
    position: str = "RoPE()"
    """The first position scheme, in short form."""
    other: str = "ALiBi()"
    """The second position scheme."""
    model: str = "Decoder()"
    """The model in short form."""
    steps: int = 600
    """Training steps for each scheme."""
    seed: int = 0
    """Seed of the weights and the windows."""
    picture: OptionalPath = None
    """Also plot the retained accuracy by length to this PNG file."""

    page: OptionalPath = None
    """Also write everything to this self-contained HTML page."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.analysis import diagnose, read_tokens, write_diagnosis
        from sparsity_lab.models import Decoder, PositionScheme
        from sparsity_lab.training import Diverged

        for option, target in (("--picture", self.picture), ("--page", self.page)):
            if target is not None:
                check_target(option, target)
        position = from_text(PositionScheme, self.position, "--position")
        other = from_text(PositionScheme, self.other, "--other")
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
        with steps_shown(console, "reading") as show:
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
            found.figure().savefig(self.picture, dpi=150)
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
