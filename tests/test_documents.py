"""Every command that a document shows is accepted, and every file it points to is there."""

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
from builders import Capture, Patch, unpack_logs

import slimdown
from slimdown.api.measuring import Prompts
from slimdown.commands import verdict
from slimdown.sweep.command_line import compose_runs, read_command_line
from slimdown.utils.errors import ConfigError

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(
    r"^(?: {4}(?:\$ )?|\$ )(?:\w+=\S+ )*(?:python -m )?slimdown[. ](\w+)\b([^#\n]*)", re.MULTILINE
)
NOT_INSTALLED = r"not installed|pip install|there is no sbatch|needs a GPU"
NOT_INSTALLED += (
    r"|^tuned=.* (cannot be reached|is no folder)|^tuned=.*: (there is )?no (such )?folder"
)


def find_commands() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        text = re.sub(r" *\\\n *", " ", document.read_text())
        yield from ((verb, words.strip()) for verb, words in COMMAND.findall(text))


COMMANDS = sorted(set(find_commands()))


def test_the_documents_show_each_command() -> None:
    assert {"run", "compare", "check", "verdict", "scale", "sizes", "merge"} <= {
        v for v, _ in COMMANDS
    }


@pytest.mark.parametrize(("verb", "words"), COMMANDS)
def test_a_command_of_the_documents_is_accepted(
    verb: str, words: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for file in re.findall(r"\w+\.jsonl", words):  # what a reader has
        asks = re.search(r"benchmark(\.\w+\.path)?=\S+\.jsonl", words)
        names = ("question", "answer") if asks else ("instruction", "output")
        answers = ["refuse"] * 20 if "score=refusal" in words else list(map(str, range(20)))
        texts = ((f"What is {answer}?", answer) for answer in answers)
        rows = [dict(zip(names, pair, strict=True)) for pair in texts]
        Path(file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for file in re.findall(r"\S+\.gguf", words) if verb == "run" else ():
        Path(file.partition("=")[2]).write_bytes(b"GGUF")
    Path("mine").mkdir()
    Path("mine/config.json").touch()  # a whole model
    if verb == "run":
        line = read_command_line(shlex.split(words))
        if not line.is_run or "my_task" in words or "..." in words:
            return
        problem = ""
        try:
            compose_runs(line)
        except ConfigError as error:
            problem = str(error)
        assert not problem or re.search(NOT_INSTALLED, problem)
    else:
        with suppress(SystemExit):  # there is no such record, run or folder here
            import_module(f"slimdown.commands.{verb}").main(shlex.split(words))
        assert "usage:" not in capsys.readouterr().err


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_to_files_that_are_there(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (document.parent / target).exists(), target
    assert not re.findall(r"\b(?:TODO|TBD|[A-Z]+_TABLE)\b", text)


def test_the_page_on_python_shows_the_signatures_as_they_are() -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    block = text.partition("## Signatures")[2].partition("```python\n")[2].partition("```")[0]
    shown = re.findall(r"^slimdown\.(\S+?)\((.*?)\)$", block, re.MULTILINE | re.DOTALL)
    prompts = list(Prompts.__annotations__)
    assert len(shown) == 7
    for name, arguments in shown:
        written = re.findall(r"(?:^|, ?|\n *)((?:\*\*)?[a-z_]+)(?==|,|$)", arguments)
        parameters = list(inspect.signature(attrgetter(name)(slimdown)).parameters.values())
        bare = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
        names = [text for text in map(str, bare) if text not in ("self", "**prompts")]
        if name == "measure":
            names += prompts
        assert sorted(written) == sorted(names), name


def test_make_has_the_targets_that_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)\b", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_commands_fit_into_the_box_of_a_page() -> None:
    """A page of 1300 pixels has room for 106 characters."""
    for document in DOCUMENTS[1:]:
        lines = re.findall(r"^ {4}.*|(?<=```python\n)(?:.*\n)*?(?=```)", document.read_text(), re.M)
        long = [line for text in lines for line in text.splitlines() if len(line) > 110]
        assert not [line for line in long if re.match(r" *(slimdown|lm_eval|python)\b", line)], long


def test_the_readme_is_short_and_begins_with_the_installation() -> None:
    text = (ROOT / "README.md").read_text()
    lines = text.splitlines()
    assert len(text.split()) <= 900
    assert not [line for line in lines if line.startswith("    ") and len(line) > 84]
    first = next(line for line in lines if line.startswith("    "))
    words = first.split()
    assert words[:2] == ["pip", "install"]
    assert "slimdown[train]" in words[2]
    assert any(word.startswith("git+https://") for word in words)


def find_outputs() -> Iterator[tuple[str, str, list[str]]]:
    """Yield the page, the words and the lines that follow each `$ slimdown verdict`."""
    for document in DOCUMENTS:
        blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", document.read_text(), re.MULTILINE)
        for block in blocks:
            for shown in re.split(r"^ {4}\$ ", block, flags=re.MULTILINE)[1:]:
                command, *lines = [line.strip() for line in shown.splitlines() if line.strip()]
                if command.startswith("slimdown verdict "):
                    yield document.stem, command.removeprefix("slimdown verdict "), lines


OUTPUTS = list(find_outputs())


@pytest.mark.parametrize(
    ("words", "lines"), [shown for _, *shown in OUTPUTS], ids=[page for page, *_ in OUTPUTS]
)
def test_a_page_shows_what_a_verdict_prints(
    words: str, lines: list[str], tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    unpack_logs(tmp_path / "logs")
    tables = [file.parent for file in (ROOT / "docs/examples/atlas").glob(f"*/{words.split()[0]}")]
    monkeypatch.chdir(tables[0] if tables else tmp_path)
    verdict.main(shlex.split(words))
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in printed if line in lines] == lines


def test_the_pages_show_what_verdicts_print() -> None:
    shown = [(page, len(lines)) for page, _, lines in OUTPUTS]
    assert shown == [
        *(("README", 10), ("ci", 1), ("next", 1), ("next", 1), ("next", 1)),
        *(("quickstart", 2), ("report", 7)),
    ]
