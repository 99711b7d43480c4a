"""``swap_report`` and ``sparsity-lab swap``."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from figure_rules import broken_rules
from interop.tiny_models import VOCAB, build, tokens
from interop.trained import byte_model, python_files
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from sparsity_lab import cli
from sparsity_lab.interop import SwapReport, attach, swap_report
from sparsity_lab.kernels import LSSA, LSSAR, LogNSoftmax, Softmax
from sparsity_lab.models import ALiBi
from sparsity_lab.settings import SettingError

LENGTHS = (8, 16, 32)


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    return [row.tolist() for row in tokens(40, batch_size=5, seed=3)]


@pytest.fixture(scope="module")
def found(documents: list[list[int]]) -> SwapReport:
    return swap_report(build("Llama"), documents, [Softmax(), LSSA()], (32, 8, 16, 8))


# --- what is measured


def test_losses_are_those_of_the_same_targets(found: SwapReport, documents: list[list[int]]) -> None:
    """The last four of the first 33 tokens of each document, read from 8, 16 and 32 tokens before the last."""
    model, rows = build("Llama"), torch.tensor(documents)[:, :33]
    assert (found.lengths, found.targets, found.documents) == (LENGTHS, 4, 5)
    for length in LENGTHS:
        logits = model(rows[:, 32 - length : 32]).logits[:, -4:]
        each = cross_entropy(logits.transpose(1, 2), rows[:, -4:], reduction="none").mean(1)
        own = found.frame().filter((pl.col("arm") == "as it is") & (pl.col("length") == length))
        assert own["loss"].item() == pytest.approx(each.mean().item(), abs=1e-5)
        half = 2.7764451 * each.std().item() / 5**0.5  # Student's quantile with four degrees of freedom
        assert own["high"].item() - own["loss"].item() == pytest.approx(half, abs=1e-5)


def test_positions_are_those_of_one_reading(found: SwapReport, documents: list[list[int]]) -> None:
    rows = torch.tensor(documents)[:, :33]
    each = cross_entropy(build("Llama")(rows[:, :-1]).logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(0)
    own = found.positions().filter(pl.col("arm") == "as it is")
    assert own.select("first", "last").rows() == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32)]
    expected = [each[first - 1 : last].mean().item() for first, last in own.select("first", "last").rows()]
    assert own["loss"].to_list() == pytest.approx(expected, abs=1e-5)


def test_arms(found: SwapReport) -> None:
    """Softmax is the model's own attention; the others are not. Time and memory are there for all."""
    assert found.arms == ("as it is", "Softmax()", "LSSA()", "re-weighted")
    assert found.kernels == {"Softmax()": "Softmax()", "LSSA()": "LSSA()", "re-weighted": "Reweighted()"}
    for length in LENGTHS:
        assert found.difference("Softmax()", length).estimate == pytest.approx(0, abs=1e-5)
        assert abs(found.difference("LSSA()", length).estimate or 0) > 1e-2
    frame, cost = found.frame(), found.cost()
    assert frame.height == 12
    assert (frame["seconds_per_1000_tokens"] > 0).all()
    assert (cost["peak_MiB"] > 0).all()
    assert cost["memory_ratio"][0] == cost["time_ratio"][0] == 1
    assert found.summary().columns == ["arm", "8", "16", "32"]


def test_intervals_of_differences_hold_together(found: SwapReport) -> None:
    """Each of three has a third of the 5 %."""
    losses = found._losses
    pairs = losses["LSSA()"][8].mean(1) - losses["as it is"][8].mean(1)
    one = found.difference("LSSA()", 8)
    quantile = 3.9607974  # Student's, four degrees of freedom, 1 - 0.05 / 6
    assert (one.high or 0) - (one.estimate or 0) == pytest.approx(quantile * pairs.std(ddof=1) / 5**0.5, rel=1e-4)


