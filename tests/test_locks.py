"""Turns at an MLflow server: one at a time, whatever becomes of those who queue."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.server import app, handlers
from test_connection import serving
from werkzeug.serving import make_server

from slimdown.config.schema import TrackingConfig
from slimdown.tracking import locks
from slimdown.tracking.locks import lock, saving_work
from slimdown.tracking.outage import PatientClient


@pytest.fixture(scope="module")
def config(
    migrated_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrackingConfig]:
    """The settings of a store that MLflow's server keeps, here in threads of this process."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated_store, folder / "server.db")
    uri = f"sqlite:///{folder}/server.db"
    handlers.initialize_backend_stores(uri, uri, str(folder))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield TrackingConfig(uri=f"http://127.0.0.1:{server.server_port}", experiment="x", wait=5)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ticket is renewed five times a second, and is dead after a second."""
    monkeypatch.setattr(locks, "_RENEWED", 0.2)
    monkeypatch.setattr(locks, "_DEAD", 1.0)
    monkeypatch.setattr(locks, "_LOOK", 0.2)


def queue(config: TrackingConfig) -> list[int]:
    return sorted(
        int(v.version)
        for v in MlflowClient(config.uri).search_model_versions("name = 'slimdown-locks'")
    )


def delete(config: TrackingConfig, ticket: int) -> None:
    MlflowClient(config.uri).delete_model_version("slimdown-locks", str(ticket))


class Contender(threading.Thread):
    """Wants a lock, and keeps it until it is told."""

    def __init__(self, config: TrackingConfig) -> None:
        super().__init__()
        self.waits, self.holds, self.may_go = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self._config, self.n_waits = config, 0
        self.start()

    def run(self) -> None:
        with lock(self._config, "key", self._wait):
            self.holds.set()
            self.may_go.wait(30)

    def _wait(self) -> None:
        self.n_waits += 1
        self.waits.set()

    def go(self) -> None:
        self.may_go.set()
        self.join()


def test_eight_take_turns_and_are_never_two(
    config: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_LOOK", 0.2)
    inside, turns, begin = tmp_path / "inside", list[int](), threading.Barrier(8)

    def contend(i: int) -> None:
        client = PatientClient.open(config)
        begin.wait()
        for _ in range(2):
            with lock(config, "contended", client=client):
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # FileExistsError: two
                turns.append(i)
                time.sleep(0.02)
                inside.unlink()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(contend, range(8)))
    assert sorted(turns) == sorted([*range(8)] * 2)
    assert queue(config) == []


def test_other_keys_are_not_waited_for(config: TrackingConfig) -> None:
    with lock(config, "one"), lock(config, "other", lambda: pytest.fail("waited")):
        assert len(queue(config)) == 2


def test_a_dead_ones_turn_is_taken_and_a_live_ones_is_not(
    config: TrackingConfig, quick: None
) -> None:
    locks._Ticket(
        PatientClient.open(config), config.uri, "key"
    )  # of a process that was killed: nobody renews it
    started = time.monotonic()
    first = Contender(config)
    assert first.holds.wait(20)
    assert time.monotonic() - started > 1
    second = Contender(config)
    assert second.waits.wait(20)
    assert not second.holds.wait(2.5)
    first.go()
    assert second.holds.wait(20)
    second.go()
    assert [first.n_waits, second.n_waits] == [1, 1]
    assert queue(config) == []


def test_who_lost_its_turn_goes_on_in_silence_and_who_lost_its_place_takes_another(
    config: TrackingConfig, quick: None
) -> None:
    first = Contender(config)
    assert first.holds.wait(20)
    second = Contender(config)
    assert second.waits.wait(20)
    [of_first, of_second] = queue(config)
    delete(config, of_second)
    while queue(config) != [of_first, of_second + 1]:
        time.sleep(0.05)
    assert not second.holds.is_set()
    delete(config, of_first)
    assert second.holds.wait(20)
    first.go()  # it tells nobody
    third = Contender(config)
    assert third.waits.wait(20)
    second.go()
    assert third.holds.wait(20)
    third.go()
    assert queue(config) == []


def test_a_server_without_a_queue_is_told_of_once_and_a_file_serves_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with serving() as config:
        client = PatientClient(MlflowClient(config.uri), config)
        for _ in range(2):
            with lock(config, "key", client=client), ThreadPoolExecutor(1) as pool:
                waits = threading.Event()

                def wait_in_vain(waits: threading.Event = waits) -> None:
                    waits.set()
                    raise ZeroDivisionError

                with pytest.raises(ZeroDivisionError):
                    pool.submit(
                        lambda: lock(config, "key", wait_in_vain, client).__enter__()
                    ).result(20)
                assert waits.is_set()
    [line] = capsys.readouterr().err.splitlines()
    assert "wrong" not in line
    assert "lets nobody queue in its registered model slimdown-locks (" in line


def test_work_is_done_without_a_lock_where_the_store_is_gone_but_a_mistake_of_ours_is_not_hidden(
    tmp_path: Path,
) -> None:
    gone = TrackingConfig(uri="http://127.0.0.1:9", experiment="x")
    with saving_work(gone, "key"):
        pass
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="x")

    def mistaken() -> None:
        raise TypeError

    with lock(config, "key"), pytest.raises(TypeError), saving_work(config, "key", mistaken):
        pass
