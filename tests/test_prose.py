"""Prose that is understood at one reading: no sentence over 30 words, and no phrase that reads as translated."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 30
"""Words in a sentence. A code span or a link is one word, and so is a symbol with its index."""

PHRASES = re.compile(
    r"how far (it|they|a model) carr|always beside|what a predictor reaches|that sees no token\b|under which also|"
    r"IDs meet|tell from your own files|is to be expected on|expected a file that can be read|to do without them|"
    r"own affair|whoever|\bthe like\b|as they come\b|shows itself|\bbeside\b|"
    r"carr(y|ies)( \w+)? furthe|foretold|of which a file",
    re.IGNORECASE,
)
"""Phrases that were here once, and their kin."""

FOLDERS = (".", "docs", "docs/how_to", "experiments/*", "benchmarks")
PAGES = [page for folder in FOLDERS for page in sorted(ROOT.glob(f"{folder}/*.md")) if page.name != "result.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def sentences(text: str) -> list[str]:
    """The sentences of Markdown or plain text. Headings, bullets and table cells are sentences of their own."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"^( *)(```|~~~).*?^\1\2$", "\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "\n", text, flags=re.DOTALL)
    text = re.sub(r"(?<=\n\n)(    .*\n)+", "\n", text)  # formulas and output are indented
    text = re.sub(r"(\{[\w:]+\})?(`+)[^`]+\2", "CODE", text)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[[^\]]*\]\([^)]*\)", "LINK", text)
    parts = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.|#+|>) )|\n(?=\s*\|)", text):
        parts += block.split("|") if block.lstrip().startswith("|") else [block]
    ended = (re.split(r"(?<=[.!?])[\"”')*_]*\s+", " ".join(part.split())) for part in parts)
    return [sentence for found in ended for sentence in found if sentence]


def faults(text: str) -> list[str]:
    """Sentences that are too long, and phrases that are not said any more."""
    found = sentences(text)
    long = [one for one in found if sum(bool(re.search(r"\w", word)) for word in one.split()) > LONGEST]
    return long + [match.group() for one in found for match in PHRASES.finditer(one)]


def strings(source: str) -> list[str]:
    """Text that code holds: its string constants with a blank in them, docstrings included."""
    constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return [value for value in constants if isinstance(value, str) and " " in value]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page: Path) -> None:
    assert faults(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert [fault for text in texts for fault in faults(text)] == []


@pytest.mark.parametrize("module", sorted((ROOT / "docs" / "pages").glob("*.py")), ids=lambda module: module.stem)
def test_generated_pages(module: Path) -> None:
    """The words that code puts into the pages which it writes."""
    assert [fault for text in strings(module.read_text(encoding="utf-8")) for fault in faults(text)] == []


def package_texts(source: str) -> list[str]:
    """Docstrings, help and messages of a module; examples and tables in them are no sentences."""
    texts = [inspect.cleandoc(text).replace("``", "`") for text in strings(source)]
    texts = [re.sub(r"^>>> .*?(?=\n\n|\Z)", "", text, flags=re.DOTALL | re.MULTILINE) for text in texts]
    return [re.sub(r"^=+ +=+$.*^=+ +=+$", "", text, flags=re.DOTALL | re.MULTILINE) for text in texts]


MODULES = sorted((ROOT / "sparsity_lab").rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT / "sparsity_lab")))
def test_package(module: Path) -> None:
    """Docstrings, help texts and error messages."""
    found = [fault for text in package_texts(module.read_text(encoding="utf-8")) for fault in faults(text)]
    assert found == []


def test_examples_and_tables_are_no_sentences() -> None:
    assert package_texts(f'"""Some words.\n\n>>> f(1)\n{THIRTY} {THIRTY}\n\nMore words."""') == [
        "Some words.\n\n\n\nMore words."
    ]
    assert faults(package_texts(f'def f():\n    """One {THIRTY}."""')[0]) == [f"One {THIRTY}."]


THIRTY = " ".join(["word"] * 30)


def test_long_sentences_are_seen() -> None:
    assert faults(f"{THIRTY}. {THIRTY}? “{THIRTY}.” {THIRTY}") == []
    assert faults(f"Short. One {THIRTY}. Short.") == [f"One {THIRTY}."]
    assert faults(f"- {THIRTY}\n- One\n  {THIRTY}\n\n{THIRTY}") == [f"- One {THIRTY}"]
    assert faults(f"| {THIRTY} | {THIRTY} |\n|---|---|\n| and {THIRTY} | a |") == [f"and {THIRTY}"]


def test_code_and_links_are_a_word_each() -> None:
    rest = " ".join(["word"] * 28)
    assert faults(f"`some code` [a long link](to/a.md) {rest}") == []
    assert len(faults(f"`some code` [a long link](to/a.md) word {rest}")) == 1
    assert faults(f"Text.\n\n```python\n{THIRTY} {THIRTY}\n```\n\n    {THIRTY} {THIRTY}\n\nText.") == []
    assert faults(f"Text.\n\n```python\n{THIRTY}\n```\n\nOne {THIRTY}.") == [f"One {THIRTY}."]


@pytest.mark.parametrize(
    "text",
    [
        "analysis shows how far they carry, always beside chance",
        "what a predictor reaches that sees no token",
        "under which also IDs meet that are further apart",
        "Tell from your own files whether length generalization is to be expected on them",
        "expected a file that can be read, got 'No such file or directory'",
        "Ignored() to do without them, got None",
        "Its name is its own affair.",
        "Without positions the same task carries further than with RoPE.",
        "It is foretold.",
        "A run of which a file has another size.",
    ],
)
def test_phrases_are_seen(text: str) -> None:
    assert faults(text)
    assert not faults("models extrapolate, next to chance; besides, they are likely to meet what they expected")


def test_text_in_code_is_seen() -> None:
    assert strings('def f():\n    """Some words."""\n    return f"and {1} more " "words", "one"') == [
        "Some words.",
        "and ",
        " more words",
    ]