def test_the_model_leaves_as_it_came(documents: list[list[int]]) -> None:
    class Stop(Exception):
        pass

    def stop(words: str, done: int, total: int) -> None:
        if "LSSA" in words:
            raise Stop

    def count(words: str, done: int, total: int) -> None:
        seen.append((done, total))

    model, ids, seen = build("GPT2").train(), tokens(12), list[tuple[int, int]]()
    before = model.eval()(ids).logits
    model.train()
    with pytest.raises(Stop):
        swap_report(model, documents, [LSSA()], LENGTHS, progress=stop)
    assert model.training
    swap_report(model, documents, [LSSAR()], LENGTHS, reweighted=None, progress=count)
    assert model.training
    assert torch.equal(model.eval()(ids).logits, before)
    assert seen[-1][0] == seen[-1][1]


# --- the verdict


def made_up(differences: Mapping[str, tuple[float, float]], spread: float = 0.01) -> SwapReport:
    """Two lengths; each arm's mean differences from the model as it is."""
    noise = spread * np.linspace(-1, 1, 6)[:, None]
    own = {8: np.full((6, 4), 2.0), 32: np.full((6, 32), 2.5)}
    losses: dict[str, Any] = {"as it is": own}
    for arm, (short, long) in differences.items():
        losses[arm] = {8: own[8] + short + noise, 32: own[32] + long + noise}
    return SwapReport(
        model="Made", kernels={arm: arm for arm in differences}, lengths=(8, 32), targets=4, documents=6, declared=16,
        _losses=losses, _seconds={(arm, n): 0.1 for arm in losses for n in (8, 32)}, _bytes=dict.fromkeys(losses, 1),
    )  # fmt: skip


def test_verdicts() -> None:
    words = made_up({"A": (0.1, -0.3), "B": (0.0, -0.2)}).verdict
    assert re.fullmatch(
        r"A helps: at 32 tokens its loss is 0\.300 \[0\.290, 0\.310\] nats a token lower than as it is\. "
        r"At 8 tokens it is 0\.100 \[.*\] nats a token higher than as it is\.",
        words,
    )
    words = made_up({"A": (0.1, 0.3), "B": (0.0, 0.2)}).verdict
    assert words.startswith(
        "Keep the attention as it is: at 32 tokens the loss of every mechanism is higher; the least"
    )
    assert "with B, is 0.200" in words
    words = made_up({"A": (0.1, 0.3), "B": (0.0, 0.001)}).verdict
    assert words.startswith("Not decided: at 32 tokens B changes the loss by +0.001 [−0.00")


# --- the page


def test_page_loads_nothing_and_says_all(found: SwapReport, tmp_path: Path) -> None:
    text = found.write(tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](https?:)?//""", text)
    assert text.count("<svg") == 3
    for words in (found.verdict.partition(":")[0], "LlamaForCausalLM", "re-weighted", "declared context", "peak MiB"):
        assert words in text
    with pytest.raises(SettingError, match=r"path: cannot write"):
        found.write(tmp_path / "no" / "page.html")


def test_figures(found: SwapReport) -> None:
    ax = found.plot()
    assert [line.get_label() for line in ax.get_lines()[:4]] == list(found.arms)
    assert ax.get_lines()[0].get_ydata() == pytest.approx(found.frame()["loss"][:3].to_list())
    assert len(found.plot_positions().get_lines()) == 4
    assert [line.get_label() for line in found.plot_differences().get_lines()[:-1]] == list(found.arms[1:])
    figures = [found.figure(), *(ax.figure for ax in (found.plot_differences(), found.plot_positions()))]
    assert [broken_rules(figure) for figure in figures] == [[]] * 3


# --- bad input


