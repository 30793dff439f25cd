"""A record in PostgreSQL, directly: a real server, started here as a user that is not root."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SMALL
from mlflow import MlflowClient

from bench.faults import QUICK
from bench.servers import PASSWORD, MlflowServer, fresh_database, postgres, together
from slimdown.config.schema import TrackingConfig
from slimdown.tracking.connection import open_store
from slimdown.tracking.tags import Tag
from slimdown.utils.errors import SlimdownError

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as uri:
        yield uri


def test_eight_processes_open_a_fresh_database_together_and_measure_once(
    server: str, tmp_path: Path
) -> None:
    codes, n_made = together(fresh_database(server, "together"), 8, tmp_path)
    assert codes == [0] * 8
    assert n_made == 1


def documented(begin: str) -> list[str]:
    """The words of the first command of docs/cluster.md that begins so, after these."""
    text = re.sub(r" *\\\n *", " ", (Path(__file__).parents[1] / "docs" / "cluster.md").read_text())
    found, *_ = [line for line in text.splitlines() if line.startswith(f"    {begin}")]
    return shlex.split(found.strip().removeprefix(begin))


def test_eight_that_share_a_server_and_no_folder_make_everything_once(
    server: str, tmp_path: Path
) -> None:
    """The server and the sweep of docs/cluster.md, typed on three machines, and five that only write, all at once."""
    (tmp_path / "server").mkdir()
    words = documented("mlflow server ")
    options = {
        name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)
    }
    options |= {
        "backend-store-uri": fresh_database(server, "served"),
        "artifacts-destination": f"{tmp_path}/files",
    }
    options["allowed-hosts"] += ",127.0.0.1:*"
    sweep = [*documented("python -m slimdown.run -m "), *QUICK]
    with MlflowServer(tmp_path / "server", **options) as mlflow:
        machines = [type_sweep(tmp_path / f"machine{i}", mlflow.uri, sweep) for i in range(3)]
        codes, n_made = together(mlflow.uri, 5, tmp_path)
        said = [machine.communicate(timeout=300)[0] for machine in machines]
        assert [machine.returncode for machine in machines] == [0] * 3, said
        assert codes == [0] * 5
        assert n_made == 1
        assert sum(text.count(" finished  ") for text in said) == 4, said
        client = MlflowClient(mlflow.uri)
        found = [
            run
            for e in client.search_experiments()
            for run in client.search_runs([e.experiment_id])
        ]
        assert {run.info.status for run in found} == {"FINISHED"}
        kinds = Counter(run.data.tags[Tag.kind] for run in found)
        assert kinds["tuned"] == 4 + 5
        whole = [run for run in found if run.info.run_name != "a run"]
        kept = [
            key
            for run in whole
            for key in run.data.tags
            if key.startswith((Tag.evaluation, Tag.validation_loss))
        ]
        assert set(Counter(kept).values()) == {1}
        assert (
            len(kept) == 2 + 2 + 4 * 2
        )  # two benchmarks of the base, its loss on the rows of each seed; theirs
        assert client.search_model_versions("name = 'slimdown-locks'") == []
        assert not any("lets nobody queue" in text for text in said)
        with pytest.raises(
            SlimdownError, match=r"; start the server with --allowed-hosts 127\.0\.0\.2:\d+$"
        ):
            open_store(
                TrackingConfig(uri=mlflow.uri.replace("127.0.0.1", "127.0.0.2"), experiment="x")
            )


def type_sweep(folder: Path, uri: str, sweep: list[str]) -> "subprocess.Popen[str]":
    """A sweep from a folder, home and cache of its own."""
    (folder / "home").mkdir(parents=True)
    own = {
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "MLFLOW_TRACKING_URI": uri,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "slimdown.run", "-m", *sweep],
        cwd=folder, env={**os.environ, **own}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_wrong_password_and_a_missing_database_are_known_at_once(server: str) -> None:
    for uri, reason in (
        (
            f"{server.replace(PASSWORD, 'wrong-password')}/postgres",
            "password authentication failed",
        ),
        (f"{server}/nowhere", 'database "nowhere" does not exist'),
    ):
        started = time.monotonic()
        with pytest.raises(
            SlimdownError, match=rf"postgresql://\*\*\*@127.* cannot be used: .*{reason}"
        ):
            open_store(TrackingConfig(uri=uri, experiment="x"))
        assert time.monotonic() - started < 15


def test_a_run_leaves_no_password_in_the_database_nor_anywhere_else(
    server: str, tmp_path: Path
) -> None:
    uri = fresh_database(server, "secrets")
    command = [
        sys.executable,
        "-m",
        "slimdown.run",
        "-m",
        f"tracking.uri={uri}",
        "seed=1",
        *SMALL,
        "train.max_steps=1",
    ]
    done, again = (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    )
    assert done.returncode == again.returncode == 0, done.stderr
    assert "job 1 of 1, finished before: run " in again.stdout
    import psycopg

    with psycopg.connect(uri) as database:
        tables = [
            row[0]
            for row in database.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            )
        ]
        rows = [
            row for table in tables for row in database.execute(f'SELECT t::text FROM "{table}" t')
        ]  # type: ignore[call-overload]
        [(n_runs,)] = database.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'")
    assert n_runs == 2  # the run and its base
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"multirun.yaml", "report.html", "overrides.txt", "config.yaml"} <= {
        file.name for file in files
    }
    assert PASSWORD not in done.stdout + done.stderr + again.stdout + again.stderr + str(rows)
    assert [str(file) for file in files if PASSWORD.encode() in file.read_bytes()] == []
