"""One sweep, typed on two machines that share nothing but an MLflow server: nothing is made twice, also after a kill.

    python -m bench.two_machines

A machine is a group of processes with a folder, a home, a host name and process numbers of its own (`unshare`, which
root may). The server keeps its runs in PostgreSQL and serves artifacts. What was made is counted in its record.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from bench.faults import QUICK
from bench.servers import MlflowServer, fresh_database, postgres

_ON_ITS_OWN = [
    "unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
    "sh", "-c", 'hostname "$0" && exec "$@"',
]  # fmt: skip


class Machine:
    """Where a command is typed."""

    def __init__(self, name: str, folder: Path, uri: str) -> None:
        self.name, self._folder = name, folder / name
        (self._folder / "home").mkdir(parents=True)
        self._environment = {
            **os.environ,
            "HOME": str(self._folder / "home"),
            "XDG_CACHE_HOME": str(self._folder / "home" / "cache"),
            "MLFLOW_TRACKING_URI": uri,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }

    def type(self, *arguments: str) -> None:
        """Begin a sweep."""
        command = [
            *_ON_ITS_OWN,
            self.name,
            sys.executable,
            "-u",
            "-m",
            "slimdown.run",
            "-m",
            *QUICK,
            *arguments,
        ]
        with (self._folder / "said").open("w") as said:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        """Stop all that runs, or let it go on."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Take the power away."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def until_done(self) -> int:
        """The exit code of its command."""
        code = self._process.wait(900)
        self.show(f"exit code {code}")
        return code

    def show(self, end: str) -> None:
        """Print what became of its jobs."""
        print(f"{self.name}, {end}:")
        for line in (self._folder / "said").read_text().splitlines():
            if (
                line.startswith(("Another process", "goes on", "tracking.uri=", "This run"))
                or "job" in line
            ):
                print(f"    {line}", flush=True)


def runs_of(client: MlflowClient) -> list[Run]:
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def made_twice(client: MlflowClient) -> dict[str, int]:
    """Keys of runs and of evaluations that more than one run of the record has."""
    runs = runs_of(client)
    keys = [run.data.tags.get("slimdown.run_key", "") for run in runs]
    evaluations = [
        key for run in runs for key in run.data.tags if key.startswith("slimdown.evaluation.")
    ]
    return {key: n for key, n in Counter([*filter(None, keys), *evaluations]).items() if n > 1}


def report(client: MlflowClient, what: str, n_jobs: int) -> bool:
    """Print what the record holds; whether it is each job once, and each evaluation once."""
    runs = runs_of(client)
    tuned = [run for run in runs if run.data.tags["slimdown.kind"] == "tuned"]
    statuses = Counter(run.info.status for run in tuned)
    bases = [run for run in runs if run.data.tags["slimdown.kind"] == "baseline"]
    measured = Counter(
        key for run in bases for key in run.data.tags if key.startswith("slimdown.evaluation.")
    )
    twice = made_twice(client)
    print(
        f"{what}: {n_jobs} jobs; runs {dict(statuses)}; evaluations of the base {len(measured)}, each made "
        f"{set(measured.values())} times; made twice: {twice or 'nothing'}",
        flush=True,
    )
    return statuses == {"FINISHED": n_jobs} and not twice and set(measured.values()) == {1}


def until_training(client: MlflowClient, machine: Machine) -> None:
    """Return when a run of this machine trains."""
    while True:
        for run in runs_of(client):
            here = f'"host": "{machine.name}"' in run.data.tags.get("slimdown.owner", "")
            if here and run.info.status == "RUNNING" and "train/loss" in run.data.metrics:
                return
        time.sleep(0.2)


def main() -> None:
    """Type a sweep on two machines, one of which is killed in the second sweep, and stands still in the third."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="jobs of each sweep")
    n = parser.parse_args().seeds
    with postgres() as database, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "server").mkdir()
        with MlflowServer(folder / "server", fresh_database(database, "shared")) as server:
            client = MlflowClient(server.uri)
            one, other = (Machine(name, folder, server.uri) for name in ("one", "other"))
            started = time.monotonic()
            for machine in (one, other):
                machine.type(f"seed=range({n})")
            good = [machine.until_done() == 0 for machine in (one, other)]
            good.append(report(client, f"typed on both, {time.monotonic() - started:.0f} s", n))

            for machine in (one, other):
                machine.type(f"seed=range({n},{2 * n})")
            until_training(client, one)
            one.kill()
            killed = time.monotonic()
            one.show("killed in training")
            good.append(other.until_done() == 0)
            print(f"the other finished everything {time.monotonic() - killed:.0f} s after the kill")
            one.type(f"seed=range({2 * n})")
            good += [one.until_done() == 0, report(client, "one of them killed", 2 * n)]

            for machine in (one, other):
                machine.type(f"seed=range({2 * n},{3 * n})")
            until_training(client, one)
            one.signal(signal.SIGSTOP)
            time.sleep(120)
            one.signal(signal.SIGCONT)
            good += [machine.until_done() == 0 for machine in (one, other)]
            good.append(report(client, "one of them stopped for two minutes", 3 * n))
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
