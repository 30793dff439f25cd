"""Start a command as its user does, and find what it recorded."""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run

Result = subprocess.CompletedProcess[str]

SMALL: list[str] = [
    "dataset.pocket_instructions.max_examples=64",
    "dataset.pocket_instructions.validation_examples=6",
    "train.num_train_epochs=1",
    "benchmark.pocket_instructions.limit=8",
    "benchmark.pocket_math.limit=8",
    "benchmark.pocket_commonsense.limit=8",
    "benchmark.pocket_cs.limit=8",
]
"""The default run, cut to a few seconds."""
SMALL_IN_FLOAT = [*SMALL, "quantization=none"]
"""The same for what does not depend on 4 bits, whose steps take longer on a CPU."""


def run_command(folder: Path, *arguments: str, **environment: str) -> Result:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **environment},
    )


def call_verb(folder: Path, verb: str, *arguments: str) -> Result:
    """Do what `slimdown VERB ...` does in a folder, without a process that imports torch first."""
    out, err = io.StringIO(), io.StringIO()
    name = "slimdown.run" if verb == "run" else f"slimdown.commands.{verb}"
    main = importlib.import_module(name).main
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as ended:  # argparse's, after a help text or a mistake
            code = int(ended.code or 0)
    return Result([verb, *arguments], code, out.getvalue(), err.getvalue())


def succeed(folder: Path, verb: str, *arguments: str) -> Result:
    """Do what `slimdown VERB ...` does in a folder, where it must succeed."""
    done = call_verb(folder, verb, *arguments)
    assert done.returncode == 0, done.stderr
    return done


def find_runs(client: MlflowClient, kind: str = "tuned") -> list[Run]:
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.`slimdown.kind` = '{kind}'"
    return list(client.search_runs(experiments, query, order_by=["attributes.start_time"]))


def find_trained(client: MlflowClient, run_id: str) -> Path:
    """Download what a run trained, as MLflow's own users do."""
    [output] = client.get_run(run_id).outputs.model_outputs
    place = client.get_logged_model(output.model_id).artifact_location
    return Path(download_artifacts(artifact_uri=place, tracking_uri=client.tracking_uri))


def find_page(folder: Path, done: Result) -> Path:
    """Find the page of the run that a command made; its other artifacts lie beside it."""
    return folder / done.stdout.rpartition("\npage ")[2].splitlines()[0].strip()


def find_run_id(folder: Path, done: Result) -> str:
    return find_page(folder, done).parts[-3]


def read_findings(folder: Path, done: Result) -> dict[str, Any]:
    return dict(json.loads(find_page(folder, done).with_name("findings.json").read_text()))


def kill_at_first_checkpoint(folder: Path, *arguments: str, **environment: str) -> None:
    """Start a command in a process of its own, and kill it once a training has kept a step."""
    with (folder / "log.txt").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    states = "mlruns/runs/*/checkpoints/checkpoint-*/trainer_state.json"
    while started.poll() is None and not list(folder.glob(states)):
        time.sleep(0.05)
    assert started.returncode is None, (folder / "log.txt").read_text()
    os.killpg(started.pid, signal.SIGKILL)
    started.wait(timeout=120)


class QuietHandler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def answer(
        self, status: int = 200, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def serve(hub: type[QuietHandler]) -> Iterator[str]:
    """Inside, a hub of a test's own answers on loopback, at the address that is yielded."""
    with ThreadingHTTPServer(("127.0.0.1", 0), hub) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
