"""A record in PostgreSQL: a real server, started here as a user that is not root."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from socket import socket

import pytest
from record_builders import (
    Compose,
    Patch,
    check_after_kill,
    open_by_four_processes,
    record_run,
    set_metric,
)
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from slimdown.tracking.run_reader import find_runs
from slimdown.tracking.store import open_store
from slimdown.utils.errors import TrackingError

pytestmark = pytest.mark.postgres
PASSWORD = "pl4nted-password"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    binaries = Path(shutil.which("initdb") or "").resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="slimdown-postgres-", dir="/tmp"))
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "password").write_text(PASSWORD)
    as_user: list[str] = []
    if os.getuid() == 0:  # it refuses to run as root
        user = pwd.getpwnam("postgres")
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        for path in (folder, folder / "password"):
            os.chown(path, user.pw_uid, user.pw_gid)
    options = ["-D", str(folder / "data"), "-U", "slimdown", "-A", "scram-sha-256", "-N"]
    make = [*as_user, str(binaries / "initdb"), *options, f"--pwfile={folder / 'password'}"]
    subprocess.run(make, check=True, capture_output=True, cwd=folder)
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
    start = [*as_user, str(binaries / "postgres"), "-D", str(folder / "data"), *options]
    process = subprocess.Popen(start, stderr=subprocess.DEVNULL, cwd=folder)
    uri = f"postgresql://slimdown:{PASSWORD}@127.0.0.1:{port}"
    try:
        engine = create_engine(f"{uri}/postgres", isolation_level="AUTOCOMMIT", poolclass=NullPool)
        for _ in range(300):
            try:
                with engine.connect() as database:
                    database.execute(text("CREATE DATABASE fresh"))
                break
            except OperationalError:
                time.sleep(0.1)
        yield uri
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_processes_open_a_fresh_database_together(server: str, tmp_path: Path) -> None:
    open_by_four_processes(tmp_path, f"{server}/fresh")


def test_a_run_is_recorded_and_leaves_no_password(
    server: str, tmp_path: Path, monkeypatch: Patch, composed: Compose
) -> None:
    monkeypatch.chdir(tmp_path)
    config = composed()
    config = replace(config, tracking=replace(config.tracking, uri=f"{server}/fresh"))
    record_run(config, "one")
    (run,) = find_runs(config.tracking, with_findings=True)
    assert run.findings is not None
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if PASSWORD.encode() in file.read_bytes()]
    with create_engine(f"{server}/fresh", poolclass=NullPool).connect() as database:
        for table in ("params", "tags", "runs", "experiments"):
            assert PASSWORD not in str(database.execute(text(f"SELECT * FROM {table}")).all())


@pytest.mark.parametrize("stage", ["log_model_artifacts", "finalize_logged_model", "log_outputs"])
def test_a_kill_leaves_no_second_model_and_no_metric_twice(
    stage: str, server: str, tmp_path: Path, monkeypatch: Patch, composed: Compose
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/{stage}")
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as database:
        database.execute(text(f"CREATE DATABASE {stage}"))
    config = set_metric(composed())
    count = 2 if stage == "finalize_logged_model" else 1
    check_after_kill(open_store(config.tracking), config, stage, count)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [(PASSWORD, "wrong-password", "authentication failed"), ("/fresh", "/gone", "does not exist")],
)
def test_a_wrong_address_is_one_line_without_the_password(
    old: str, new: str, message: str, server: str, composed: Compose
) -> None:
    uri = f"{server}/fresh".replace(old, new)
    with pytest.raises(TrackingError, match=message) as caught:
        open_store(replace(composed().tracking, uri=uri))
    assert "-password" not in str(caught.value).replace("authentication failed", "")
