"""Stores that fall silent, die, come back or are opened by many at once. `python -m bench.attack` runs these."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.faults import QUICK, Count, show
from bench.servers import MlflowServer, fresh_database, postgres, postgres_binaries, together

WAIT = 30  # tracking.wait of the runs here


def stores(trials: int) -> bool:
    """A real `mlflow server` stopped, killed and restarted under a run; PostgreSQL opened by eight at once."""
    counts = [_outage(what, fault, trials) for what, fault in FAULTS.items()]
    if postgres_binaries():
        counts += _postgres(trials)
    else:
        print("PostgreSQL is not installed (apt-get install postgresql): left out")
    return show(*counts)


def _stopped_for_good(server: MlflowServer) -> None:
    server.signal(signal.SIGSTOP)


def _stopped_for_a_while(server: MlflowServer) -> None:
    server.signal(signal.SIGSTOP)
    time.sleep(10)
    server.signal(signal.SIGCONT)


def _killed(server: MlflowServer) -> None:
    server.signal(signal.SIGKILL)


def _restarted(server: MlflowServer) -> None:
    server.signal(signal.SIGKILL)
    server.start()


FAULTS: dict[str, Callable[[MlflowServer], None]] = {
    "server stopped (SIGSTOP) and never answers again": _stopped_for_good,
    "server stopped for 10 s": _stopped_for_a_while,
    "server killed": _killed,
    "server killed and started again": _restarted,
}


def _outage(what: str, fault: Callable[[MlflowServer], None], trials: int) -> Count:
    """Runs whose server fails at different moments, sent afterwards, twice, where they lie on disk."""
    held = 0
    for trial in range(trials):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "server").mkdir()
            with MlflowServer(folder / "server") as server:
                job = _run(folder, f"tracking.uri={server.uri}", f"tracking.wait={WAIT}")
                _until_recorded(server, MOMENTS[trial % len(MOMENTS)], job)
                fault(server)
                said = job.communicate(timeout=300)[0]
                unsent = sorted((folder / "mlruns" / "unsent").glob("*"))
                server.signal(signal.SIGKILL)
                server.start()
                sent = [_send(folder, unsent[0]) for _ in range(2)] if unsent else []
                kept = _whole(server)
        lines = [line for line in said.splitlines() if line.startswith("tracking.uri=")]
        noise = [word for word in ("Traceback", "urllib3", "Retrying") if word in said]
        good = job.returncode == 0 and not any(sent) and kept and len(lines) <= 2 and not noise
        held += good
        print(
            f"{what}, {MOMENTS[trial % len(MOMENTS)]}: exit {job.returncode}, {lines}, sent {sent}, whole {kept}",
            flush=True,
        )
        if not good:
            print(said)
    return Count(what, trials, held)


MOMENTS = (
    "slimdown.model",
    "base/pocket_math/acc",
    "train/n_train",
    "train/loss",
    "train/final_loss",
)


def _until_recorded(server: MlflowServer, key: str, job: "subprocess.Popen[str]") -> None:
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    while job.poll() is None:
        for run in _runs(client):
            if any(name.startswith(key) for name in (*run.data.metrics, *run.data.tags)):
                return
        time.sleep(0.2)


def _whole(server: MlflowServer) -> bool:
    """Whether the store holds one finished run with everything, and one base."""
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    runs = {run.data.tags["slimdown.kind"]: run for run in _runs(client)}
    if len(_runs(client)) != 2 or {run.info.status for run in runs.values()} != {"FINISHED"}:
        return False
    run = runs["tuned"]
    files = {a.path for a in client.list_artifacts(run.info.run_id)}
    [model] = client.search_logged_models([run.info.experiment_id])
    return (
        {"samples", "plots", "report.html", "config.yaml"} <= files
        and {len(client.list_artifacts(one.info.run_id, "samples")) for one in runs.values()}
        == {sum(key.startswith("slimdown.verdict.") for key in run.data.tags)}
        and len(client.list_logged_model_artifacts(model.model_id)) == 2
        and len(client.get_metric_history(run.info.run_id, "train/loss")) == 3
        and "forgetting/pocket_math/change" in run.data.metrics
        and run.data.tags["slimdown.baseline.pocket_math"] == runs["baseline"].info.run_id
        and str(model.status) == "READY"
    )


def _runs(client: "object") -> list:  # type: ignore[type-arg]
    experiments = [e.experiment_id for e in client.search_experiments()]  # type: ignore[attr-defined]
    return list(client.search_runs(experiments))  # type: ignore[attr-defined]


def _run(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-m", "slimdown.run", *QUICK, *arguments], cwd=folder, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _send(folder: Path, unsent: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-m", "slimdown.send", unsent], cwd=folder, env=environment
    ).returncode


def _postgres(trials: int) -> list[Count]:
    held = served = 0
    with postgres() as uri:
        for trial in range(trials):
            with tempfile.TemporaryDirectory() as name:
                codes, n_made = together(fresh_database(uri, f"direct{trial}"), 8, Path(name))
            held += codes == [0] * 8 and n_made == 1
            print(f"eight on a fresh database: exit {codes}, base measured {n_made} times")
        with (
            tempfile.TemporaryDirectory() as name,
            MlflowServer(Path(name), fresh_database(uri, "served")) as server,
        ):
            codes, n_made = together(server.uri, 8, Path(name))
            served = codes == [0] * 8 and n_made == 1
            print(f"eight through mlflow server: exit {codes}, base measured {n_made} times")
    return [
        Count("PostgreSQL, fresh, eight processes at once, base measured once", trials, held),
        Count(
            "`mlflow server` on PostgreSQL, eight processes at once, base measured once",
            1,
            int(served),
        ),
    ]
