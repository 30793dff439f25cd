"""The notebooks in docs/examples are run: trl.ipynb as it stands, t4.ipynb with a small model.

`make notebook` keeps what trl.ipynb then shows. t4.ipynb needs the hub.
"""

import json
import os
import re
import shlex
import sys
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from record_builders import Patch

from slimdown.sweep.command_line import compose_runs, read_command_line

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "examples" / "trl.ipynb"
T4_NOTEBOOK = NOTEBOOK.with_name("t4.ipynb")
SHORT = {
    '"pocket_math", ': "",  # its answers are the longest
    "every=4, questions=32, limit=100": "every=2, questions=4, limit=8",
    "limit=100": "limit=40",
    "max_steps = 10": "max_steps = 3",
}
SMALL_T4 = """
REPOSITORY = ""
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
N_ROWS, N_HELD_OUT, LIMIT, MAX_GEN_TOKS = 8, 2, 10, 12
SCALES = "0.5,1"
"""


def read_short_notebook() -> Any:
    """Read the notebook with fewer questions and fewer steps at its end."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for long, short in SHORT.items():
                cell.source = cell.source.replace(long, short)
    return notebook


def executed(folder: Path, notebook: Any) -> Any:
    """Run a notebook in a folder; leave out stderr, which names places of the machine."""
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=place, coalesce_streams=True).execute(
        env={**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    )
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def shown(notebook: Any) -> dict[str, Any]:
    """What each cell's last line shows, by that line."""
    return {
        cell.source.splitlines()[-1]: output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in ("execute_result", "display_data")
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("notebook")
    return executed(folder, read_short_notebook()), folder


def test_it_shows_and_saves_what_was_found(run: tuple[Any, Path]) -> None:
    notebook, folder = run
    last = shown(notebook)
    counts = [len(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == [0] * 3 + [1] * 6
    lines = notebook.cells[-1].outputs[0].text.splitlines()
    moments = ["step 0", "step 0", "step 2/3", "end"]
    assert [line.partition("  ")[0].strip() for line in lines if line[0] != "{"] == moments
    assert '<span class="badge improved">' in last["findings"]["text/html"]
    assert '<span class="badge forgotten">' in last["findings"]["text/html"]
    assert "\x1b" not in last["findings"]["text/plain"]  # no colours, for which a notebook asks
    assert (folder / "page.html").read_text().count("pocket_cs") >= 5


def test_what_it_shows_is_kept_and_was_shown_by_what_stands_there(run: tuple[Any, Path]) -> None:
    kept, short = nbformat.read(NOTEBOOK, as_version=4), read_short_notebook()
    assert [cell.source for cell in short.cells] == [cell.source for cell in run[0].cells]
    assert shown(kept).keys() == shown(run[0]).keys()
    assert [cell.get("execution_count") for cell in kept.cells] == [
        cell.get("execution_count") for cell in run[0].cells
    ]
    text = NOTEBOOK.read_text()
    assert "site-packages" not in text
    assert str(Path.home()) not in text


def read_t4_notebook() -> Any:
    """Read the notebook with the values of a test behind those of its first cell."""
    notebook = nbformat.read(T4_NOTEBOOK, as_version=4)
    [first] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    small = nbformat.v4.new_code_cell(SMALL_T4)
    notebook.cells.insert(notebook.cells.index(first) + 1, small)
    return notebook


def test_the_t4_notebook_says_of_each_cell_how_long_it_takes() -> None:
    notebook = nbformat.read(T4_NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for before, cell in pairwise(notebook.cells):
        if cell.cell_type == "code":
            assert re.search(r"T4: .*\.", before.source), cell.source
            assert not cell.outputs  # nobody ran it on one yet


def test_the_t4_notebook_finds_where_it_was_opened_or_asks(monkeypatch: Patch) -> None:
    [cell] = [c.source for c in read_t4_notebook().cells if "def find_repository" in c.source]
    values: dict[str, Any] = {"REPOSITORY": ""}
    exec(re.sub(r"^( *)[!%].*", r"\1pass", cell, flags=re.MULTILINE), values)
    monkeypatch.delenv("COLAB_JUPYTER_PORT", raising=False)
    monkeypatch.setattr("builtins.input", lambda question: " https://example.org/x ")
    assert values["find_repository"]() == "https://example.org/x"
    opened = "fileId=https%3A//github.com/someone/slimdown/blob/main/docs/examples/t4.ipynb"
    values["urlopen"] = lambda address: BytesIO(json.dumps([{"path": opened}]).encode())
    monkeypatch.setenv("COLAB_JUPYTER_PORT", "9000")
    assert values["find_repository"]() == "https://github.com/someone/slimdown"


def test_the_t4_notebooks_settings_are_accepted() -> None:
    cells = [cell.source for cell in read_t4_notebook().cells if cell.cell_type == "code"]
    values: dict[str, Any] = {}
    configs = []
    for line in "\n".join(cells).splitlines():
        if line.startswith("!slimdown run"):
            python = "\n".join(cells).partition(line)[0]
            exec(re.sub(r"^( *)[!%].*", r"\1pass", python, flags=re.MULTILINE), values)
            words = shlex.split(eval(f"f{line!r}", values).removesuffix("| cat"))[2:]
            configs.append(compose_runs(read_command_line(words)).runs[0].config)
    plain, kept = configs
    assert list(plain.dataset) == ["gsm8k_train"]
    assert (plain.keep.name, kept.keep.name) == ("none", "auto")
    assert plain.benchmark == kept.benchmark
    assert (plain.model.dtype, plain.quantization.name) == ("auto", "none")  # a T4: float16


@pytest.mark.hub
def test_the_t4_notebook_trains_twice_shows_a_page_and_scales(tmp_path: Path) -> None:
    notebook = read_t4_notebook()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "MLFLOW_TRACKING_URI": ""}
    client.execute(env={**os.environ, **quiet, "PATH": path})
    outputs = {
        cell.source: "".join(
            output.get("text") or str(output.get("data")) for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    texts = "".join(outputs.values())
    assert "Traceback" not in texts
    assert "\x1b[2K" not in texts  # plain lines: a progress bar would fill the file
    runs = [text for source, text in outputs.items() if "!slimdown run" in source]
    assert [bool(re.search(r"page +\S+report\.html", text)) for text in runs] == [True, True]
    [shown] = [text for source, text in outputs.items() if "srcdoc" in source]
    assert "iframe" in shown
    assert "arc_easy" in shown
    [compared] = [text for source, text in outputs.items() if source.startswith("!slimdown comp")]
    assert "2 finished runs" in compared
    [scaled] = [text for source, text in outputs.items() if source.startswith("!slimdown scale")]
    answers = r"on the held-out questions|not proven to fit the budgets"
    assert re.search(answers, scaled)


def test_the_repository_has_one_address() -> None:
    """Whoever publishes it replaces one text."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), T4_NOTEBOOK]
    addresses = re.findall(
        r"(?:github\.com/|github/|uses: )([\w.-]+/slimdown)\b",
        "\n".join(file.read_text() for file in files),
    )
    assert len(addresses) >= 2
    assert len(set(addresses)) == 1


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        whole = nbformat.read(NOTEBOOK, as_version=4)
        nbformat.write(executed(Path(folder), whole), NOTEBOOK)
