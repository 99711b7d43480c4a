"""The compiled form of softplus attention, compared with the reference in float64. Shared tests run over it too."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from torch import Tensor

from sparsity_lab.kernels import LSSA, LSSAR, Kernel
from sparsity_lab.kernels.lssar import native
from sparsity_lab.kernels.parts import compiler
from sparsity_lab.settings import SettingError

CASES = [
    (LSSA(), 64, 64),
    (LSSA(), 80, 33),
    (LSSAR(p=1), 16, 64),
    (LSSAR(p=2.5), 8, 20),
    (LSSAR(p=3), 80, 33),
    (LSSAR(p=15), 64, 64),
]
"""Kernels, head sizes and widths of values."""

compiled = pytest.mark.skipif(
    not compiler.COMPILER, reason=f"the native form is NOT TESTED without {compiler.NEEDED}"
)


def both_passes(kernel: Kernel, rows: tuple[Tensor, ...], grad: Tensor, **options: object) -> list[Tensor]:
    out = kernel.attend(*rows, **options)
    return [out.detach(), *torch.autograd.grad(out, rows, grad.to(out.dtype))]


def hidden(length: int) -> Tensor:
    """(2, T): padding on the left of the first sequence, and on the right and here and there in the second."""
    key_mask = torch.ones(2, length, dtype=torch.bool)
    key_mask[0, :70], key_mask[1, ::3], key_mask[1, -40:] = False, False, False
    return key_mask


@compiled
@pytest.mark.parametrize(("kernel", "head_dim", "width"), CASES, ids=str)
def test_it_is_the_reference(kernel: Kernel, head_dim: int, width: int) -> None:
    """Several tiles of rows and keys, which do not divide them: output and all gradients, with every mask."""
    T = 290
    q, k = random_rows(2, 2, T, head_dim, count=2, dtype=torch.float32)
    v, grad = random_rows(2, 2, T, width, count=2, seed=1, dtype=torch.float32)
    ids = (torch.arange(T) // 97).expand(2, -1) + 2**40
    rows, wide = (q, k, v), tuple(x.detach().double().requires_grad_() for x in (q, k, v))
    for causal in (True, False):
        for key_mask in (None, hidden(T)):
            for documents in (None, ids):
                options = {"causal": causal, "key_mask": key_mask, "document_ids": documents}
                got = both_passes(kernel, rows, grad.detach(), implementation="native", **options)
                expected = both_passes(kernel, wide, grad.detach(), implementation="reference", **options)
                for name, x, y in zip(("output", "dq", "dk", "dv"), got, expected, strict=True):
                    assert_close(f"{name}, {options}", x, y, 5e-6 * kernel.rounding)


@compiled
def test_a_gradient_of_any_layout() -> None:
    """That of a sum is one number, spread out; a copy of it must live as long as it is read."""
    rows = random_rows(1, 2, 70, 16, dtype=torch.float32)
    expected = both_passes(LSSAR(), rows, torch.ones(1, 2, 70, 16), implementation="native")[1:]
    for _ in range(5):
        got = torch.autograd.grad(LSSAR().attend(*rows, implementation="native").sum(), rows)
        assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


@compiled
@pytest.mark.parametrize("kernel", [LSSA(), LSSAR(p=15)], ids=str)
def test_threads_and_lengths_change_no_digit(kernel: Kernel) -> None:
    """Every head is one thread's. Keys after a row, and rows after it, do not matter to its last digit."""
    rows = random_rows(1, 3, 200, 16, dtype=torch.float32)
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        try:
            found.append(both_passes(kernel, rows, torch.ones(1, 3, 200, 16), implementation="native"))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    shorter = kernel.attend(*(x[:, :, :131] for x in rows), implementation="native")
    assert torch.equal(shorter, found[0][0][:, :, :131])


@compiled
@pytest.mark.parametrize("kernel", [LSSA(), LSSAR(p=15)], ids=str)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_stays_so(kernel: Kernel, wrong: float) -> None:
    """In a row's own query, or in a key that it sees; other rows are as before."""
    q, k, v = (x.detach() for x in random_rows(1, 1, 200, 16, dtype=torch.float32))
    usual = kernel.attend(q, k, v, implementation="native")
    for changed, rows in ((q, slice(150, 151)), (k, slice(150, 200))):
        kept = changed[:, :, 150].clone()
        changed[:, :, 150, 3] = wrong
        out = kernel.attend(q, k, v, implementation="native")
        assert out[:, :, rows].isnan().all()
        out[:, :, rows] = usual[:, :, rows]
        assert_close("other rows", out, usual, 1e-4)  # norms of all rows are then taken with more care
        changed[:, :, 150] = kept


@compiled
def test_a_hidden_key_that_is_no_number_counts_for_nothing() -> None:
    q, k, v = (x.detach() for x in random_rows(1, 1, 100, 16, dtype=torch.float32))
    key_mask = torch.arange(100).ne(40).unsqueeze(0)
    expected = LSSAR().attend(q, k, v, key_mask=key_mask, implementation="native")
    k[:, :, 40] = torch.nan
    got = LSSAR().attend(q, k, v, key_mask=key_mask, implementation="native")
    assert_close("output", got, expected, 1e-4)  # norms of all rows are then taken with more care


# --- what is short


