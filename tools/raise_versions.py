"""Run the tests on the newest versions of the day; if they pass, allow and pin these versions.

`make raise` installs what pyproject.toml asks for, without its ceilings of minor versions, in
.venv-newest. First come the private interfaces and the training, then the whole suite. If all of it
passes, constraints.txt and the ceilings in pyproject.toml are written anew. Otherwise both stay as
they are, the last lines of the failed tests are in raise.log, and the exit code is 1.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT, CONSTRAINTS, LOG = (ROOT / n for n in ("pyproject.toml", "constraints.txt", "raise.log"))
PYTHON = str(ROOT / ".venv-newest" / "bin" / "python")
# A range with a floor, and a ceiling at a minor version (or a third number below 1.0).
CEILING = re.compile(r'"([\w-]+)>=([\d.]+),<(\d+(?:\.\d+){1,2})"')
EXCEPT = ("omegaconf",)  # Hydra sets its ceiling
HEADER = "# The versions with which `make check test` passed, written by `make constraints`.\n"
FIRST = ["tests/test_private_interfaces.py", "tests/test_missing_interfaces.py", "tests/training"]


def main(arguments: list[str]) -> int:
    """Raise the versions, or with `--freeze PYTHON` only write what that Python has installed."""
    if arguments[:1] == ["--freeze"]:
        CONSTRAINTS.write_text(freeze(arguments[1]))
        return 0
    project = PROJECT.read_text()
    try:
        PROJECT.write_text(CEILING.sub(_drop_ceiling, project))
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(ROOT / ".venv-newest")], check=True
        )
        pip = [PYTHON, "-m", "pip", "install", "--quiet", "--upgrade"]
        subprocess.run([*pip, "pip"], check=True)
        subprocess.run([*pip, "--editable", f"{ROOT}[dev]"], check=True)
    finally:
        PROJECT.write_text(project)
    installed = freeze(PYTHON)
    differences = _differences(installed)
    sys.stdout.write(f"newest versions that differ from constraints.txt:\n{differences}")
    for tests in (FIRST, []):
        command = [PYTHON, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-q", *tests]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        sys.stdout.write(done.stdout[-2000:])
        if done.returncode:
            LOG.write_text(differences + "\n" + done.stdout[-20_000:])
            return 1
    versions = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", installed, re.M))
    PROJECT.write_text(CEILING.sub(lambda found: _raise_ceiling(found, versions), project))
    CONSTRAINTS.write_text(installed)
    return 0


def freeze(python: str) -> str:
    """Return what an environment has installed as lines of constraints, without local versions."""
    command = [python, "-m", "pip", "freeze", "--exclude-editable"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [re.sub(r"\+\w+$", "", line) for line in listed.splitlines() if "==" in line]
    return HEADER + "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def _differences(installed: str) -> str:
    before = set(CONSTRAINTS.read_text().splitlines()) if CONSTRAINTS.exists() else set[str]()
    return "".join(f"  {line}\n" for line in installed.splitlines() if line not in before)


def _drop_ceiling(found: re.Match[str]) -> str:
    package, floor, _ = found.groups()
    return found[0] if package in EXCEPT else f'"{package}>={floor}"'


def _raise_ceiling(found: re.Match[str], versions: dict[str, str]) -> str:
    """Return a range that ends below the minor version after the installed one, never lower."""
    package, floor, ceiling = found.groups()
    version = versions.get(package) or versions.get(package.replace("-", "_"))
    if package in EXCEPT or version is None:
        return found[0]
    n = len(ceiling.split("."))
    numbers = [int(part) for part in re.findall(r"\d+", version)[:n]]
    numbers[-1] += 1
    highest = max(numbers, [int(part) for part in ceiling.split(".")])
    return f'"{package}>={floor},<{".".join(map(str, highest))}"'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
