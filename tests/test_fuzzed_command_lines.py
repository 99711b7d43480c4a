"""Command lines and files that nobody would write: one line says what is wrong, and nothing takes long."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsity_lab import cli
from sparsity_lab.settings import canonical_json, families, kinds
from sparsity_lab.training import RunConfig

LINES, PROCESSES = 2000, 30
MOST_SECONDS = 10.0
"""Of the processor, for one line."""
NUMBERS = (
    *("0", "1", "2", "3", "-1", "0.5", "1e-300", "1e300", "-1e300", "nan", "inf", "-0.0", "True", "None", "''"),
    *(str(number) for number in (2**20, 2**22, 2**31, 2**32, 10**12, 2**63 - 1, 2**63, -(2**63), 10**30)),
    *("9" * 5000, "1e999", "٣", "²", "Ⅷ", "１２", "0x10", "1_000", "(1, 2)", "[]", "{}", "b'x'", "1j", "--1"),
)
WRONG = (
    *("-1", "0", "1e300", "nan", "2147483649", "9" * 30, "9" * 5000, "²", "0x10"),
    *("", " ", "\0", "\udc80", "\x1b[2J", "-"),
)
"""Of options; a number that is right but large could take long."""
RIGHT = {"--length": "9", "--count": "2", "--seed": "１２"}
RIGHT |= {"--stream": "é\u202e", "--title": "\x1b[2J", "--size": "smoke"}
LETTERS = "()[]{}=,.'\"\\#:;-+_ \n\t\0\x07\x1b\x80\u202e\u2028\ud800\udc80\ufeff٣²é漢😀aZ09"
TEXTS = ("", " ", "\0", "\udc80", "\ud800", "\x1b[2J", "-", "--", "-h=1", "=", "a" * 10_000, "(" * 500, "[[" * 2000)
TINY = (
    *("--training", "Training(steps=1, batch_size=2, curriculum=FixedLength(length=8))"),
    *("--evaluation", "Evaluation(lengths=[8], sequences=2)"),
)
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _is_ours(cls: type) -> bool:
    """Other tests in this process register classes of their own, wrong ones too."""
    return cls.__module__.startswith("sparsity_lab.")


class Lines:
    """Command lines, the same in each run.

    They are made of settings that are right, in which numbers and letters are replaced, of options with values that
    fit and others, and of files with such texts in them.
    """

    def __init__(self, folder: Path) -> None:
        self.random = random.Random(0)
        self.folder = folder
        every = {
            family: [str(one) for cls in kinds(family).values() if _is_ours(cls) for one in cls.examples()]
            for family in families()
        }
        self.examples = {family: examples for family, examples in every.items() if examples}
        (folder / "empty").mkdir()
        (folder / "bytes").write_bytes(self.random.randbytes(500))
        self.paths = [str(folder / name) for name in ("empty", "bytes", "missing", "bytes/below")]
        self.paths += ["/dev/null", "/proc/self/mem", "~nobody", "a" * 300]

    def __iter__(self) -> Iterator[list[str]]:
        makers: list[Callable[[], list[str]]] = [
            self.sample,
            self.sample,
            self.certify,
            self.train,
            self.run_file,
            self.sweep,
            self.report,
            self.others,
            self.scrambled,
        ]
        while True:
            yield self.random.choice(makers)()

    def setting(self, family: str) -> str:
        """A setting in short form, mostly with one or two mistakes."""
        text = self.random.choice(self.examples[family])
        for _ in range(self.random.choice((0, 0, 0, 1, 1, 2))):
            text = self.random.choice((self.with_number, self.with_number, self.with_letter, self.nested))(text)
        return text

    def with_number(self, text: str) -> str:
        found = list(re.finditer(r"\d+(\.\d+)?", text))
        if not found:
            field = self.random.choice(("k", "vocab_size", "num_layers", "length", "noise", "width", "seed"))
            return text.replace("()", f"({field}={self.random.choice(NUMBERS)})", 1)
        place = self.random.choice(found)
        return text[: place.start()] + self.random.choice(NUMBERS) + text[place.end() :]

    def with_letter(self, text: str) -> str:
        at = self.random.randrange(len(text) + 1)
        return text[:at] + self.random.choice(LETTERS) + text[at + self.random.randrange(3) :]

    def nested(self, text: str) -> str:
        other = self.random.choice(self.examples[self.random.choice(list(self.examples))])
        field = self.random.choice(("tasks", "locality", "rule", "kernel", "position", "curriculum", "task"))
        return text[:-1] + f"{', ' * (not text.endswith('()'))}{field}={other})" if text.endswith(")") else other

    def options(self, *names: str) -> list[str]:
        """Some of these options, half of them with values that fit."""
        chosen = [name for name in names if self.random.random() < 0.1]
        return [part for name in chosen for part in self.option(name)]

    def option(self, name: str) -> list[str]:
        if name == "--json" or self.random.random() < 0.3:
            return [name]
        if name in RIGHT and self.random.random() < 0.5:
            return self.pair(name, RIGHT[name])
        return self.pair(name, self.random.choice(WRONG))

    def pair(self, name: str, value: str) -> list[str]:
        return [f"{name}={value}"] if self.random.random() < 0.5 else [name, value]

    def sample(self) -> list[str]:
        return ["sample", self.setting("task"), *self.options("--length", "--count", "--seed", "--stream", "--json")]

    def certify(self) -> list[str]:
        few = self.pair("--sequences", self.random.choice(WRONG))
        return ["certify", self.setting("task"), *few, *self.options("--lengths", "--seed", "--effort", "--workers")]

    def train(self) -> list[str]:
        line = ["train", "--task", self.random.choice(("Planted(k=1)", self.setting("task")))]
        line += ["--model", f"Decoder(num_layers=1, d_model=16, num_heads=2, {self.part()})"]
        return [*line, *TINY, "--out", str(self.folder / "runs"), *self.options("--seed", "--json")]

    def part(self) -> str:
        family = self.random.choice(("kernel", "position", "index_sampling", "coupling"))
        return f"{family}={self.setting(family)}"

    def run_file(self) -> list[str]:
        """A run in a file, with one of its values replaced."""
        data = json.loads(canonical_json(self.random.choice(RunConfig.examples())))
        place = data
        while isinstance(place, dict) and place:
            key = self.random.choice(list(place))
            if not isinstance(place[key], dict) or self.random.random() < 0.3:
                place[key] = self.random.choice((self.value(), self.text()))
                break
            place = place[key]
        # With what no reader may make larger than it is.
        data["training"] = "Training(steps=1)" if self.random.random() < 0.5 else data["training"]
        text = json.dumps(data)
        text = self.with_letter(text) if self.random.random() < 0.3 else text
        file = self.folder / "run.json"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        return ["train", str(file), "--out", str(self.folder / "bytes"), *self.options("--seed")]

    def value(self) -> Any:
        number = self.random.choice((0, -1, 2**31, 10**12, 2**63, 10**30, 1e300, float("nan"), None, True, [], {}))
        return self.random.choice((number, [number], {"kind": number}, {"kind": "Planted", "k": number}))

    def text(self) -> str:
        return self.random.choice((*TEXTS, self.setting(self.random.choice(list(self.examples)))))

    def sweep(self) -> list[str]:
        axis = self.random.choice(("task.k", "task", "seed", "model.d_model", "nothing", "training.steps", "\\u0000"))
        name = self.random.choice(("x", "../up", "/abs", "\\u0000", "\\u001b[2J", "a/b"))
        values = ", ".join(self.random.choice((*NUMBERS, "'Planted()'")) for _ in range(2))
        file = self.folder / "sweep.toml"
        text = f'name = "{name}"\n[base]\ntask = {json.dumps(self.setting("task"))}\n[grid]\n"{axis}" = [{values}]\n'
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        # Nothing is run, for the store is a file.
        out = ["--out", str(self.folder / "bytes")]
        return ["sweep", str(file), *out, *self.options("--workers", "--engine", "--size", "--status")]

    def report(self) -> list[str]:
        path = self.random.choice(self.paths)
        line = self.random.choice((["report", path], ["sweep", "--status", path], ["report", path, "--check"]))
        return [*line, *self.options("--title", "--picture", "--study", "--size")]

    def others(self) -> list[str]:
        path = self.random.choice(self.paths)
        line = self.random.choice(
            (
                ["diagnose", path, "--steps", "1"],
                ["decide", path, "--budget", self.random.choice(WRONG)],
                ["list", self.random.choice((*TEXTS, *self.examples))],
                ["bench", self.random.choice(TEXTS)],
                ["demo", "--workers", self.random.choice(WRONG)],
                ["swap", path, path, "--bytes", "--lengths", self.random.choice(WRONG)],
            )
        )
        return [*line, *self.options("--seed", "--import")]

    def scrambled(self) -> list[str]:
        """A right line with a letter changed somewhere."""
        line = ["sample", "Planted(k=2)", "--length", "8", "--count", "1", "--seed", "1"]
        at = self.random.randrange(len(line))
        line[at] = self.with_letter(line[at])
        return line


def wrong_with(code: object, out: str, err: str, line: list[str]) -> str | None:
    """What is wrong with the answer to a line."""
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if "Traceback" in out + err:
        return "a traceback"
    if code == 2 and (not err.startswith("sparsity-lab: ") or err.count("\n") != 1):
        return f"not one line: {err[:500]!r}"
    # A page of help may be asked for, and is in color.
    return "steers the terminal" if STEERING.search(out + err) and not {"-h", "--help"} & set(line) else None


def stopped(number: int, frame: object) -> None:
    raise TimeoutError


@pytest.mark.slow
def test_two_thousand_lines_in_one_process(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, stopped)
    found = []
    codes = {0: 0, 1: 0, 2: 0}
    for _, line in zip(range(LINES), Lines(tmp_path), strict=False):
        begun = time.process_time()
        signal.alarm(120)
        try:
            code: object = cli.run(line)
        except SystemExit as stop:  # help
            code = stop.code or 0
        except Exception as error:
            code = repr(error)
        finally:
            signal.alarm(0)
        told = capsys.readouterr()
        wrong = wrong_with(code, told.out, told.err, line)
        seconds = time.process_time() - begun
        if wrong or seconds > MOST_SECONDS:
            found.append((wrong or f"{seconds:.0f} s", [part[:300] for part in line]))
        else:
            codes[code] += 1  # type: ignore[index]
    signal.signal(signal.SIGALRM, before)
    assert found == []
    # They are of all kinds, and not all refused at the first letter.
    assert codes[0] > LINES / 10
    assert codes[2] > LINES / 4


@pytest.mark.slow
def test_thirty_lines_as_processes(tmp_path: Path) -> None:
    """With arguments as the system passes them: bytes that are no text, and none with a NUL, which it cannot pass."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    lines = [["sample", "Planted", "--stream", "\udc80"], ["sample", "Planted(k=1)", "--length", "8"]]
    # Text that no system passes is for the other test.
    usable = (line for line in Lines(tmp_path) if "\0" not in "".join(line) and "\ud800" not in "".join(line))
    lines += [line for _, line in zip(range(PROCESSES - len(lines)), usable, strict=False)]
    found = []
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-m", "sparsity_lab.cli", *(os.fsencode(part) for part in line)],
            capture_output=True,
            cwd=tmp_path,
            env=environment,
            timeout=120,
            check=False,
        )
        out, err = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
        if wrong := wrong_with(done.returncode, out, err, line):
            found.append((wrong, shlex.join(line)[:500]))
    assert found == []
