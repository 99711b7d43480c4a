"""``sparsity-lab swap``."""

# ruff: noqa: PLC0415

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import Positional, UseAppendAction, arg

from sparsity_lab.cli.command import OptionalText, Outcome, SettingsCommand, check_target
from sparsity_lab.cli.output import plain_table, progress_bar
from sparsity_lab.settings import SettingError, from_text, read_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

_MOST_BYTES = 2**30
"""Of a document."""
_KERNELS = "LSSA()", "LSSAR()", "LogNSoftmax()"


@dataclass(frozen=True, kw_only=True)
class Swap(SettingsCommand):
    """Replace the attention of a transformers model and measure its loss by context length. Compares the original
    model, each mechanism, and its own attention re-weighted at test time."""

    model: Positional[str]
    """A causal language model of transformers: a folder, or a name on the hub."""
    text: Positional[Annotated[tuple[Path, ...], arg(metavar="TEXT [TEXT ...]")]]
    """Text files, one document each, or folders of them. A single file is split into parts."""
    kernel: UseAppendAction[tuple[str, ...]] = ()
    """A mechanism in short form, as in "LSSAR(p=3)"; repeat it for more. By default LSSA(), LSSAR() and
    LogNSoftmax()."""
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """Context lengths, in tokens."""
    documents: int = 16
    """Largest number of documents to read."""
    tokenizer: OptionalText = None
    """Folder or name of the tokenizer; by default the model's."""
    bytes: bool = False
    """The model's tokens are bytes, without a tokenizer."""
    out: Path = Path("swap.html")
    """Output page."""
    seed: int = 0
    """Seed of the mechanisms' learned parameters."""

    def run(self, console: Console) -> Outcome:
        from sparsity_lab.interop import swap_report
        from sparsity_lab.kernels import Kernel

        check_target("--out", self.out)
        kernels = [from_text(Kernel, text, "--kernel") for text in self.kernel or _KERNELS]
        tokenizer = None if self.bytes else _loaded("AutoTokenizer", self.tokenizer or self.model, "--tokenizer")
        documents = _documents(self.text, self.bytes)
        model: nn.Module = _loaded("AutoModelForCausalLM", self.model, "model")
        with progress_bar(console) as progress:
            bar = progress.add_task("reading", total=None)

            def show(words: str, done: int, total: int) -> None:
                progress.update(bar, description=words, completed=done, total=total)

            found = swap_report(
                model,
                documents,
                kernels,
                self.lengths,
                tokenizer=tokenizer,
                documents=self.documents,
                seed=self.seed,
                progress=show,
            )
        console.print(f"Loss in nats a token, {found.documents} documents, by length of context")
        console.print(plain_table(found.summary()))
        console.print(f"\nAt {found.lengths[-1]} tokens")
        console.print(plain_table(found.cost()))
        console.print(f"\n{found.verdict}")
        console.print(f"Page: {found.write(self.out)}")
        return Outcome({"page": str(self.out), **found.to_data()})


def _loaded(kind: str, name: str, path: str) -> Any:
    """A model or a tokenizer of transformers."""
    from sparsity_lab.interop.extra import required

    required("transformers.utils.logging").disable_progress_bar()
    try:
        return getattr(required("transformers"), kind).from_pretrained(name)
    # transformers raises these if it finds nothing to load.
    except (OSError, ValueError, KeyError) as error:
        hint = "; for a model of bytes, use --bytes" if path == "--tokenizer" else ""
        what = "tokenizer" if path == "--tokenizer" else "causal language model"
        words = " ".join(str(error).split())
        raise SettingError(path, f"transformers finds no {what} in {name!r} ({words[:120]}){hint}") from None


def _documents(paths: tuple[Path, ...], as_bytes: bool) -> "str | Tensor | list[str] | list[Tensor]":
    """The contents of the files; a single file gives a single text."""
    import torch

    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in files if file.is_file() or file in paths]
    try:
        contents = [read_whole(file, _MOST_BYTES) for file in files]
        if as_bytes:
            tokens = [torch.tensor(list(content)) for content in contents]
            return tokens[0] if len(paths) == len(tokens) == 1 else tokens
        texts = [content.decode(encoding="utf-8") for content in contents]
    except UnicodeDecodeError as error:
        raise SettingError("text", f"a file is not UTF-8 text: {error}") from None
    return texts[0] if len(paths) == len(texts) == 1 else texts
