"""``sparsity-lab swap``."""

# ruff: noqa: PLC0415

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from tyro.conf import Positional, UseAppendAction, arg

from sparsity_lab.cli.command import OptionalText, Outcome, SettingsCommand, check_target
from sparsity_lab.cli.output import plain_table, steps_shown
from sparsity_lab.settings import SettingError, Shown, check_that, from_text

if TYPE_CHECKING:
    from torch import Tensor, nn

_KERNELS = "LSSA()", "LSSAR()", "LogNSoftmax()"


@dataclass(frozen=True, kw_only=True)
class Swap(SettingsCommand):
    """Replace the attention of a transformers model and measure its loss by context length. The command compares the
    original model, each mechanism, and the model's own attention re-weighted at test time."""

    model: Positional[str]
    """A causal language model of transformers: a folder, or a name on the hub."""
    text: Positional[Annotated[tuple[str, ...], arg(metavar="TEXT [TEXT ...]")]]
    """Files, folders of files, or patterns such as "texts/*.txt". A document is a text file, or a row of .jsonl or
    .parquet. Numbers, in any form that diagnose reads, are the model's tokens. A single document is split into
    parts."""
    kernel: UseAppendAction[tuple[str, ...]] = ()
    """A mechanism in short form, as in "LSSAR(p=3)"; repeat it for more mechanisms. By default LSSA(), LSSAR() and
    LogNSoftmax()."""
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """Context lengths, in tokens."""
    documents: int = 16
    """Largest number of documents to read."""
    tokenizer: OptionalText = None
    """Folder or name of the tokenizer; by default the model's."""
    bytes: bool = False
    """Use bytes as tokens, without a tokenizer."""
    format: str = "auto"
    """File format. "auto" detects and reports it, and stops with a question if it is ambiguous."""
    column: str = ""
    """Column of .parquet, field of .jsonl objects, or array of .npz that holds the texts or tokens."""
    out: Path = Path("swap.html")
    """Output page."""
    seed: int = 0
    """Seed of the mechanisms' learned parameters."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.interop import swap_report
        from sparsity_lab.interop.extra import loaded, required
        from sparsity_lab.kernels import Kernel

        check_target("--out", self.out)
        kernels = [from_text(Kernel, text, "--kernel") for text in self.kernel or _KERNELS]
        documents, forms = _documents(self.text, self.format, self.column, self.bytes)
        required("transformers.utils.logging").disable_progress_bar()
        needed = any(isinstance(one, str) for one in documents)
        name = self.tokenizer or self.model
        tokenizer = loaded("AutoTokenizer", name, "--tokenizer (or --bytes)") if needed else None
        model: nn.Module = loaded("AutoModelForCausalLM", self.model, "model")
        with steps_shown(console, "reading") as show:
            found = swap_report(
                model,
                documents if len(documents) > 1 else documents[0],
                kernels,
                self.lengths,
                tokenizer=tokenizer,
                documents=self.documents,
                seed=self.seed,
                progress=show,
            )
        for form in forms:
            console.print(f"Read {form}")
        console.print(f"Loss in nats per token, {found.documents} documents, by context length")
        console.print(plain_table(found.summary()))
        console.print(f"\nAt {found.lengths[-1]} tokens")
        console.print(plain_table(found.cost()))
        console.print(f"\n{found.verdict}")
        console.print(f"Page: {found.write(self.out)}")
        return Outcome({"page": str(self.out), **found.to_data()})


def _documents(
    paths: tuple[str, ...], form: str, column: str, as_bytes: bool
) -> "tuple[list[str | Tensor], list[str]]":
    """The texts or tokens in the files, and how each file was read."""
    import numpy as np
    import torch

    from sparsity_lab.generators.corpus import find_files
    from sparsity_lab.generators.token_formats import read_sequences

    found: list[str | Tensor] = []
    said: list[str] = []
    try:
        files = [file for file in find_files(paths) if file.stat().st_size]
    except SettingError as error:
        raise SettingError("text", error.expected, Shown(error.got), error.known) from None
    for file in files:
        read = read_sequences(file, form, column)
        said.append(f"{file}: {read.form.partition(', a token')[0]}")
        for tokens in read.sequences:
            if not read.of_text:
                found.append(torch.from_numpy(tokens.astype("int64")))
                continue
            text = tokens.astype("<u4").tobytes().decode("utf-32-le", errors="replace")
            raw = tokens if form == "bytes" else np.frombuffer(text.encode(), np.uint8)
            found.append(torch.from_numpy(raw.astype("int64")) if as_bytes else text)
    check_that(found, "text", "a file that is not empty", Shown(", ".join(paths) or "none"))
    return found, said
