"""The notebook in docs/examples is run as it stands; `make notebook` keeps what it then shows."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "examples" / "trl.ipynb"


def executed(folder: Path) -> Any:
    """Run the notebook in a folder; leave out stderr, which names places of the machine."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute(
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
    return executed(folder), folder


def test_it_shows_and_saves_what_was_found(run: tuple[Any, Path]) -> None:
    notebook, folder = run
    last = shown(notebook)
    assert [len(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"] == [
        0,
        0,
        0,
        1,
        1,
        1,
        1,
        1,
    ]
    assert '<span class="badge improved">' in last["findings"]["text/html"]
    assert '<span class="badge forgotten">' in last["findings"]["text/html"]
    assert "\x1b" not in last["findings"]["text/plain"]  # no colours, for which a notebook asks
    assert (folder / "page.html").read_text().count("pocket_math") > 5


def test_what_it_shows_is_kept_and_was_shown_by_what_stands_there(run: tuple[Any, Path]) -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell.source for cell in kept.cells] == [cell.source for cell in run[0].cells]
    assert shown(kept).keys() == shown(run[0]).keys()
    assert [cell.get("execution_count") for cell in kept.cells] == [
        cell.get("execution_count") for cell in run[0].cells
    ]
    text = NOTEBOOK.read_text()
    assert "site-packages" not in text
    assert str(Path.home()) not in text


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        nbformat.write(executed(Path(folder)), NOTEBOOK)
