"""Real servers for a record, on this machine: PostgreSQL from the system's package, MLflow's own."""

import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

PASSWORD = "pl4nted-password"


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def postgres_binaries() -> Path | None:
    """The folder of the newest PostgreSQL that is installed, as Debian lays it out or on the path."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3])
    )
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own; the address of its server, to which the name of a database is added.

    It refuses to run as root, and then runs as the user that its package made.
    """
    binaries = postgres_binaries()
    assert binaries, "no PostgreSQL is installed: apt-get install postgresql"
    folder = Path(
        tempfile.mkdtemp(prefix="slimdown-postgres-", dir="/tmp")
    )  # where every user may go
    port = free_port()
    (folder / "password").write_text(PASSWORD)
    as_user: list[str] = []
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        for path in (folder, folder / "password"):
            os.chown(path, user.pw_uid, user.pw_gid)
    made = [
        *as_user,
        binaries / "initdb",
        "-D",
        folder / "data",
        "-U",
        "slimdown",
        "-A",
        "scram-sha-256",
    ]
    try:
        subprocess.run(
            [*made, f"--pwfile={folder / 'password'}", "-N"],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        options = [
            "-p",
            str(port),
            "-k",
            folder,
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "fsync=off",
        ]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [*as_user, binaries / "postgres", "-D", folder / "data", *options],
                stderr=log,
                cwd=folder,
            )
        try:
            uri = f"postgresql://slimdown:{PASSWORD}@127.0.0.1:{port}"
            _until(lambda: _ask(f"{uri}/postgres", "SELECT 1"), 30)
            yield uri
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fresh_database(uri: str, name: str) -> str:
    """The address of a database without tables."""
    _ask(f"{uri}/postgres", f"CREATE DATABASE {name}")
    return f"{uri}/{name}"


class MlflowServer:
    """`mlflow server` in a folder, whose processes can be stopped, ended and started again."""

    def __init__(self, folder: Path, backend: str | None = None, **options: str) -> None:
        self._folder, port = folder, free_port()
        self._options = {
            "workers": "1",
            "backend-store-uri": backend or f"sqlite:///{folder}/server.db",
            "artifacts-destination": str(folder / "artifacts"),
            **options,
            "port": str(port),
        }
        self.uri = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        options = [f"--{name}={value}" for name, value in self._options.items()]
        command = [sys.executable, "-m", "mlflow", "server", *options]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        _until(lambda: urllib.request.urlopen(f"{self.uri}/health", timeout=2), 120)

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait()

    def __enter__(self) -> "MlflowServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.signal(signal.SIGKILL)


def together(uri: str, n: int, folder: Path) -> tuple[list[int | None], int]:
    """Processes that open a store at once, each from a folder and a home of its own, and need one evaluation.

    They are forks of this process, which has everything imported: so they arrive within milliseconds of each other.

    Returns:
        Their exit codes, and how many of them made the evaluation.
    """
    import slimdown.tracking.write  # noqa: F401

    processes = multiprocessing.get_context("fork")
    made, begin = processes.Value("i", 0), processes.Barrier(n)
    jobs = [
        processes.Process(target=_write, args=(uri, folder / f"home{i}", made, begin))
        for i in range(n)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(300)
    return [job.exitcode for job in jobs], made.value


def _write(uri: str, home: Path, made: Any, begin: Any) -> None:
    from slimdown.config.schema import BenchmarkConfig, TrackingConfig
    from slimdown.evaluation.answers import BenchmarkEvaluation, Sample, Score
    from slimdown.tracking.evaluations import EvaluationRecord
    from slimdown.tracking.write import TrackedRun

    home.mkdir(parents=True)
    os.chdir(home)
    os.environ["HOME"] = str(home)
    config = TrackingConfig(uri=uri, experiment="together")
    benchmark = BenchmarkConfig(task="t", metric="acc", num_fewshot=0, chance=0.0)
    sample = Sample("t", 0, "d", "p", "q", "t", "r", (), (), {"acc": "a"}, {"acc": 1.0})
    begin.wait()
    with TrackedRun(config, "a run", "tuned", {}) as run:
        record = EvaluationRecord(config, "base", run, True)
        with record.lock("key"):
            if record.find("math", "key", benchmark) is None:
                time.sleep(1)
                record.keep(
                    "math",
                    "key",
                    BenchmarkEvaluation(
                        benchmark, "1", "h", {"acc": Score(1.0, 0.0)}, (sample,), 1.0
                    ),
                )
                with made.get_lock():
                    made.value += 1


def _ask(uri: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(uri, autocommit=True) as database:
        database.execute(statement)


def _until(works: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            works()
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
