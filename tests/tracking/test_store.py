"""Stores that answer, stores that do not, and stores that are made."""

import logging
import os
import sqlite3
import ssl
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from commands_and_runs import QuietHandler, call_verb, serve
from mlflow import MlflowClient
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from record_builders import Compose, Patch, copy_store, open_by_four_processes, record_run

from slimdown.commands.process import set_up_process
from slimdown.config.tracking_config import TrackingConfig
from slimdown.tracking import store as record
from slimdown.tracking.run_reader import find_runs
from slimdown.utils.deadlines import call_within
from slimdown.utils.errors import TrackingError
from slimdown.utils.files import write_atomically


def test_a_line_hides_a_secret_before_it_is_cut() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9." + "x" * 400
    line = record.first_line(ValueError(f"API request to https://me:{token}@server/api failed"))
    assert "xxx" not in line
    assert "server/api failed" in line


def test_a_server_that_wants_a_certificate_is_left_to_mlflow(monkeypatch: Patch) -> None:
    """TLS 1.3 asks while the answer is read, so urllib passes the error on as it is."""

    def refuse(*_: object, **__: object) -> None:
        raise ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    record.check_store(TrackingConfig("https://127.0.0.1:9", "x"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "refused.*start the server"),
        ("sqlite:////proc/no/mlflow.db", "name one that you can write"),
        ("postgresql://me:hunter2@127.0.0.1:9/x", "check address, user"),
        ("mysql://127.0.0.1:9/x", "install the driver MySQLdb: with pip, or name another"),
        ("mssql+nothing://127.0.0.1:9/x", "check address"),
        ("sqlite://", "must be a database or a server"),
        ("sqlite:////srv/a%20b/mlflow.db", "no address can hold its"),
        ("sqlite:////usr", "/usr is no file; name one that you can write"),
        ("file:///srv/x", "must be a database or a server"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_in_one_line(
    uri: str, message: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match=message) as caught:
        record.open_store(TrackingConfig(uri, "x"))
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("text", "advice"), [("x ~ 3", "a filter is"), ("", "MLflow takes no")])
def test_only_a_filter_is_told_how_a_filter_is_written(text: str, advice: str) -> None:
    explained = record.explain_store_errors(TrackingConfig("sqlite:///x.db", "x"), text)
    with pytest.raises(TrackingError, match=advice), explained:
        raise MlflowException("no such value", INVALID_PARAMETER_VALUE)


@contextmanager
def serve_alike(answer: Callable[[QuietHandler], None]) -> Iterator[TrackingConfig]:
    """A server that answers everything alike."""

    class Handler(QuietHandler):
        do_GET = do_POST = answer

    with serve(Handler) as address:
        yield TrackingConfig(address.replace("//", "//me:wrong@"), "x")


def test_a_server_that_wants_another_password_is_not_called_silent() -> None:
    with serve_alike(lambda handler: handler.send_error(401)) as config:
        record.check_store(config)
        with pytest.raises(TrackingError, match=r"401.*password"):
            find_runs(config)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_broken_server_is_not_asked_again_and_again(code: int) -> None:
    with (
        serve_alike(lambda handler: handler.send_error(code)) as config,
        pytest.raises(TrackingError, match=f"HTTP Error {code}"),
    ):
        record.check_store(config)


@pytest.mark.parametrize("answer", ["letters", "health"])
def test_a_server_that_never_ends_its_answer_is_given_up(answer: str, monkeypatch: Patch) -> None:
    """It sends one letter at a time, or is healthy and answers nothing else."""
    monkeypatch.setattr(record, "call_within", lambda _, call: call_within(0.5, call))
    is_over = Event()

    def answer_slowly(handler: QuietHandler) -> None:
        if handler.path == "/health":
            handler.send_response(200)
            handler.end_headers()
        while not is_over.wait(0.05):
            handler.wfile.write(b"x" if answer == "letters" else b"")

    with serve_alike(answer_slowly) as config:
        with pytest.raises(TrackingError, match="TimeoutError"):
            record.check_store(config)
        is_over.set()


def test_mlflow_gives_up_a_server_that_falls_silent_within_a_minute(monkeypatch: Patch) -> None:
    for name in ("MAX_RETRIES", "TIMEOUT", "BACKOFF_FACTOR"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    monkeypatch.delenv("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", raising=False)
    set_up_process()
    retries = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()
    longest_wait = MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get() * 2**retries
    assert (retries + 1) * MLFLOW_HTTP_REQUEST_TIMEOUT.get() + longest_wait < 60
    assert not MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER.get()  # it may say an hour
    assert (
        logging.lastResort in logging.getLogger("urllib3").handlers
    )  # which says what it waits for


def test_a_deleted_experiment_is_named(store: MlflowClient) -> None:
    store.delete_experiment(store.create_experiment("gone"))
    with pytest.raises(TrackingError, match="=gone was deleted"):
        record.find_experiment(store, TrackingConfig("sqlite:///mlruns/mlflow.db", "gone"))


def test_a_locked_database_is_one_line(store: MlflowClient) -> None:
    place = ["--tracking-uri", "sqlite:///mlruns/mlflow.db?timeout=1"]
    with sqlite3.connect("mlruns/mlflow.db") as database:
        database.execute("BEGIN EXCLUSIVE")
        done = call_verb(Path(), "status", *place)
    _, line = done.stderr.splitlines()
    assert done.returncode == 1
    assert "database is locked" in line


def test_reading_makes_and_changes_no_database(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match="there is no record"):
        find_runs(TrackingConfig("sqlite:///mlruns/mlflow.db", "x"))
    assert not list(tmp_path.iterdir())
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE mine (x)")
    before = other.read_bytes()
    (tmp_path / "torn.db").write_bytes(b"no database" * 100)
    for name in ("other.db", "torn.db"):
        config = TrackingConfig(f"sqlite:///{tmp_path}/{name}", "x")
        for use in (record.check_store, record.open_store, find_runs):
            with pytest.raises(TrackingError, match=f"{name} is no MLflow"):
                use(config)
    assert other.read_bytes() == before


def test_a_relative_address_is_that_of_the_folder_one_is_in(
    migrated_store: Path, tmp_path: Path, monkeypatch: Patch, composed: Compose
) -> None:
    """MLflow keeps one store for each address, and a notebook may change its working folder."""
    config = composed()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(copy_store(migrated_store, tmp_path / name))
        assert find_runs(config.tracking) == []
        record_run(config, name)
        assert [run.name for run in find_runs(config.tracking)] == [name]


def test_what_is_no_file_is_written_through_and_never_replaced(tmp_path: Path) -> None:
    pipe, link, target = (tmp_path / name for name in ("pipe", "link", "far/target"))
    os.mkfifo(pipe)
    target.parent.mkdir()
    link.symlink_to(target)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for text in ("one", "two"):
        write_atomically(pipe, text)
        assert os.read(reader, 9).decode() == text
        write_atomically(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    os.close(reader)
    record.open_store(TrackingConfig(f"sqlite:///{tmp_path}/to.db", "x"))
    (tmp_path / "to_store").symlink_to(tmp_path / "new.db")
    record.open_store(TrackingConfig(f"sqlite:///{tmp_path}/to_store", "x"))
    assert (tmp_path / "to_store").is_symlink()
    for place in (pipe, make_device(tmp_path / "null")):
        with pytest.raises(TrackingError, match="is no file"):
            record.open_store(TrackingConfig(f"sqlite:///{place}", "x"))
        if place != pipe:
            write_atomically(place, "")
        assert not place.is_file()


def make_device(place: Path) -> Path:
    """Make a device that swallows what is written, if the user may; else link to one."""
    try:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        place.symlink_to(os.devnull)
    return place


@pytest.mark.slow
def test_processes_that_create_one_store_together_all_succeed(tmp_path: Path) -> None:
    open_by_four_processes(tmp_path, "sqlite:///new/mlflow.db")
    assert not list((tmp_path / "new").glob("*.draft"))