def test_what_is_refused(documents: list[list[int]]) -> None:
    model = build("GPT2")
    for arguments, words in [
        (
            (documents, [LSSA()], (64, 256)),
            "lengths: expected at most 128, the model's number of positions, got 256",
        ),
        ((documents, [LSSA()], ()), r"lengths: expected one or more, got \(\)"),
        ((documents, [LSSA()], (8, 1)), "lengths: expected a whole number of at least 2, got 1"),
        ((documents, [LSSA()], (8.5,)), "lengths: expected a whole number of at least 2, got 8.5"),
        (
            (documents, [LSSA()], (64,)),
            "text: expected at least two documents of 65 tokens, .* got 0 such documents, t",
        ),
        (([[0, 1, VOCAB]] * 2, [LSSA()], (2,)), "text: expected tokens 0 .. 63 of the model, got 64"),
        ((["words"], [LSSA()], (2,)), "tokenizer: expected the model's tokenizer, for documents of text, got None"),
        ((documents, ["LSSA"], (8,)), r"kernels\[0\]: expected a kernel"),
        ((documents, [LSSA(), ALiBi()], (8,)), r"kernels\[1\]: expected a kernel, .* positions stay those of the mo"),
        ((documents, LSSA(), (8,)), r"kernels: expected a list, got LSSA\(\)"),
        ((documents, [LSSA()], 8), "lengths: expected a list, got 8"),
        ((None, [LSSA()], (8,)), "text: expected documents, texts or rows of tokens, got NoneType"),
        ((torch.tensor(3), [LSSA()], (8,)), "text: expected documents, texts or rows of tokens, got Tensor"),
        *(
            (([row] * 2, [LSSA()], (2,)), "text: expected texts, or rows of whole numbers, got ")
            for row in (
                [1, 2, [3]],
                [1, 2, "3"],
                [[1, 2], [3, 4]],
                *(torch.ones(9, dtype=kind) for kind in (torch.bool, torch.float32, torch.complex64)),
            )
        ),
    ]:
        with pytest.raises(SettingError, match=words):
            swap_report(model, *arguments)
    with pytest.raises(SettingError, match="documents: expected a whole number of at least 2, got 0"):
        swap_report(model, documents, [LSSA()], (8,), documents=0)
    with pytest.raises(SettingError, match="kernels: expected at least one, where nothing is re-weighted, got "):
        swap_report(model, documents, [], (8,), reweighted=None)
    with pytest.raises(SettingError, match="tokenizer: expected the model's tokenizer, .* got 'gpt2'"):
        swap_report(model, ["words"] * 2, [LSSA()], (8,), tokenizer="gpt2")
    with pytest.raises(SettingError, match=r"model: a kernel is attached; call detach\(model\) first"):
        swap_report(attach(model, LSSA()), documents, [LSSA()], LENGTHS)


def test_a_single_text_is_cut_into_documents() -> None:
    text = tokens(100, batch_size=1)[0]
    cut = swap_report(build("Llama"), text, [], (8, 16))
    given = swap_report(build("Llama"), list(text.split(17)), [], (8, 16))
    assert cut.documents == 5
    assert cut.frame()["loss"].to_list() == given.frame()["loss"].to_list()


# --- the command


