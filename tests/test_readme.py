"""Every command that a document shows is accepted, and every file it points to is there."""

import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from slimdown import check, compare, merge, status, verdict
from slimdown.config.commandline import check_command_line, composed_runs
from slimdown.utils.errors import ConfigError

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = r"^ {4}(?:\$ )?python -m slimdown\.%s\b([^#\n]*)"


def commands(module: str) -> list[str]:
    pattern = re.compile(COMMAND % module, re.MULTILINE)
    texts = (
        re.sub(r" *\\\n *", " ", doc.read_text()) for doc in DOCUMENTS
    )  # one command on several lines is one
    return sorted({found.strip() for text in texts for found in pattern.findall(text)})


@pytest.mark.parametrize(
    ("module", "n"),
    [
        ("run", 5),
        ("compare", 5),
        ("check", 1),
        ("verdict", 1),
        ("sizes", 1),
        ("merge", 1),
        ("status", 1),
    ],
)
def test_the_documents_show_commands(module: str, n: int) -> None:
    assert len(commands(module)) >= n


@pytest.mark.filterwarnings(
    r"ignore:\s*'hydra/launcher:UserWarning"
)  # as job.py does, with the reason
@pytest.mark.parametrize("command", commands("run"))
def test_a_command_of_the_documents_is_accepted(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"question": f"What is {n} + {n}?", "answer": str(2 * n), "text": f"{n} + {n} = {2 * n}"}
        for n in range(3)
    ]
    for file in re.findall(r"\w+\.jsonl", command):  # what a reader has
        (tmp_path / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    for asks, is_there, refusal in (
        ("unsloth", find_spec("unsloth"), r"train\.engine=unsloth: Unsloth is not installed.*\Z"),
        (
            "launcher=ray",
            find_spec("hydra_plugins.hydra_ray_launcher"),
            r"hydra/launcher=ray needs a plugin of Hydra; pip install 'slimdown\[ray\]'\Z",
        ),
        (
            "launcher=submitit_slurm",
            shutil.which("sbatch"),
            r"hydra/launcher=submitit_slurm: there is no sbatch .*\Z",
        ),
    ):
        if asks in command and not is_there:
            with pytest.raises(ConfigError, match=rf"^{refusal}"):
                check_command_line(shlex.split(command))
            return
    check_command_line(shlex.split(command))


@pytest.mark.parametrize("command", commands("compare"))
def test_a_comparison_of_the_documents_is_accepted(command: str) -> None:
    compare.arguments(shlex.split(command))


@pytest.mark.parametrize("command", commands("check"))
def test_a_check_of_the_documents_is_accepted(command: str) -> None:
    check.arguments(shlex.split(command))


@pytest.mark.parametrize("command", commands("status"))
def test_a_status_of_the_documents_is_accepted(command: str) -> None:
    status.arguments(shlex.split(command))


@pytest.mark.parametrize("command", commands("verdict"))
def test_a_verdict_of_the_documents_is_accepted(command: str) -> None:
    verdict.arguments(shlex.split(command))


@pytest.mark.parametrize("command", commands("sizes"))
def test_sizes_of_the_documents_are_told(command: str) -> None:
    assert len(composed_runs(shlex.split(command))) >= 1


@pytest.mark.parametrize("command", commands("merge"))
def test_a_merge_of_the_documents_is_accepted(command: str) -> None:
    merge.arguments(shlex.split(command))


def test_the_readme_is_read_at_once() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_nothing_is_left_to_fill_in(document: Path) -> None:
    assert not re.findall(
        r"\b(?:TODO|TBD|[A-Z]{3,}_(?:SECONDS|TABLE|NUMBER))\b", document.read_text()
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_to_files_that_are_there(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_make_has_the_targets_that_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)\b", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
