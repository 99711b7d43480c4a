"""The benchmark of kernels: that all take part, what they are measured on, and the page that shows it."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from rich.console import Console

from sparsity_lab.benchmarks import kernel_page
from sparsity_lab.benchmarks import kernels as bench
from sparsity_lab.benchmarks.terminal import tables
from sparsity_lab.cli import run
from sparsity_lab.cli.output import plain_table
from sparsity_lab.kernels import AdaptiveSparse, Kernel
from sparsity_lab.settings import SettingError, kinds

(ADAPTIVE,) = AdaptiveSparse.benchmarked()
ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DECODED_LENGTHS", (8, 1100))
    monkeypatch.setattr(bench, "_MOST_ROUNDS", 3)


@pytest.mark.usefixtures("small")
def test_every_kernel_takes_part() -> None:
    # Other tests in this process register kernels of their own, some of them broken.
    classes = [cls for cls in kinds("kernel").values() if cls.__module__.startswith("sparsity_lab.")]
    classes = [cls for cls in classes if issubclass(cls, Kernel)]
    decoders = {str(kernel): ("auto", *kernel.decoders) for cls in classes for kernel in cls.benchmarked()}
    instances = {*decoders}
    assert instances <= set(map(str, bench.chosen(())))
    frame = bench.kernels(only=sorted(instances), lengths=(96,))
    assert set(frame["kernel"]) == instances
    for (kernel,), rows in frame.group_by("kernel"):
        inputs = rows.filter(rows["pass"] == "both")["input"].to_list()
        assert rows["pass"].to_list() == ["forward", "both"] * len(inputs) + ["decode"] * 2 * len(decoders[kernel])
        timed = rows.filter(rows["pass"] != "decode")
        assert (rows["ms"] > 0).all()
        assert (rows["over SDPA"] > 0).all()
        assert (timed["peak MiB"] > 0).all()
    softmax = frame.filter(frame["kernel"] == "Softmax()")
    assert softmax["runs"].unique().to_list() == ["fused"]
    assert softmax["peak over SDPA"].drop_nulls().to_list() == [1.0, 1.0]
    assert (frame["SDPA ms"] > 0).all()
    told = frame.filter(pl.col("retained").is_not_null())
    assert set(told["kernel"]) == {str(ADAPTIVE)}
    assert told.select((pl.col("retained") > 0) & (pl.col("over oracle") <= 1.0))["retained"].all()


@pytest.mark.usefixtures("small")
def test_chosen_kernels_and_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ("--only", "Sigmoid", "--only", "Sigmoid(trained_length=8)")
    assert run(["bench", "kernels", *chosen, "--lengths", "16", "24", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["kernel"] for row in rows} == {"Sigmoid()", "Sigmoid(trained_length=8)"}
    assert {row["T"] for row in rows if row["pass"] == "both"} == {16, 24}


def test_tables_fit_a_narrow_terminal() -> None:
    """One table for each pass, a row for each kernel and input with its ratios by length, no name folded."""
    rows = json.loads((ROOT / "benchmarks" / "kernels.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if row["input"] == "structured" and row["pass"] == "both":
            row.update({"retained": 0.4567, "over oracle": 0.9876})
    frame = pl.DataFrame(rows, infer_schema_length=None)
    shown, common = tables(frame)
    assert [title.partition(":")[0] for title in shown] == ["forward", "forward + backward", "decode", "retained"]
    assert "2 threads" in common
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in shown.values():
        console.print(plain_table(table))
    lines = console.export_text().splitlines()
    assert len(lines) == sum(len(table) + 1 for table in shown.values())
    wanted = ("LSSA()", "tiled", "both", 8192)
    (lssa,) = (row for row in rows if (row["kernel"], row["runs"], row["pass"], row["T"]) == wanted)
    both = shown["forward + backward: time over SDPA by T; ms, and peak memory over its at T=8192"]
    (line,) = both.filter(kernel="LSSA", runs="tiled").rows(named=True)
    assert (line["8192"], line["ms"], line["peak"]) == (lssa["over SDPA"], lssa["ms"], lssa["peak over SDPA"])
    assert "AdaptiveSparse, structured" in both["kernel"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kernels", "--only", "Softmx"), "did you mean 'Softmax'"),
        (("kernels", "--lengths", "0"), "--lengths: expected at least 1, got 0"),
        (("training", "--only", "NoPE"), "--only: benchmark 'training' does not have this option"),
        (("kernels", "--device", "tpu"), "--device: expected cpu"),
        (("startup", "--device", "cpu"), "--device: benchmark 'startup' does not have this option"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_structured_rows() -> None:
    """Norms as declared, logits 8 times the cosine, and neighbors with correlation 0.99."""
    rows = bench.structured_rows(2000, 64, torch.float32, "cpu")
    q, k = rows.q.detach(), rows.k.detach()
    torch.testing.assert_close(q.norm(dim=-1), torch.full(q.shape[:3], 8 * 8.0))
    torch.testing.assert_close(k.norm(dim=-1), torch.ones(k.shape[:3]))
    assert float((q / 8 @ k.mT).abs().max()) <= 8.0001
    for lag in (1, 20):
        cosine = float((k[:, :, lag:] * k[:, :, :-lag]).sum(-1).mean())
        assert cosine == pytest.approx(0.99**lag, abs=0.02)
    again = bench.structured_rows(2000, 64, torch.float32, "cpu")
    assert torch.equal(again.q, rows.q)


@pytest.mark.committed
def test_the_page_shows_what_was_measured() -> None:
    rows, on_cuda = kernel_page.measured_rows(ROOT / "benchmarks")
    assert kernel_page.with_table(PAGE, rows, on_cuda) == PAGE, "run python -m sparsity_lab.benchmarks.kernel_page"
    with pytest.raises(SettingError, match="page: the page needs the lines"):
        kernel_page.with_table("no marks", rows, on_cuda)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["kernels", "training", "generation"])
def test_no_device_is_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", name, "--device", "cuda"]) == 2
    told = "--device: expected cpu, for PyTorch finds no CUDA device here, got 'cuda'"
    assert told in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a CUDA device")
@pytest.mark.parametrize("driver", [False, True])
def test_make_gpu_ends_at_once_without_a_device(driver: bool, tmp_path: Path) -> None:
    """In one line and with exit code 2, before anything is installed; also where there is a driver alone."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    if driver:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho No devices found.\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        outside["PATH"] = f"{tmp_path}:{outside['PATH']}"
    told = subprocess.run(["make", "gpu"], cwd=ROOT, env=outside, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert re.fullmatch(r".*no CUDA device here.*\n", told.stderr)


def test_the_table_of_known_rows() -> None:
    def row(T: int, what: str, ratio: float, **more: object) -> dict[str, object]:
        common = {"kernel": "K()", "runs": "tiled", "where": "cpu float32, 2 threads", "input": "random"}
        none = {"peak over SDPA": None}
        return {**common, **none, "T": T, "pass": what, "ms": 10 * ratio, "over SDPA": ratio, **more}

    rows = [
        row(2, "forward", 3.0),
        row(2, "both", 1.234),
        row(4, "forward", 0.5),
        row(4, "both", 0.12345, **{"peak over SDPA": 2.5}),
        row(9, "decode", 0.0123),
    ]
    caption, _, header, _, line, _, _, _, steps, _, step = kernel_page.kernel_table(rows, []).split("\n")
    assert caption.endswith("cpu float32, 2 threads.")
    assert "| forward + backward, T=2 | forward + backward, T=4 | forward, T=4 | peak memory, T=4 |" in header
    assert line == "| `K()` | tiled | 1.23 | 0.12 | 0.5 | 2.50 | not measured |"
    assert (steps, step) == ("| kernel | runs | T=9 | ms | SDPA ms |", "| `K()` | tiled | 0.012 | 0.12 | – |")
    rows[-1] |= {"SDPA ms": 9.87}
    rows[1] |= {"retained": 0.4567, "over oracle": 0.98765}
    *_, step, _, caption, _, header, _, kept = kernel_page.kernel_table(rows, []).split("\n")
    assert step.endswith("| 0.012 | 0.12 | 9.9 |")
    assert caption == "Retained share of the dense attention mass:"
    assert header == "| kernel | input | T | retained mass | over oracle blocks |"
    assert kept == "| `K()` | random | 2 | 0.46 | 0.988 |"
    on_cuda = [row(4, "both", 2.5, input="random, D=64"), row(2, "both", 1.5, input="random, D=64")]
    on_cuda += [row(2, "both", 3.0, input="random, D=128"), row(2, "both", 9.0, input="structured, D=64")]
    assert "| 3.00 (D=128); 1.50, 2.50 (D=64) |" in kernel_page.kernel_table(rows, on_cuda)


def test_code_of_the_page_runs(tmp_path: Path) -> None:
    """The stand-alone lines; and the kernel of one's own, which passes for a kernel."""
    use, own = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    checks = """
import torch
from sparsity_lab.kernels import Softmax

q, k, v = torch.zeros(2, 3, 5, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
torch.testing.assert_close(Mean().attend(q, k, v), Softmax().attend(q, k, v))
torch.testing.assert_close(Mean().weights(q, k)[0, 0, 4], torch.full((5,), 0.2))
"""
    script = tmp_path / "page.py"
    script.write_text(use + own + checks, encoding="utf-8")
    # In a process of its own, so that no other test meets this kernel.
    told = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout == "fused\n"


MEASURED = json.loads((ROOT / "benchmarks" / "kernels.json").read_text(encoding="utf-8"))["rows"]


@pytest.mark.committed
@pytest.mark.parametrize(
    ("kernel", "runs", "rows", "floors"),
    [
        ("LSSA()", "tiled", "random", {2048: 1.7, 4096: 1.4, 8192: 1.4}),
        ("LSSA()", "native", "random", {2048: 1.1, 4096: 1.1, 8192: 1.1}),
        ("LSSAR()", "tiled", "random", {2048: 2.2, 4096: 2.2, 8192: 2.2}),
        ("LSSAR()", "native", "random", {2048: 1.65, 4096: 1.65, 8192: 1.65}),
        ("ShiftedSparse(ratio=0.25)", "fused", "random", {2048: 0.6, 4096: 0.5, 8192: 0.45}),
        ("NormAwareLinear()", "chunked", "random", {2048: 0.7, 4096: 0.4, 8192: 0.25}),
        (str(ADAPTIVE), "gather", "structured", {4096: 0.8, 8192: 0.5}),
    ],
)
def test_committed_measurements_keep_to_the_floors(
    kernel: str, runs: str, rows: str, floors: dict[int, float]
) -> None:
    """Forward + backward over fused softmax, and peak memory; a slower run is not committed unseen."""
    of_input = [row for row in MEASURED if (row["input"], row["pass"], row["runs"]) == (rows, "both", runs)]
    own = {row["T"]: row for row in of_input if row["kernel"] == kernel}
    assert {T: own[T]["over SDPA"] for T, floor in floors.items() if own[T]["over SDPA"] > floor} == {}
    assert own[8192]["peak over SDPA"] <= 2


@pytest.mark.committed
def test_committed_adaptive_rows_retain_what_was_asked() -> None:
    """At least 0.9 of what oracle blocks retain, beside the floors of the same rows."""
    told = [row for row in MEASURED if row["kernel"] == str(ADAPTIVE) and row["pass"] == "both"]
    over = {row["T"]: row["over oracle"] for row in told if row["input"] == "structured"}
    assert {T: over[T] for T in (4096, 8192) if over[T] < 0.9} == {}


@pytest.mark.committed
def test_committed_decoding_takes_the_same_time_at_any_length() -> None:
    """Of linear attention, up to the noise of a step of a tenth of a millisecond."""
    for kernel in ("NormAwareLinear()", "Linear()"):
        ms = {row["T"]: row["ms"] for row in MEASURED if (row["kernel"], row["pass"]) == (kernel, "decode")}
        assert ms[131_072] <= 1.2 * ms[1024], kernel
