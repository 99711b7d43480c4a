"""``sparsity-lab swap``."""

# ruff: noqa: PLC0415

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import Positional, UseAppendAction, arg

from sparsity_lab.cli.command import OptionalText, Outcome, SettingsCommand, check_target
from sparsity_lab.cli.output import plain_table, progress_bar
from sparsity_lab.settings import SettingError, Shown, from_text

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Swap"]

_KERNELS = "LSSA()", "LSSAR()", "LogNSoftmax()"


@dataclass(frozen=True, kw_only=True)
class Swap(SettingsCommand):
    """Exchange the attention of an existing model of transformers and tell what that does to its loss, by length of
    context: the model as it is, with each mechanism, and with its own attention re-weighted at test time."""

    model: Positional[str]
    """A folder with a causal language model of transformers, or its name on the hub."""
    text: Positional[Annotated[tuple[Path, ...], arg(metavar="TEXT [TEXT ...]")]]
    """Files, each one document, or folders of them; a single file is cut into parts."""
    kernel: UseAppendAction[tuple[str, ...]] = ()
    """A mechanism in short form, as in "LSSAR(p=3)"; may be given again. By default LSSA(), LSSAR() and
    LogNSoftmax()."""
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """Lengths of context, in tokens."""
    documents: int = 16
    """At most so many are read."""
    tokenizer: OptionalText = None
    """Folder or name of the tokenizer, if it is not with the model."""
    bytes: bool = False
    """The model's tokens are bytes: there is no tokenizer."""
    out: Path = Path("swap.html")
    """The page."""
    seed: int = 0
    """Of learned parameters of the mechanisms."""

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
    # What transformers raises for names and folders in which it finds nothing to load.
    except (OSError, ValueError, KeyError) as error:
        hint = ", or --bytes" if path == "--tokenizer" else ""
        what = "a tokenizer" if path == "--tokenizer" else "a causal language model"
        words = " ".join(str(error).split())
        raise SettingError(path, f"{what} of transformers{hint}", Shown(f"{name} ({words[:120]})")) from None


def _documents(paths: tuple[Path, ...], as_bytes: bool) -> "str | Tensor | list[str] | list[Tensor]":
    """What the files hold; of a single file, that alone."""
    import torch

    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in files if file.is_file() or file in paths]
    try:
        contents = [file.read_bytes() for file in files]
        if as_bytes:
            tokens = [torch.tensor(list(content)) for content in contents]
            return tokens[0] if len(paths) == len(tokens) == 1 else tokens
        texts = [content.decode(encoding="utf-8") for content in contents]
    except OSError as error:
        raise SettingError(str(error.filename), "a file that can be read", Shown(error.strerror or "none")) from None
    except UnicodeDecodeError as error:
        raise SettingError("text", "files in UTF-8", Shown(str(error))) from None
    return texts[0] if len(paths) == len(texts) == 1 else texts