def lab(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["swap", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build("Llama", vocab_size=256).save_pretrained(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for i in range(3):
        (tmp_path / "texts" / f"{i}.txt").write_bytes(bytes(tokens(40, 1, seed=i)[0].tolist()))
    return tmp_path


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    arguments = [str(folder / "model"), str(folder / "texts"), "--bytes", "--format", "bytes", "--lengths", "8", "32"]
    arguments += ["--kernel", "LSSAR(p=3)", "--out", str(folder / "page.html")]
    code, out, _ = lab(capsys, *arguments)
    assert code == 0
    assert "LSSAR(p=3.0)" in out
    assert "Loss in nats per token, 3 documents, by context length" in out
    assert (folder / "page.html").stat().st_size > 20_000
    code, out, err = lab(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["lengths"] == [8, 32]
    assert [row["arm"] for row in told["cost"]] == ["as it is", "LSSAR(p=3.0)", "re-weighted"]


def test_command_with_a_tokenizer_and_a_single_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tokenizers  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    words = tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder / "model")
    (folder / "one.txt").write_text("a b b " * 30)
    capsys.readouterr()
    arguments = [str(folder / "model"), str(folder / "one.txt"), "--lengths", "8", "16", "--json"]
    code, out, err = lab(capsys, *arguments, "--out", str(folder / "page.html"))
    assert (code, err) == (0, "")
    assert json.loads(out)["documents"] == 5


def test_texts_of_every_form(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same documents in several files, by pattern, in other encodings and formats are the same numbers."""
    words = [f"some words, the {i}th of all texts; ümlaut \u4e2d" for i in range(4)]
    made = {name: folder / name for name in ("utf8", "utf16", "jsonl", "parquet", "npy")}
    for path in made.values():
        path.mkdir()
    for i, text in enumerate(words):
        (made["utf8"] / f"{i}.txt").write_text(text, encoding="utf-8")
        (made["utf16"] / f"{i}.txt").write_text(text, encoding="utf-16")
        np.save(made["npy"] / f"{i}.npy", np.frombuffer(text.encode(), np.uint8))
    (made["utf8"] / "empty.txt").touch()
    (made["jsonl"] / "all.jsonl").write_text("\n".join(json.dumps({"text": text, "n": 1}) for text in words))
    pl.DataFrame({"text": words}).write_parquet(made["parquet"] / "all.parquet")
    capsys.readouterr()
    found = {}
    for name, path in {**made, "pattern": folder / "utf8" / "*.txt"}.items():
        arguments = [str(folder / "model"), str(path), "--bytes", "--lengths", "8", "--kernel", "LSSA()", "--json"]
        code, out, err = lab(capsys, *arguments, "--out", str(folder / "page.html"))
        assert (code, err) == (0, ""), name
        told = json.loads(out)
        assert told["documents"] == 4
        found[name] = [row["loss"] for row in told["losses"]]
    assert all(losses == found["utf8"] for losses in found.values())


def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, texts, page = str(folder / "model"), str(folder / "texts"), ["--out", str(folder / "page.html")]
    raw = ["--bytes", "--format", "bytes"]
    (folder / "empty.txt").touch()
    damaged, cut, needs = (str(shutil.copytree(model, folder / name)) for name in ("damaged", "cut", "needs"))
    weights = Path(damaged, "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    some = load_file(Path(cut, "model.safetensors"))
    del some["model.norm.weight"]
    save_file(some, Path(cut, "model.safetensors"), {"format": "pt"})
    Path(needs, "config.json").write_text('{"model_type": "of another day"}')
    capsys.readouterr()
    for arguments, words in [
        ([model, texts, "--bytes", "--kernel", "LSAR()"], "--kernel.kind: expected a kernel (one of"),
        (
            [str(folder / "none"), texts, *raw],
            "model: expected the folder or hub name of a causal language model that transformers loads, got ",
        ),
        (
            [model, texts, "--format", "bytes"],
            "--tokenizer (or --bytes): expected the folder or hub name of a tokenizer that transformers loads, got ",
        ),
        ([model], "text: expected a file that is not empty, got none"),
        ([model, str(folder / "gone.txt"), *raw], "text: expected a file, a folder with files, or a pattern"),
        ([model, str(folder / "*.no"), *raw], "text: expected a pattern that matches a file"),
        ([model, str(folder / "empty.txt"), *raw], "text: expected a file that is not empty"),
        ([model, texts, "--bytes"], f"{folder / 'texts' / '0.txt'}: found text with zero bytes; use --format bytes"),
        ([model, texts, *raw, "--lengths", "64"], "text: expected at least two documents of 65 tokens"),
        ([damaged, texts, *raw], f"model: expected the folder or hub name of a causal.* got '{damaged}' (Safetensor"),
        ([cut, texts, *raw], "model: expected a causal language model with all its weights, model.norm.weight too"),
        ([needs, texts, *raw], "model: expected the folder or hub name of a causal.* got .*ValueError"),
    ]:
        code, out, err = lab(capsys, *arguments, *page)
        assert (code, out) == (2, ""), words
        assert re.match(re.escape(f"sparsity-lab: {words}").replace(r"\.\*", ".*"), err), err
        assert err.count("\n") == 1
    assert not (folder / "page.html").exists()


# --- numbers that mean something


@pytest.mark.slow
def test_on_a_trained_model() -> None:
    """Reading text in place of noise, softmax with other scores than it learned is worse; nothing at test time alone
    mends that."""
    report = swap_report(byte_model(), python_files(12, 257), [LSSA(), LogNSoftmax()], (32, 64, 256), documents=12)
    near = report.difference("LSSA()", 64)
    assert near.decided
    assert (near.estimate or 0) > 0.05
    assert 1.0 < report.frame()["loss"][1] < 3.2
    last = report.positions().filter(pl.col("arm") == "as it is")
    assert last["loss"][4] < last["loss"][2]  # more context helps within the trained length
