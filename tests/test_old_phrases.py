"""Phrases that readers had to read twice, and what slimdown says instead.

It is a reminder for whoever writes a message, a help text or a page, and no measure of plain words.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPLACED = {
    "a byte of text": "per byte of text",
    "bits a byte": "bits per byte",
    "nats a token": "nats per token",
    "would tell": "would be enough",
    "as it looks": "as large as measured",
    "if it stays so": "if the change stays as large as measured",
    "cannot tell:": "are too few:",
    "is not shown": "is not significant",
    "is shown to be": "is proven to be",
    "stands in the record": "is in the record",
    "held back": "held out",
    "kept back": "held out",
    "open half": "the questions that are not held out",
    "the distance": "the KL penalty",
    "was asked otherwise": "was asked differently",
    "holds that, too": "includes that",
    "jobs alike": "for each of 3 runs",
    "not handed on": "not passed on",
    "against forgetting:": "how to forget less:",
    "how the base is held": "precision of the base weights",
    "or more; it may lose": "its budget is",
    "at most; it may lose": "its budget is",
    "rows of a forward": "rows per forward pass",
    "as a person reads": "the labels, written before the rules were run",
}
"""By phrase: what is said instead."""

FOLDERS = (ROOT / "slimdown", ROOT / "conf")
PAGES: tuple[Path, ...] = ()
"""Add README.md, docs/*.md and docs/studies/*.md here, once they are rewritten."""

RECORDED = {"bits a byte"}
"""Names in records, which stay as they are so that old records can be read."""


def read_messages(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a module, with their lines: no comments and no docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    statements = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    for node in constants:
        is_message = isinstance(node.value, str) and node not in statements
        if is_message and node.value not in RECORDED:
            yield node.lineno, str(node.value)


def read_texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield what a file says, with line numbers."""
    if file.suffix == ".py":
        yield from read_messages(file)
    else:
        yield from enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)


def find_old_phrases(file: Path) -> list[str]:
    """Find the old phrases of a file, each with its line and its replacement."""
    return [
        f"{file.name}, line {line}: {phrase!r}; say {replacement!r}"
        for line, text in read_texts(file)
        for phrase, replacement in REPLACED.items()
        if re.search(rf"\b{re.escape(phrase)}", " ".join(text.split()), re.IGNORECASE)
    ]


def list_files() -> list[Path]:
    files = [file for folder in FOLDERS for file in folder.rglob("*")]
    return [file for file in files if file.suffix in (".py", ".j2", ".yaml")] + [*PAGES]


def test_nothing_is_said_in_the_old_phrases() -> None:
    files = list_files()
    assert len(files) > 200
    assert [found for file in files for found in find_old_phrases(file)] == []


@pytest.mark.parametrize("suffix", ["py", "md"])
def test_an_old_phrase_is_found(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"page.{suffix}"
    file.write_text('text = f"{1} bits a byte and no more"\n"""Bits a byte."""\n')
    found = find_old_phrases(file)
    assert len(found) == (1 if suffix == "py" else 2)
    assert "bits per byte" in found[0]


def test_the_list_stays_short() -> None:
    assert len(REPLACED) <= 25
