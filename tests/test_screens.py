"""What a user reads: every screen of the console, the help, and the text of each page.

Each screen is kept in `tests/screens/NAME.txt`. A change of words is reviewed there, in the diff.
`make screens` writes the files anew.
"""

import difflib
import os
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from builders import Patch, unpack_logs
from commands_and_runs import call_verb
from record_builders import unpack_record

SCREENS = Path(__file__).with_name("screens")
IS_WRITING = "WRITE_SCREENS" in os.environ  # see `make screens`
LORA, SWEPT_1, SWEPT_2, TUNED = "4ef5f252", "5cab898d", "1de5e317", "ffd045b0"
"""Runs of the stored record."""

COMMANDS: dict[str, Sequence[str]] = {
    "help": ["run", "--help"],
    "help_of_compare": ["compare", "--help"],
    "help_of_check": ["check", "--help"],
    "help_of_verdict": ["verdict", "--help"],
    "plan": ["run", "tracking.uri=sqlite:///new/mlflow.db", "model.dtype=float32", "--plan"],
    "status": ["status"],
    "status_of_a_run": ["status", LORA],
    "compare": ["compare"],
    "compare_all": ["compare", "--all"],
    "compare_by": ["compare", "--by", "lora.r"],
    "compare_paired": ["compare", "--paired", SWEPT_1, SWEPT_2],
    "compare_chain": ["compare", "--chain", LORA],
    "findings": ["compare", LORA],
    "findings_all": ["compare", LORA, "--all"],
    "check": ["check", LORA],
    "check_passed": ["check", LORA, "--max-loss", "0.9"],
    "check_overall": ["check", LORA, "--overall"],
    "verdict": ["verdict", "base", "tuned"],
    "verdict_all": ["verdict", "base", "tuned", "--all"],
    "verdict_gate": ["verdict", "base", "tuned", "--max-loss", "0.02"],
    "verdict_markdown": ["verdict", "base", "tuned", "--max-loss", "0.02", "--format", "markdown"],
    "verdict_same": ["verdict", "base", "base"],
    "delete": ["delete", LORA],
    "export": ["export", LORA, "adapter_of_lora"],
    "sizes": ["sizes"],
}
"""By file: a command and its arguments, in a folder with a record and two logs."""

PAGES: dict[str, Sequence[str]] = {
    "page_of_findings": ["compare", LORA],
    "page_of_compare": ["compare"],
    "page_of_compare_paired": ["compare", "--paired", SWEPT_1, SWEPT_2],
    "page_of_compare_chain": ["compare", "--chain", LORA],
    "page_of_verdict": ["verdict", "base", "tuned", "--max-loss", "0.02"],
}
"""By file: commands that write a page with `-o`, whose text is the screen."""

MISTAKES: dict[str, Sequence[str]] = {
    "a setting": ["run", "lora.rank=3"],
    "two settings": ["run", "lora.r=0", "train.learning_rte=1"],
    "a model": ["run", "model=lama32"],
    "a task": ["run", "benchmark=gsm9k"],
    "a file": ["run", "dataset=rows.jsonl"],
    "a run": ["check", "0123"],
    "a budget": ["check", LORA, "--max-loss", "pocket_maths=0.02"],
    "logs": ["verdict", "base", "nothing"],
    "a verb": ["run", "tuned=nowhere"],
}
"""By kind: commands with a mistake; together they are one screen."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stored record, and the logs of lm-evaluation-harness."""
    folder = tmp_path_factory.mktemp("world")
    unpack_record(folder)
    base, tuned = unpack_logs(folder)
    assert (Path(base).name, Path(tuned).name) == ("base", "tuned")
    return folder


@pytest.fixture(autouse=True)
def fixed_terminal(monkeypatch: Patch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


class VisibleText(HTMLParser):
    """The text of a page, a line for each block; scripts, styles and drawings have none."""

    HIDDEN = ("script", "style", "svg", "head")
    BLOCKS = re.compile("p|div|li|tr|h[1-5]|d[td]|table|section|details|summary|figcaption|pre")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden_depth = 0

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self._hidden_depth += tag in self.HIDDEN
        if self.BLOCKS.fullmatch(tag):
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" | ")

    def handle_endtag(self, tag: str) -> None:
        self._hidden_depth -= tag in self.HIDDEN
        if self.BLOCKS.fullmatch(tag):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden_depth:
            self.parts.append(re.sub(r"\s+", " ", data))


def read_page(file: Path) -> str:
    parser = VisibleText()
    parser.feed(file.read_text(encoding="utf-8"))
    lines = [" ".join(line.split()) for line in "".join(parser.parts).splitlines()]
    return "\n".join(line for line in lines if line.strip(" |"))


def make_comparable(text: str, folder: Path) -> str:
    """Take out what differs between machines and times: places, dates, durations, memory."""
    text = text.replace(str(folder), "FOLDER")
    date = r"\d{4}-\d\d-\d\d(?!_)( \d\d:\d\d(:\d\d)?)?"  # what is followed by _ is a name
    text = re.sub(date, lambda m: "DATE".ljust(len(m[0])), text)
    text = re.sub(r"(?m)^reading .*: .*\n", "", text)  # progress, where it takes long
    text = re.sub(r"[\d.]+ [KMG]iB", "SIZE", text)
    text = re.sub(r"[\d.,]+ (?:ms|s|min|h|seconds?|minutes?|tokens/s)\b", "TIME", text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines()).strip("\n") + "\n"


def hold_to_screen(name: str, text: str, folder: Path) -> None:
    """Compare a text with the one that was reviewed, or write it."""
    file, text = SCREENS / f"{name}.txt", make_comparable(text, folder)
    if IS_WRITING:
        file.write_text(text, encoding="utf-8")
        return
    reviewed = file.read_text(encoding="utf-8") if file.exists() else ""
    changes = difflib.unified_diff(
        reviewed.splitlines(), text.splitlines(), f"{file.name}, reviewed", "now", lineterm=""
    )
    assert text == reviewed, "\n".join([*changes, "`make screens` writes the files anew"])


def show_command(folder: Path, arguments: Sequence[str]) -> str:
    """What a command shows: its line, both streams, and the exit code if it isn't 0."""
    verb, *rest = arguments
    done = call_verb(folder, verb, *rest)
    parts = [f"$ slimdown {' '.join(arguments)}\n", done.stdout, done.stderr]
    if done.returncode:
        parts.append(f"(exit code {done.returncode})\n")
    return "".join(parts)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_screen_is_as_it_was_reviewed(name: str, world: Path) -> None:
    hold_to_screen(name, show_command(world, COMMANDS[name]), world)


@pytest.mark.parametrize("name", PAGES)
def test_the_text_of_a_page_is_as_it_was_reviewed(name: str, world: Path) -> None:
    verb, *rest = PAGES[name]
    done = call_verb(world, verb, *rest, "-o", f"{name}.html")
    assert done.returncode in (0, 1), done.stderr
    hold_to_screen(name, read_page(world / f"{name}.html"), world)


def test_the_answers_to_mistakes_are_as_they_were_reviewed(world: Path) -> None:
    shown = [show_command(world, arguments) for arguments in MISTAKES.values()]
    hold_to_screen("mistakes", "\n".join(shown), world)


def test_every_kept_screen_is_still_made() -> None:
    names = {*COMMANDS, *PAGES, "mistakes"}
    assert {file.stem for file in SCREENS.glob("*.txt")} == names
