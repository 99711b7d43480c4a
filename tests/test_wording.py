"""Words: American spelling, in code and prose alike."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXTS = ("*.py", "*.md", "*.toml", "*.css", "*.html", "*.cff")

BRITISH = re.compile(
    r"colour|neighbour|behaviour|favour|honour|labell(ed|ing)|modell(ed|ing)|cancelled|catalogue|licence|\bcentre|"
    r"(normal|initial|summar|optim|recogn|serial|general|organ|minim|maxim|vector|random|synchron|penal|regular|"
    r"parametr|categor|material|util|visual|standard|local)is(e|ed|es|er|ers|ing|ation)(?![a-z])",
    re.IGNORECASE,
)


def texts() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *TEXTS], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    return [file for file in files if file != Path(__file__)]


@pytest.mark.parametrize(
    "word", ["colour", "Normalised", "optimiser", "initialise", "randomised", "centre", "labelled"]
)
def test_british_words_are_seen(word: str) -> None:
    assert BRITISH.search(f"a {word} b")
    assert not BRITISH.search("color Normalized optimizer promise raise surprise exercise noise precise otherwise")


def test_spelling_is_american() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match.group()}"
        for file in texts()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for match in BRITISH.finditer(line)
    ]
    assert found == []
