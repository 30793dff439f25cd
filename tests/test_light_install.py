"""What judges logs is installed and started without torch, transformers, MLflow and Hydra."""

import os
import re
import shutil
import subprocess
import tomllib
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import yaml
from builders import unpack_logs
from packaging.requirements import Requirement

from slimdown.utils.errors import ConfigError
from slimdown.utils.extras import explain_missing_packages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CARD = {"hydra-core", "omegaconf", "mlflow", "torch", "transformers", "peft", "bitsandbytes"}
CARD |= {"trl", "lm-eval"}
ABSENT = {"torch", "transformers", "mlflow", "hydra", "omegaconf", "datasets", "lm_eval"}


def name_package(requirement: str) -> str:
    return Requirement(requirement).name


def find_closure(names: list[str]) -> dict[str, Distribution]:
    """Return packages and all that they require themselves, without extras."""
    closure: dict[str, Distribution] = {}
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in closure:
            continue
        closure[name] = distribution(name)
        needed = map(Requirement, closure[name].requires or [])
        names += [r.name for r in needed if not r.marker or r.marker.evaluate({"extra": ""})]
    return closure


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that finds slimdown and what `pip install .` brings, and nothing else."""
    folder = tmp_path_factory.mktemp("light")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    [site] = (folder / "venv").glob("lib/python*/site-packages")
    for package in find_closure([name_package(r) for r in PROJECT["dependencies"]]).values():
        tops = {Path(str(file)).parts[0] for file in package.files or []} - {"..", "__pycache__"}
        for top in tops:
            source = Path(str(package.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    shutil.copytree(ROOT / "slimdown", site / "slimdown")
    shutil.copytree(ROOT / "conf", site / "slimdown" / "conf")
    return str(folder / "venv" / "bin" / "python")


def start(python: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments], cwd=cwd, env={"PATH": ""}, capture_output=True, text=True
    )


def test_logs_are_judged_by_the_packages_of_the_light_install(python: str, tmp_path: Path) -> None:
    arguments = [*unpack_logs(tmp_path), "-o", "page.html", "--max-loss", "0.02"]
    script = (
        "import sys; from slimdown.__main__ import main\n"
        "try: main()\nfinally: print('loaded', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = start(python, "-c", script, "verdict", *arguments, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "↓ forgotten" in done.stdout
    assert "<h2" in (tmp_path / "page.html").read_text()
    assert not ABSENT & set(done.stdout.rpartition("loaded ")[2].split())
    for name in ABSENT:
        assert start(python, "-c", f"import {name}", cwd=tmp_path).returncode == 1


def test_python_judges_logs_there_too(python: str, tmp_path: Path) -> None:
    base, tuned = unpack_logs(tmp_path)
    script = (
        "import slimdown\n"
        f"findings = slimdown.judge(slimdown.read_logs({base!r}), slimdown.read_logs({tuned!r}))\n"
        "print(bool(findings.passes(pocket_math=0.9)), findings.save('page.html').exists())\n"
        "for call in (lambda: slimdown.judge(None, None), lambda: slimdown.read_logs('nowhere')):\n"
        "    try: call()\n"
        "    except slimdown.DataError as error: print(error)"
    )
    done = start(python, "-c", script, cwd=tmp_path)
    passed, no_evaluation, no_logs = done.stdout.splitlines()
    assert passed == "False True", done.stderr
    assert "NoneType" in no_evaluation
    assert "nowhere" in no_logs


def test_recorded_mitigations_are_described_there_too(python: str, tmp_path: Path) -> None:
    script = (
        "from slimdown.config.mitigation import list_mitigations\n"
        "from slimdown.config.schema import RunConfig\n"
        "from slimdown.judging.serialization import from_plain\n"
        "names = [name for name in list_mitigations() if name != 'auto']\n"  # it becomes another
        "for name in [*names, 'gone']:\n"
        "    print(from_plain(RunConfig, {'keep': {'name': name, 'weight': 3.0}}).keep.describe())"
    )
    done = start(python, "-c", script, cwd=tmp_path)
    nothing, *lines, gone = done.stdout.splitlines()
    assert (nothing, gone) == ("", "gone, KL penalty weight 3.0"), done.stderr
    assert len(lines) >= 3
    assert all(line.endswith("weight 3.0") or "weight 3.0," in line for line in lines)


@pytest.mark.parametrize(
    "command",
    [
        "-m slimdown.run -m lora.r=4",
        "-m slimdown compare",
        "-m slimdown doctor",
        "-m slimdown sizes",
        "-c import+slimdown;slimdown.ForgettingCallback",
        "-c import+slimdown;slimdown.measure(1,2,['gsm8k'])",
    ],
)
def test_what_needs_more_says_how_to_install(command: str, python: str, tmp_path: Path) -> None:
    done = start(python, *(word.replace("+", " ") for word in command.split()), cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1].endswith("pip install '.[train]'")
    assert command.startswith("-c") or len(lines) == 2


def test_a_package_of_ones_own_that_is_missing_is_not_taken_for_ours() -> None:
    with pytest.raises(ModuleNotFoundError), explain_missing_packages():
        import nowhere_to_be_found  # noqa: F401
    with pytest.raises(ConfigError, match="lm_eval, which"), explain_missing_packages():
        raise ModuleNotFoundError("No module named 'lm_eval.tasks'", name="lm_eval.tasks")


def test_train_brings_every_package_of_the_card() -> None:
    extras = PROJECT["optional-dependencies"]
    train = {name_package(requirement) for requirement in extras["train"]}
    assert train >= CARD
    assert not train & {name_package(requirement) for requirement in PROJECT["dependencies"]}


@pytest.mark.install
def test_the_actions_steps_judge_logs_in_an_empty_environment(tmp_path: Path) -> None:
    """As `action.yml` has them; pip downloads what the light install needs."""
    venv.create(tmp_path / "venv", with_pip=True)
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    inputs = {name: str(given.get("default", "")) for name, given in action["inputs"].items()}
    arguments = f"{' '.join(unpack_logs(tmp_path))} --max-loss 0.95"
    inputs |= {"command": "verdict", "arguments": arguments}
    summary = tmp_path / "summary.md"
    outside = {
        **os.environ,
        "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": "",
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(summary),
        "GITHUB_OUTPUT": str(tmp_path / "outputs.txt"),
    }
    for step in action["runs"]["steps"]:
        if "run" not in step:
            continue
        texts = {name: str(text) for name, text in step.get("env", {}).items()}
        environment = {
            name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs[m[1]], text)
            for name, text in texts.items()
        }
        bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(bash, env=outside | environment, cwd=tmp_path, text=True)
        assert done.returncode == 0
    assert "| pocket_math |" in summary.read_text()
    assert (tmp_path / "outputs.txt").read_text() == "exit-code=0\n"
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    assert not ABSENT & {path.name for path in site.iterdir()}
    assert (site / "slimdown").is_dir()


@pytest.mark.install
def test_pip_installs_it_from_its_repository_and_it_judges_logs(tmp_path: Path) -> None:
    """What is committed is installed. Python 3.11's own pip refuses addresses without a host."""
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    outside = {**os.environ, "PYTHONPATH": ""}
    for wanted in (["--upgrade", "pip"], [f"slimdown @ git+file://{ROOT}"]):
        pip = [programs / "python", "-m", "pip", "install", *wanted]
        done = subprocess.run(pip, env=outside, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    verdict = [programs / "slimdown", "verdict", *unpack_logs(tmp_path), "--max-loss", "0.95"]
    done = subprocess.run(verdict, env={"PATH": ""}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "↓ forgotten" in done.stdout
    run = [programs / "slimdown", "run"]
    done = subprocess.run(run, env={"PATH": ""}, cwd=tmp_path, capture_output=True, text=True)
    line = f"is not installed; pip install 'slimdown[train] @ git+file://{ROOT}'\n"
    assert done.returncode
    assert done.stderr.endswith(line), done.stderr


@pytest.mark.install
def test_a_wheel_trains_measures_and_judges_in_an_empty_environment(tmp_path: Path) -> None:
    """A pip user's first hour, with the tested versions, in a folder that holds no clone."""
    venv.create(tmp_path / "venv", with_pip=True)
    programs, work = tmp_path / "venv" / "bin", tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}

    def succeed(*command: str | Path) -> str:
        done = subprocess.run(
            command, env=environment, cwd=work, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = [programs / "python", "-m", "pip"]
    succeed(*pip, "install", "--upgrade", "pip")
    succeed(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    [wheel] = tmp_path.glob("slimdown-*.whl")
    succeed(*pip, "install", f"{wheel}[train]", "-c", ROOT / "constraints.txt")
    slimdown = programs / "slimdown"
    few = ["train.max_steps=2", "quantization=none", "evaluation.limit=4"]
    assert "pocket_math" in succeed(slimdown, "run", *few)
    assert "↓ forgotten" in succeed(slimdown, "verdict", *unpack_logs(tmp_path))
    adapter = next(file.parent for file in work.rglob("adapter_config.json"))
    assert "pocket_math" in succeed(slimdown, "run", f"tuned={adapter}", *few[1:])
    listed = succeed(*pip, "freeze")
    tested = set((ROOT / "constraints.txt").read_text().splitlines())
    lines = {re.sub(r"[+][\w.]+$", "", line) for line in listed.splitlines() if "==" in line}
    assert lines - {line for line in lines if line.startswith("setuptools==")} <= tested
