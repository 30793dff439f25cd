"""The wheel holds what it needs and nothing else, and runs from another folder."""

import zipfile
from pathlib import Path

import pytest
from commands_and_runs import run_command

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = run_command(folder, *build, str(ROOT))
    assert done.returncode == 0, done.stderr
    [file] = folder.glob("*.whl")
    return file


def test_the_wheel_holds_config_pocket_world_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "slimdown/conf/config.yaml",
        "slimdown/conf/model/pocket.yaml",
        "slimdown/pocket/model/model.safetensors",
        "slimdown/pocket/tasks/pocket_math.yaml",
        "slimdown/py.typed",
    } <= names
    outside = ("tests", "conf/", "mlruns", "docs", "tools")
    assert not [n for n in names if n.startswith(outside) or ".env" in n or "/facts/" in n]
    code = {n for n in names if n.startswith("slimdown/pocket/") and n.endswith(".py")}
    assert code == {"slimdown/pocket/__init__.py", "slimdown/pocket/tasks/dataset.py"}
    assert wheel.stat().st_size < 8 * 2**20


def test_it_composes_from_another_folder_with_own_presets(wheel: Path, tmp_path: Path) -> None:
    """Installed by unpacking: its dependencies are those of this environment."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    (mine / "nine.yaml").write_text("# @package _global_\nlora: {r: 9}\n")
    own = ["--config-dir", str(mine.parent), "experiment=nine", "--cfg", "job"]
    alone = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    done = run_command(tmp_path, "slimdown.run", *own, **alone)
    assert done.returncode == 0, done.stderr
    assert "r: 9" in done.stdout