@compiled
def test_too_little_memory_is_an_error_and_not_the_end() -> None:
    """Of one thread or several: no exception leaves C++."""
    for threads in (1, 3):
        numbers = {"N": 4, "H": 1, "R": 1, "K": 2**44, "D": 16, "E": 16, "threads": threads}
        assert native.library(native._SOURCE).softplus_forward(ctypes.byref(native._Call(**numbers))) == 1
    rows = tuple(torch.zeros(1, 1, 1, 16) for _ in "qkv")
    with pytest.raises(MemoryError, match="too little memory for a tile of implementation='native'"):
        native._run_native(lambda call: 1, rows, 0, None)


FEW_THREADS = """
import re, resource, torch
from sparsity_lab.kernels import LSSA
from sparsity_lab.kernels.lssar import native
rows = [torch.randn(1, 64, 300, 16) for _ in "qkv"]
expected = LSSA().attend(*rows, implementation="native")
size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, size + 2**26))
native.torch.get_num_threads = lambda: 64
print(torch.equal(LSSA().attend(*rows, implementation="native"), expected))
"""


@compiled
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is read as on Linux")
def test_threads_that_cannot_be_started_leave_their_work_to_others() -> None:
    """Of 64 threads with stacks of 8 MiB a few have room."""
    done = subprocess.run([sys.executable, "-c", FEW_THREADS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


# --- what is refused


@compiled
def test_float64_is_refused() -> None:
    rows = torch.zeros(1, 1, 2, 4, dtype=torch.float64)
    with pytest.raises(SettingError, match=r"^implementation: expected rows on a CPU, .*, got float64 on cpu$"):
        LSSA().attend(rows, rows, rows, implementation="native")


@compiled
def test_a_class_that_is_not_registered_runs_on_plain_rows_alone() -> None:
    """Without an operator nothing that has no numbers may reach C++."""

    class Own(LSSA):
        pass

    (q,) = (x.detach() for x in random_rows(1, 2, 9, 8, count=1, dtype=torch.float32))
    assert torch.equal(
        Own().attend(q, q, q, implementation="native"), LSSA().attend(q, q, q, implementation="native")
    )
    words = (
        "implementation: expected a registered class under torch.compile, torch.func or on the meta device, for 'na"
    )
    with pytest.raises(SettingError, match=words):
        Own().attend(*(q.to("meta") for _ in "qkv"), implementation="native")
    with pytest.raises(SettingError, match=words):
        torch.func.grad(lambda q: Own().attend(q, q, q, implementation="native").sum())(q)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "COMPILER", ())
    rows = torch.zeros(1, 1, 2, 4)
    with pytest.raises(SettingError, match=r"^implementation: expected .*which needs a C\+\+ compiler.*'native'$"):
        LSSAR().attend(rows, rows, rows, implementation="native")


@pytest.fixture
def built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is kept from before, and nothing is kept for others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.library.cache_clear()
    yield tmp_path / "sparsity_lab"
    compiler.library.cache_clear()


@compiled
def test_it_is_compiled_once(built_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(1, 1, 5, 8, dtype=torch.float32)
    first = LSSA().attend(*rows, implementation="native")
    (library,) = built_anew.iterdir()
    made = library.stat().st_mtime_ns
    compiler.library.cache_clear()
    assert torch.equal(LSSA().attend(*rows, implementation="native"), first)
    assert [file.stat().st_mtime_ns for file in built_anew.iterdir()] == [made]
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-O0"))  # another library is another file
    compiler.library.cache_clear()
    LSSA().attend(*rows, implementation="native")
    assert len(list(built_anew.iterdir())) == 2


@compiled
def test_what_others_can_change_is_not_run(
    built_anew: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A kept library or its folder; a folder that cannot be written. Then it is compiled for this process alone."""
    rows = tuple(x.detach() for x in random_rows(1, 1, 5, 8, dtype=torch.float32))
    expected = LSSA().attend(*rows, implementation="native")
    (library,) = built_anew.iterdir()
    assert (library.stat().st_mode & 0o777, built_anew.stat().st_mode & 0o777) == (0o700, 0o700)
    library.write_bytes(b"of someone else")
    for path, mode, told in ((library, 0o722, library), (library, 0o770, library), (built_anew, 0o777, built_anew)):
        path.chmod(mode)
        compiler.library.cache_clear()
        caplog.clear()
        assert torch.equal(LSSA().attend(*rows, implementation="native"), expected)
        LSSA().attend(*rows, implementation="native")
        (said,) = caplog.messages
        assert said == f"native.cpp is compiled for this process alone: others than this user can change {told}"
        path.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    compiler.library.cache_clear()
    assert torch.equal(LSSA().attend(*rows, implementation="native"), expected)
    monkeypatch.undo()
    (built_anew.parent / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(built_anew.parent / "a file"))
    compiler.library.cache_clear()
    assert torch.equal(LSSA().attend(*rows, implementation="native"), expected)
    assert library.read_bytes() == b"of someone else"


def test_a_compiler_may_have_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tmp_path / "cached g++"
    found.touch(mode=0o755)
    monkeypatch.setenv("CXX", f"'{found}' g++ -m64")
    assert compiler._compiler() == (str(found), "g++", "-m64")
    monkeypatch.setenv("CXX", "")
    assert compiler._compiler()[1:] in ((), compiler.COMPILER[1:])


def test_a_compiler_that_fails_is_named_in_one_line(built_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(1, 1, 2, 4)
    for command in (("false",), (str(built_anew),)):
        monkeypatch.setattr(compiler, "COMPILER", command)
        monkeypatch.setattr(LSSA, "implementations", ("reference", "native", "tiled"))
        with pytest.raises(SettingError, match=r"^implementation: expected a C\+\+ compiler.*, got .*"):
            LSSA().attend(rows, rows, rows, implementation="native")
